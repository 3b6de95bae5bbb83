"""Calibration data: every form they may come in, and every way in which they may be wrong."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.calibration import MAX_EXAMPLES, check_calibration
from tflite_tools.errors import CalibrationError
from tflite_tools.traced import InputSpec

ONE = (InputSpec("image", (1, 4, 4, 1), "float32"),)
TWO = (InputSpec("a", (1, 2), "float32"), InputSpec("b", (1, 3), "int32"))


def _images(count=20):
    return np.random.default_rng(0).random((count, 4, 4, 1), dtype=np.float32)


class _Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return _images()[5 * index : 5 * index + 5], np.zeros(5)


@pytest.mark.parametrize(
    "data",
    [
        _images(),
        tf.constant(_images()),
        {"image": _images()},
        [_images()],
        tf.data.Dataset.from_tensor_slices(_images()).batch(3),
        tf.data.Dataset.from_tensor_slices((_images(), np.zeros(20))).batch(3),
        tf.data.Dataset.from_tensor_slices((_images(), np.zeros(20), np.ones(20))).batch(3),
        lambda: ([row[None]] for row in _images()),
        lambda: ({"image": row[None]} for row in _images()),
        (row[None] for row in _images()),
    ],
    ids=["array", "tensor", "dict", "list", "dataset", "xy", "xyw", "callable", "dicts", "generator"],
)
def test_every_form_gives_the_same_examples(data):
    np.testing.assert_array_equal(check_calibration(data, ONE).arrays["image"], _images())


def test_a_keras_dataset_gives_the_same_examples():
    np.testing.assert_array_equal(check_calibration(_Batches(), ONE).arrays["image"], _images())


@pytest.mark.parametrize("form", ["dict", "tuple", "list", "dataset of dicts", "dataset of pairs"])
def test_several_inputs(form):
    a, b = np.random.default_rng(0).random((12, 2)), np.arange(36).reshape(12, 3)
    data = {
        "dict": {"b": b, "a": a},
        "tuple": (a, b),
        "list": [a, b],
        "dataset of dicts": tf.data.Dataset.from_tensor_slices({"a": a, "b": b}).batch(5),
        "dataset of pairs": tf.data.Dataset.from_tensor_slices(((a, b), np.zeros(12))).batch(5),
    }[form]
    checked = check_calibration(data, TWO)
    np.testing.assert_array_equal(checked.arrays["b"], b)
    np.testing.assert_allclose(checked.arrays["a"], a, rtol=1e-6)
    assert checked.arrays["b"].dtype == np.int32 and checked.arrays["a"].dtype == np.float32


def test_at_most_500_examples_spread_over_an_array():
    data = np.arange(2000, dtype="float32")[:, None, None, None] * np.ones((1, 4, 4, 1), "float32")
    taken = check_calibration(data, ONE).arrays["image"][:, 0, 0, 0]
    assert len(taken) == MAX_EXAMPLES == 500
    assert taken[0] == 0 and taken[-1] == 1999 and np.all(np.diff(taken) > 0)


def test_an_endless_stream_is_cut():
    def forever():
        rng = np.random.default_rng(0)
        while True:
            yield rng.random((64, 4, 4, 1))

    assert check_calibration(forever, ONE).num_examples == 500


def test_batches_of_a_fixed_size_are_filled_up():
    checked = check_calibration(_images(10), ONE)
    batches = list(checked.batches(4))
    assert [len(batch["image"]) for batch in batches] == [4, 4, 4]
    np.testing.assert_array_equal(batches[2]["image"][2:], _images(10)[:2])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (np.zeros((0, 4, 4, 1)), "not a single example"),
        (_images()[0], r"x\[None\] adds it"),
        (_images()[..., 0], r"x\[\.\.\., None\] adds it"),
        (
            np.random.default_rng(0).random((9, 5, 4, 1)),
            r"expected shape \[examples, 4, 4, 1\], got \[9, 5, 4, 1\]",
        ),
        (np.where(_images() > 0.99, np.nan, _images()), "NaN or infinite"),
        (np.full((20, 4, 4, 1), 3.0), "every value is 3.0"),
        (np.repeat(_images(1), 20, axis=0), "all 20 examples are the same"),
        (np.full((20, 4, 4, 1), "a"), "expected numbers"),
        ({"img": _images()}, r"nothing for the input 'image'(.|\n)*no input 'img'.*Did you mean 'image'"),
        ((_images(), _images()), r"hold 2 arrays.*\['image'\]"),
        (3, "expected an array, a tf.data.Dataset"),
        (lambda: iter(()), "not a single example"),
    ],
)
def test_problems_are_named(data, match):
    with pytest.raises(CalibrationError, match=match):
        check_calibration(data, ONE)


def test_all_problems_are_listed_at_once():
    data = {"a": np.full((12, 2), np.inf), "b": np.random.default_rng(0).random((12, 3))}
    with pytest.raises(CalibrationError) as caught:
        check_calibration(data, TWO)
    assert len(caught.value.problems) == 2
    assert "NaN or infinite" in caught.value.problems[0] and "whole numbers" in caught.value.problems[1]


def test_channels_first_data_are_recognized():
    spec = (InputSpec("image", (1, 6, 8, 3), "float32"),)
    with pytest.raises(CalibrationError, match=r"np\.moveaxis"):
        check_calibration(np.random.default_rng(0).random((12, 3, 6, 8)), spec)


def test_few_examples_are_a_warning():
    (warning,) = check_calibration(_images(3), ONE).warnings
    assert "only 3 calibration examples" in warning
    assert check_calibration(_images(10), ONE).warnings == ()


# --- against what the model saw ---


def _trained(layer):
    """A model whose BatchNormalization saw images of 0..255, as its statistics say."""
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(3, 1, use_bias=False, kernel_initializer="ones")(inputs)
    norm = layer()
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(norm(x))))
    if layer is keras.layers.BatchNormalization:
        norm.moving_mean.assign([127.5] * 3)
        norm.moving_variance.assign([255.0**2 / 12] * 3)
    return model


def test_data_scaled_otherwise_than_in_training_are_refused():
    model = _trained(keras.layers.BatchNormalization)
    with pytest.raises(CalibrationError, match=r"1/2\d\d of those that it saw in training"):
        tflite_tools.convert(model, quantization="int8", calibration=_images())
    artifact = tflite_tools.convert(model, quantization="int8", calibration=255 * _images())
    assert artifact.notes == ()


def test_data_scaled_somewhat_otherwise_are_a_warning():
    model = _trained(keras.layers.BatchNormalization)
    with pytest.warns(UserWarning, match=r"1/1\d.* of those that it saw"):
        artifact = tflite_tools.convert(model, quantization="int8", calibration=20 * _images())
    assert any("it saw in training" in note for note in artifact.notes)


def test_an_untrained_model_says_nothing_about_scaling():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.BatchNormalization()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    assert tflite_tools.convert(model, quantization="int8", calibration=100 * _images()).notes == ()


def test_normalization_layer_tells_too():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Normalization(mean=[127.5], variance=[5400.0])(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.raises(CalibrationError, match="Normalization"):
        tflite_tools.convert(model, quantization="int8", calibration=_images())


def test_already_scaled_pixels_before_a_rescaling_layer_are_a_warning():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.warns(UserWarning, match="scaled already"):
        tflite_tools.convert(model, quantization="int8", calibration=_images())
