"""Keras's own tests of keras.distillation, read from the installed wheel and pointed at our classes."""

import ast
import importlib.util
import pathlib
import types
import unittest

import keras
import pytest

import keras_kd
from keras_kd import losses

FILES = ("distiller_test.py", "distillation_loss_test.py")

# The lines that look at private attributes of Keras's implementation; everything else must pass.
PRIVATE_ATTRIBUTES = ("_teacher_feature_extractor", "_student_feature_extractor")
EXCLUDED_LINES = {
    "distiller_test.py": [],
    "distillation_loss_test.py": [
        "self.assertIsNotNone(distiller._teacher_feature_extractor)",
        "self.assertIsNotNone(distiller._student_feature_extractor)",
        "self.assertEqual(len(distiller._teacher_feature_extractor.outputs), 2)",
        "self.assertEqual(len(distiller._student_feature_extractor.outputs), 2)",
        "self.assertIsNotNone(distiller._teacher_feature_extractor)",
        "self.assertIsNotNone(distiller._student_feature_extractor)",
        "self.assertEqual(len(distiller._teacher_feature_extractor.outputs), 3)",
        "self.assertEqual(len(distiller._student_feature_extractor.outputs), 3)",
    ],
}
OURS = {
    "Distiller": keras_kd.Distiller,
    "LogitsDistillation": losses.LogitsDistillation,
    "FeatureDistillation": losses.FeatureDistillation,
}


class _WithoutPrivateLines(ast.NodeTransformer):
    def __init__(self) -> None:
        self.excluded: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list = []  # a pytest mark of Keras's own configuration
        self.generic_visit(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        source = ast.unparse(node)
        if any(f".{attribute}" in source for attribute in PRIVATE_ATTRIBUTES):
            self.excluded.append(source)
            return None
        return node


def _keras_tests(file_name: str) -> tuple[types.ModuleType, list[str]]:
    spec = importlib.util.find_spec("keras.src.distillation")
    assert spec is not None and spec.submodule_search_locations
    path = pathlib.Path(next(iter(spec.submodule_search_locations))) / file_name
    if not path.exists():
        pytest.skip(f"Keras {keras.__version__} ships no {file_name}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    transformer = _WithoutPrivateLines()
    tree = ast.fix_missing_locations(transformer.visit(tree))
    module = types.ModuleType(file_name.removesuffix(".py"))
    exec(compile(tree, str(path), "exec"), module.__dict__)
    swapped = [name for name in OURS if name in module.__dict__]
    assert swapped
    module.__dict__.update({name: OURS[name] for name in swapped})
    return module, transformer.excluded


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras's tests give logits to a loss on probabilities
@pytest.mark.parametrize("file_name", FILES)
def test_keras_own_tests_pass_with_our_classes(file_name: str) -> None:
    module, excluded = _keras_tests(file_name)
    if keras.__version__.startswith("3.15"):
        assert excluded == EXCLUDED_LINES[file_name]
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    assert suite.countTestCases() >= 5
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == suite.countTestCases()
    assert not result.skipped
    assert not [trace for _, trace in [*result.errors, *result.failures]]
