"""`predict`: quantization, batches, processes, state, and files that crash."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools import interpreter
from tflite_tools.errors import ModelCrashError, UnsupportedModelError
from tflite_tools.flatbuffer import model_table
from tflite_tools.interpreter import available_cores, prepare
from tflite_tools.processes import ChildRunner
from tflite_tools.quantized_values import dequantize, quantize
from tflite_tools.runner import ModelRunner, TensorSpec


@pytest.fixture(scope="module")
def dense():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="numbers")
    x = keras.layers.Dense(8, activation="relu")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def numbers():
    return np.random.default_rng(0).normal(size=(50, 6)).astype("float32")


@pytest.fixture(scope="module")
def int8_file(dense, numbers):
    return tflite_tools.convert(dense, quantization="int8", calibration=numbers)


# --- quantization ---


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_quantize_rounds_halves_away_from_zero_and_clamps(dtype):
    limits = np.iinfo(dtype)
    zero = 3
    # value / 0.5 = 0.5, 1.5, -0.5, -1.5, 2.5, just under 0.5, and both ends
    values = np.array([0.25, 0.75, -0.25, -0.75, 1.25, np.nextafter(np.float32(0.25), 0), 1e9, -1e9])
    steps = [1, 2, -1, -2, 3, 0]
    expected = [np.clip(zero + s, limits.min, limits.max) for s in steps] + [limits.max, limits.min]
    assert quantize(values, 0.5, zero, dtype).tolist() == expected


def test_quantize_and_dequantize_equal_the_runtimes_own_kernels():
    """The oracle is the runtime: a file with float inputs, whose QUANTIZE and DEQUANTIZE do the same."""
    inputs = keras.Input((4096,))
    model = keras.Model(inputs, keras.layers.ReLU()(inputs))
    rng = np.random.default_rng(3)
    data = rng.uniform(-3.0, 5.0, (20, 4096)).astype("float32")
    float_io = tflite_tools.convert(model, quantization="int8", calibration=data, input_dtype="float32")
    runner = ModelRunner(float_io.content, reference_kernels=True, all_tensors=True)
    scaled = [spec for spec in runner.outputs if spec.is_quantized]
    assert scaled, [spec.name for spec in runner.outputs]
    spec = scaled[0]
    # Ties on purpose: every half step of the scale, as float32 has it.
    ties = (np.arange(-300, 300) / 2 * np.float32(spec.scale)).astype("float32")
    x = np.resize(np.concatenate([ties, rng.uniform(-6, 9, 3000).astype("float32")]), (1, 4096))
    outputs = runner.once({runner.inputs[0].name: x.astype("float32")})
    np.testing.assert_array_equal(quantize(x, spec.scale, spec.zero_point, spec.dtype), outputs[spec.name])
    final = runner.outputs[-1]
    before = [s for s in runner.outputs if s.is_quantized][-1]
    assert final.dtype == "float32"
    np.testing.assert_array_equal(
        dequantize(outputs[before.name], before.scale, before.zero_point), outputs[final.name]
    )


def test_values_of_the_files_own_type_are_passed_as_they_are(int8_file, numbers):
    (spec,) = ModelRunner(int8_file.content).inputs
    raw = quantize(numbers, spec.scale, spec.zero_point, "int8")
    np.testing.assert_array_equal(
        tflite_tools.predict(int8_file, raw), tflite_tools.predict(int8_file, numbers)
    )
    steps = tflite_tools.predict(int8_file, raw, dequantize_outputs=False)
    assert steps.dtype == np.int8


def test_integers_of_another_type_are_real_values(int8_file):
    ones = np.ones((2, 6))
    np.testing.assert_array_equal(
        tflite_tools.predict(int8_file, ones.astype("int64")), tflite_tools.predict(int8_file, ones)
    )


def test_nan_has_no_integer(int8_file):
    with pytest.raises(ValueError, match="NaN"):
        tflite_tools.predict(int8_file, np.full((2, 6), np.nan))


# --- shapes ---


def test_every_misfit_is_named(int8_file, numbers):
    with pytest.raises(ValueError, match=r"expected \[examples, 6\], got \[6\].*x\[None\]"):
        tflite_tools.predict(int8_file, numbers[0])
    with pytest.raises(ValueError, match=r"expected \[examples, 6\], got \[50, 5\]"):
        tflite_tools.predict(int8_file, numbers[:, :5])
    with pytest.raises(ValueError, match="Did you mean 'numbers'"):
        tflite_tools.predict(int8_file, {"number": numbers})
    with pytest.raises(ValueError, match="isolate"):
        tflite_tools.predict(int8_file, numbers, isolate="yes")


def test_several_inputs_and_outputs_by_name_and_by_order(numbers):
    a, b = keras.Input((2,), name="left"), keras.Input((3,), name="right")
    total = keras.layers.Dense(1, kernel_initializer="ones", name="sum")(keras.layers.Concatenate()([a, b]))
    model = keras.Model([a, b], {"total": total, "copy": keras.layers.Activation("linear", name="c")(b)})
    artifact = tflite_tools.convert(model)
    left, right = numbers[:7, :2], numbers[:7, 2:5]
    expected = np.hstack([left, right]).sum(axis=1, keepdims=True)
    by_name = tflite_tools.predict(artifact, {"right": right, "left": left})
    assert set(by_name) == {"total", "copy"}
    np.testing.assert_allclose(by_name["total"], expected, atol=1e-5)
    np.testing.assert_array_equal(by_name["copy"], right)
    with pytest.raises(ValueError, match="different numbers of examples"):
        tflite_tools.predict(artifact, {"right": right[:3], "left": left})
    with pytest.raises(ValueError, match=r"nothing was given for the input 'left'"):
        tflite_tools.predict(artifact, {"right": right})


def test_no_examples_give_no_outputs(int8_file):
    assert len(tflite_tools.predict(int8_file, np.zeros((0, 6), "float32"))) == 0


def test_prepare_tells_one_call_from_examples():
    spec = TensorSpec("x", "x", (4, 2), "float32")
    assert prepare(np.zeros((4, 2)), (spec,))[1] is True
    assert prepare(np.zeros((8, 2)), (spec,))[1] is False


# --- batches ---


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_batches_give_what_single_examples_give(dense, numbers, count):
    artifact = tflite_tools.convert(dense, quantization="dynamic")
    x = np.resize(numbers, (count, 6))
    together = tflite_tools.predict(artifact, x)
    alone = np.concatenate([tflite_tools.predict(artifact, row[None]) for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_graph_that_mixes_its_batch_is_run_one_by_one():
    class MinusBatchMean(keras.layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0, keepdims=True)

    inputs = keras.Input((3,))
    model = keras.Model(inputs, MinusBatchMean()(inputs))
    artifact = tflite_tools.convert(model)  # batch of 1: the mean is the example itself
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    np.testing.assert_array_equal(tflite_tools.predict(artifact, x), np.zeros((20, 3)))


def test_a_graph_that_refuses_larger_batches_is_run_one_by_one():
    @tf.function(input_signature=[tf.TensorSpec([1, 4], name="x")])
    def fixed(x):
        return {"y": tf.reshape(x, [2, 2]) * 2.0}

    artifact = tflite_tools.convert(fixed)
    x = np.arange(12, dtype="float32").reshape(3, 4)
    # Two rows per call: nothing says that they are examples, so each call's output stays whole.
    np.testing.assert_array_equal(tflite_tools.predict(artifact, x), 2 * x.reshape(3, 2, 2))


# --- state ---


def _stream():
    class Sum(tf.Module):
        def __init__(self):
            self.total = tf.Variable([[0.0]], trainable=False)

        @tf.function(input_signature=[tf.TensorSpec([1, 1], name="x")])
        def step(self, x):
            self.total.assign_add(x)
            return {"y": self.total + 0.0}

    return Sum()


@pytest.mark.parametrize("isolate", [False, True])
def test_a_stream_keeps_its_state_between_examples_and_starts_afresh(isolate):
    module = _stream()
    artifact = tflite_tools.convert(module.step)
    x = np.array([[1.0], [2.0], [3.0]], "float32")
    for _ in range(2):
        assert tflite_tools.predict(artifact, x, isolate=isolate).ravel().tolist() == [1.0, 3.0, 6.0]


@pytest.mark.parametrize("name", ["tflm_trained_lstm", "tflm_trained_lstm_int8"])
def test_an_lstms_cell_starts_afresh_with_every_example(shared_data, name):
    artifact = tflite_tools.load(shared_data / "tflite_zoo" / f"{name}.tflite")
    x = np.random.default_rng(0).random((4, 28, 28), dtype="float32")
    together = tflite_tools.predict(artifact, x)
    alone = np.concatenate([tflite_tools.predict(artifact, row[None]) for row in x])
    np.testing.assert_array_equal(together, alone)


# --- processes ---


@pytest.mark.parametrize("isolate", [True, False])
def test_workers_return_everything_in_order(dense, isolate, monkeypatch):
    artifact = tflite_tools.convert(dense)
    x = np.random.default_rng(0).normal(size=(3000, 6)).astype("float32")
    # So that this small job is shared too, in small pieces.
    monkeypatch.setattr(interpreter, "_WORTH_A_PROCESS_S", 1e-6)
    monkeypatch.setattr(interpreter, "_WORTH_A_THREAD_S", 1e-6)
    monkeypatch.setattr(interpreter, "_CHUNK_S", 1e-6)
    shared = tflite_tools.predict(artifact, x, num_processes=3, isolate=isolate)
    np.testing.assert_allclose(shared, dense.predict(x, verbose=0), atol=1e-5)


def test_available_cores_respect_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no CPU affinity on this system")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_a_killed_child_is_an_error_with_its_signal(int8_file, numbers):
    child = ChildRunner(int8_file.content)
    try:
        os.kill(child._child.process.pid, signal.SIGSEGV)
        with pytest.raises(ModelCrashError, match="SIGSEGV") as caught:
            for _ in range(3):
                child.run({"numbers": quantize(numbers, 1.0, 0, "int8")})
        assert caught.value.signal_name == "SIGSEGV" and caught.value.exit_code == -signal.SIGSEGV
    finally:
        child.close()


def test_a_file_that_kills_its_process_leaves_the_caller_alive():
    """A real fault of the runtime: it divides by the stride of a transposed convolution without looking."""
    inputs = keras.Input((8, 8, 2))
    model = keras.Model(inputs, keras.layers.Conv2DTranspose(2, 3, strides=2)(inputs))
    broken = bytearray(tflite_tools.convert(model, metadata=False).content)
    for node in next(model_table(bytes(broken)).tables(2)).tables(3):
        options = node.table(4)
        place = None if options is None else options.place(1)
        if place is not None and options.integer(1, "int32") == 2:  # stride_w
            broken[place : place + 4] = bytes(4)
    with pytest.raises(ModelCrashError, match="SIGFPE while loading") as caught:
        tflite_tools.predict(tflite_tools.load(bytes(broken)), np.zeros((1, 8, 8, 2)))
    assert caught.value.signal_name == "SIGFPE"


def test_a_file_that_hangs_is_killed():
    @tf.function(input_signature=[tf.TensorSpec([1, 1], name="x")])
    def forever(x):
        return {"y": tf.while_loop(lambda v: tf.reduce_all(v < 1e9), lambda v: (v * 1.0,), (x,))[0]}

    artifact = tflite_tools.convert(forever)
    with pytest.raises(ModelCrashError, match="running the model took longer than 2 s"):
        tflite_tools.predict(artifact, np.zeros((1, 1), "float32"), isolate=True, timeout_s=2.0)
    with pytest.raises(ValueError, match=r"timeout_s.*isolate=True"):
        tflite_tools.predict(artifact, np.zeros((1, 1), "float32"), isolate=False, timeout_s=2.0)


def test_the_child_starts_from_any_folder(int8_file, numbers, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert len(tflite_tools.predict(int8_file, numbers, isolate=True)) == 50


def test_isolated_and_direct_runs_agree_to_the_bit(int8_file, numbers):
    np.testing.assert_array_equal(
        tflite_tools.predict(int8_file, numbers, isolate=True),
        tflite_tools.predict(int8_file, numbers, isolate=False),
    )


@pytest.mark.parametrize("isolate", [True, False])
def test_unknown_signature_lists_those_there_are(int8_file, numbers, isolate):
    with pytest.raises(ValueError, match=r"no signature 'serving'.*serving_default"):
        tflite_tools.predict(int8_file, numbers, signature="serving", isolate=isolate)


@pytest.mark.parametrize("isolate", [True, False])
def test_edge_tpu_files_say_what_they_need(shared_data, isolate):
    path = shared_data / "tflite_zoo" / "coral_split_concat_edgetpu.tflite"
    with pytest.raises(UnsupportedModelError, match="Coral Edge TPU"):
        tflite_tools.predict(tflite_tools.load(path), np.zeros((1, 8, 8, 3), "uint8"), isolate=isolate)
