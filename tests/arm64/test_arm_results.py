"""Every kind of file that the library writes gives on ARM kernels what it gives on x86.

LiteRT's own aarch64 wheel under qemu-user: the kernels are the true ones, the processor is emulated. That proves
results and nothing about speed, so nothing here takes a time. Run with `pytest -m arm64`.
"""

import pathlib

import arm64_root
import keras
import numpy as np
import pytest

import keras_kd
import tflite_tools
from tflite_tools.runner import ModelRunner

pytestmark = pytest.mark.arm64

KINDS = {
    "float32": {},
    "float16": {"quantization": "float16"},
    "dynamic": {"quantization": "dynamic"},
    "int8": {"quantization": "int8", "input_dtype": "int8"},
    "int8_float_ends": {"quantization": "int8", "input_dtype": "float32"},
    "int16x8": {"quantization": "int16x8"},
}
# Through TF-MOT, whose ranges are trained; the second with zeros in the weights.
RECIPES = {"int8_qat": "int8", "pruned_int8_qat": "prune75-int8"}
INTEGER = ("int8", "int8_float_ends", "int16x8", *RECIPES)
RUNS = 32


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{kind: (what x86 said, what ARM said, the same two with the plain kernels)}, raw tensors."""
    arm64_root.root()
    folder = tmp_path_factory.mktemp("arm64")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.Add()([x, keras.layers.Conv2D(12, 1)(x)])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU(6.0)(x))
    # Wide logits, so that the outputs of different inputs differ by many steps.
    wide = keras.initializers.VarianceScaling(60.0, seed=0)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax", kernel_initializer=wide)(x))
    generator = np.random.default_rng(0)
    data = generator.uniform(-1, 1, (100, 16, 16, 3)).astype("float32")
    artifacts = {}
    for kind, options in KINDS.items():
        calibration = data if options.get("quantization") in ("int8", "int16x8") else None
        artifacts[kind] = tflite_tools.convert(model, calibration=calibration, **options)
    labels = generator.integers(0, 10, len(data))
    for kind, recipe in RECIPES.items():
        compressed = keras_kd.compress(
            model,
            recipe,
            data,
            labels,
            loss="sparse_categorical_crossentropy",
            optimizer="sgd",
            epochs=2,
            verbose=0,
        )
        artifacts[kind] = compressed.to_tflite()
    found = {}
    for kind, artifact in artifacts.items():
        artifact.save(folder / f"{kind}.tflite")
        runner = ModelRunner(artifact.content)
        (source,), (target,) = runner.inputs, runner.outputs
        values = data[:RUNS, None]
        if source.dtype != "float32":
            limits = np.iinfo(source.dtype)
            values = generator.integers(limits.min, limits.max, values.shape, source.dtype, endpoint=True)
        np.save(folder / f"{kind}.in.npy", values)
        plain = ModelRunner(artifact.content, reference_kernels=True)
        found[kind] = [
            np.stack([each.once({source.name: value})[target.name] for value in values])
            for each in (runner, plain)
        ]
    script = pathlib.Path(__file__).with_name("run_on_arm.py")
    assert arm64_root.run_python([script, folder]).strip() == "aarch64"
    return {
        kind: (fast, np.load(folder / f"{kind}.out.npy"), plain, np.load(folder / f"{kind}.ref.npy"))
        for kind, (fast, plain) in found.items()
    }


@pytest.mark.parametrize("kind", INTEGER)
def test_integer_files_are_identical_on_the_plain_kernels(answers, kind):
    _, _, x86, arm = answers[kind]
    assert x86.dtype == arm.dtype and x86.shape == arm.shape and len(x86) == RUNS
    assert np.unique(x86).size > 10  # a constant output would prove nothing
    np.testing.assert_array_equal(arm, x86)


@pytest.mark.parametrize("kind", INTEGER)
def test_integer_files_on_the_fast_kernels(answers, kind):
    x86, arm, _, _ = answers[kind]
    assert x86.dtype == arm.dtype and x86.shape == arm.shape
    # XNNPACK has kernels of its own for every processor. Most files give the same bytes; of 320 outputs of one file,
    # one was off by a step, which is 1/256 where floats come out. Allows off by one, rarely; not off by two.
    step = 1 / 256 if x86.dtype == np.float32 else 1
    apart = np.abs(arm.astype(np.float64) - x86) / step
    assert apart.max() <= 1 and (apart > 0).mean() <= 0.01


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_float_files_agree(answers, kind):
    x86, arm, _, _ = answers[kind]
    # Probabilities; sums of some hundred products are taken in another order, which moves the last bits of a float32
    # (6e-8 of a value below 1), and the exponential of softmax is another approximation.
    np.testing.assert_allclose(arm, x86, rtol=0, atol=1e-6)


def test_dynamic_range_files_agree(answers):
    x86, arm, _, _ = answers["dynamic"]
    # Activations are rounded to 8 bits while it runs: a float that differs in its last bit may round to the next step,
    # which is 1/127 of the largest activation of one layer.
    np.testing.assert_allclose(arm, x86, rtol=0, atol=1e-2)
