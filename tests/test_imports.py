"""The rules about who imports whom, and what an import may do to a process."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = [
    path for package in ("keras_kd", "tflite_tools") for path in sorted((ROOT / package).rglob("*.py"))
]


def imported_modules(path: pathlib.Path) -> set[str]:
    """Full names of all that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path.relative_to(ROOT)} has a relative import; the project uses full names"
            )
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def files_importing(prefix: str, *, package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.is_relative_to(ROOT / package)
        and any(name == prefix or name.startswith(prefix + ".") for name in imported_modules(path))
    }


def test_the_scan_sees_imports():
    # Guards the guards: a scan that found nothing would let every rule below pass.
    assert "keras_kd/pipeline.py" in files_importing("tflite_tools", package="keras_kd")


def test_tflite_tools_never_imports_keras_kd():
    assert files_importing("keras_kd", package="tflite_tools") == set()


def test_tfmot_is_imported_in_one_module():
    users = files_importing("tensorflow_model_optimization", package=".")
    assert users == {"keras_kd/compression/tfmot.py"}


def test_tf_keras_is_imported_inside_compression_only():
    users = files_importing("tf_keras", package="keras_kd")
    assert users
    assert {user for user in users if not user.startswith("keras_kd/compression/")} == set()


@pytest.mark.parametrize("private", ["tensorflow.python", "keras.src", "tf_keras.src"])
def test_no_private_module_is_imported(private: str):
    assert files_importing(private, package=".") == set()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


def test_import_keras_kd_leaves_the_process_as_it_was():
    done = run(
        # TensorFlow and Keras set variables of their own; what keras_kd adds to that is the question.
        "import os, sys, keras, tensorflow; before = dict(os.environ)\n"
        "import keras_kd\n"
        "assert 'tensorflow_model_optimization' not in sys.modules\n"
        "assert 'tf_keras' not in sys.modules\n"
        "assert dict(os.environ) == before\n"
        "import tensorflow as tf\n"
        "print(tf.keras.__version__)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("3.")


def test_import_tflite_tools_loads_neither_tensorflow_nor_keras():
    done = run(
        "import tflite_tools, sys\n"
        "print([m for m in ('tensorflow', 'keras', 'tf_keras', 'keras_kd') if m in sys.modules])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_another_backend_is_one_clear_error():
    # JAX need not be installed: the check comes before Keras looks for it.
    done = run("import keras_kd", KERAS_BACKEND="jax")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: keras_kd needs Keras on TensorFlow")
    assert "'jax'" in last


def test_a_backend_from_the_configuration_file_is_noticed_too():
    # Keras is on TensorFlow here; only its answer is changed, since no other backend need be installed.
    done = run("import keras; keras.backend.backend = lambda: 'torch'\nimport keras_kd", KERAS_BACKEND="")
    assert "keras.json) asks for 'torch'" in done.stderr


@pytest.mark.parametrize("package", ["keras_kd", "tflite_tools"])
def test_every_public_name_resolves(package: str):
    done = run(
        f"import {package} as p\n"
        "missing = [n for n in p.__all__ if not hasattr(p, n)]\n"
        "assert not missing, missing\n"
        "assert set(p._HOMES) <= set(p.__all__), set(p._HOMES) - set(p.__all__)\n"
        "try: p.no_such_name\n"
        "except AttributeError as error: print(error)"
    )
    assert done.returncode == 0, done.stderr
    assert "no_such_name" in done.stdout
