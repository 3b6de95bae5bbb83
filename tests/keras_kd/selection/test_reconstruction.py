"""Fitted kernels: least squares done right, nothing moved where nothing is lost, and what can be recovered is."""

import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd
from keras_kd.selection import carve
from keras_kd.selection.reconstruction import RIDGE, fit, rows_of, target_of

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import carving_models as models
from test_carving import assert_same, inputs_for, outputs_of


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(3), (5, 4)),
        (layers.Conv2D(3, 3, padding="same"), (6, 7, 4)),
        (layers.Conv2D(3, (3, 2), strides=2, padding="same", use_bias=False), (7, 6, 4)),
        (layers.Conv2D(3, 2, strides=(2, 1), padding="valid"), (7, 6, 4)),
        (layers.Conv2D(3, 3, dilation_rate=2, padding="same"), (8, 8, 2)),
        (layers.Conv1D(3, 4, padding="causal", dilation_rate=2), (9, 4)),
        (layers.Conv1D(3, 3, strides=2, padding="same"), (9, 4)),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else "",
)
def test_rows_times_the_kernel_are_what_the_layer_puts_out(layer, shape):
    x = np.random.default_rng(0).normal(size=(5, *shape)).astype("float32")
    layer.build(x.shape)
    expected = np.asarray(layer(x)).reshape(-1, 3)
    # Sums of some dozen float32 products.
    np.testing.assert_allclose(target_of(layer, rows_of(layer, x, seed=0)), expected, atol=1e-5)


def test_the_same_positions_are_drawn_whatever_the_channels():
    layer, other = layers.Conv2D(1, 1), layers.Conv2D(1, 1)
    x = np.random.default_rng(0).normal(size=(40, 16, 16, 3)).astype("float32")
    layer.build(x.shape)
    other.build(x[..., 1:].shape)
    drawn = rows_of(layer, x, seed=3)
    assert len(drawn) < 40 * 16 * 16  # it did draw
    np.testing.assert_array_equal(drawn[:, 1:], rows_of(other, x[..., 1:], seed=3))


def test_the_fit_is_ridge_regression_around_the_weights_that_were():
    generator = np.random.default_rng(1)
    rows, target = generator.normal(size=(50, 4)) + 1.0, generator.normal(size=(50, 2))
    for use_bias in (False, True):
        layer = layers.Dense(2, use_bias=use_bias)
        layer.build((None, 4))
        if use_bias:
            layer.bias.assign([0.5, -1.0])
        before = layer.kernel.numpy().astype(np.float64)
        missing = target - target_of(layer, rows)
        fit(layer, rows, target)
        x = rows - rows.mean(0) if use_bias else rows
        # As an augmented least-squares problem.
        scale = np.sqrt(RIDGE * np.mean(np.square(x)) * len(x))
        right = np.vstack([missing - missing.mean(0) if use_bias else missing, np.zeros((4, 2))])
        change = np.linalg.lstsq(np.vstack([x, scale * np.eye(4)]), right, rcond=None)[0]
        np.testing.assert_allclose(layer.kernel.numpy(), before + change, atol=1e-5)
        if use_bias:
            residual = target - target_of(layer, rows)
            np.testing.assert_allclose(residual.mean(0), 0.0, atol=1e-5)  # the bias is not penalized


@pytest.mark.parametrize("build", models.SMALL, ids=lambda build: build.__name__)
def test_nothing_moves_where_nothing_is_lost(build):
    teacher = models.randomize(build())
    carving = carve(teacher, 0.5)
    kept = {layer.path.split("/")[-1]: layer.kept for layer in carving.layers}
    silent = models.silenced(teacher, carving.student, kept)
    x = inputs_for(teacher, count=16)
    assert_same(
        outputs_of(keras_kd.carve_student(silent, 0.5, x, reconstruct=True), x), outputs_of(silent, x)
    )


def test_a_twin_takes_over():
    """Of two units that say the same one is enough, once the next layer counts it for both."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "relu", name="hidden"), layers.Dense(2, name="logits")]
    )
    generator = np.random.default_rng(2)
    kernel = generator.normal(size=(3, 2))
    kernel = (kernel / np.abs(kernel).mean(axis=0)).repeat(2, axis=1)
    kernel[:, [1, 3]] *= 0.9  # two pairs of twins, of which l1 keeps the louder ones
    model.layers[0].set_weights([kernel, np.zeros(4)])
    x = generator.normal(size=(256, 3)).astype("float32")
    expected = outputs_of(model, x)[0]
    plain, fitted = (
        outputs_of(keras_kd.carve_student(model, 0.5, x, reconstruct=flag), x)[0] for flag in (False, True)
    )
    spread = np.std(expected)
    assert np.std(plain - expected) > 0.2 * spread
    assert np.std(fitted - expected) < 0.01 * spread  # the penalty holds back a thousandth


def test_layers_that_are_called_twice_and_the_teacher_stay_as_they_are():
    teacher = models.randomize(models.nested_and_shared())
    before = [weight.copy() for weight in teacher.get_weights()]
    carving = carve(teacher, 0.5, inputs_for(teacher, 32), reconstruct=True)
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    kept = {layer.path: list(layer.kept) for layer in carving.layers}
    shared = teacher.get_layer("stem").kernel.numpy()[..., kept["stem"]]
    np.testing.assert_array_equal(carving.student.get_layer("stem").kernel.numpy(), shared)
    hidden = teacher.get_layer("label").kernel.numpy()
    assert carving.student.get_layer("label").kernel.shape[0] < hidden.shape[0]


def test_it_needs_inputs():
    with pytest.raises(ValueError, match="reconstruct=True fits kernels on real inputs: give x"):
        keras_kd.carve_student(models.series(), reconstruct=True)
    with pytest.raises(ValueError, match="reconstruct must be True or False, got 'yes'"):
        keras_kd.carve_student(models.series(), reconstruct="yes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["MobileNet", "MobileNetV2", "MobileNetV3Small", "ResNet50", "EfficientNetB0", "DenseNet121"]
)
def test_families_of_keras_applications_are_fitted(family: str):
    keras.utils.set_random_seed(0)
    teacher = getattr(keras.applications, family)(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    models.randomize(teacher)
    scale = 100.0 if family in ("MobileNetV3Small", "EfficientNetB0") else 1.0  # they take pixels
    x = scale * inputs_for(teacher, count=32)
    carving = carve(teacher, 0.5)
    kept = {layer.path: layer.kept for layer in carving.layers}
    silent = models.silenced(teacher, carving.student, kept)
    expected = outputs_of(silent, x)[0]
    found = outputs_of(keras_kd.carve_student(silent, 0.5, x, reconstruct=True), x)[0]
    # Rounding of some fifty layers, each fitted to the rounding of those before it.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
