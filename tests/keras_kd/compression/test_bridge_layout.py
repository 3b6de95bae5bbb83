"""Layers in another layout than TFLite's: 1-D convolutions over rows, and channels first."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_tools
from keras_kd.compression.bridge import bridge_report, copy_weights_back, to_tf_keras
from keras_kd.compression.bridge_errors import UnsupportedLayerError

FIRST = {"data_format": "channels_first"}


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 1.2, w.shape).astype(w.dtype) for w in model.get_weights()])


def single(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


# No layer here has as many filters as its output is wide: Keras 3.15.1 then adds the bias along the width.
IMAGE, SEQUENCE, VOLUME = (3, 8, 6), (3, 8), (2, 5, 6, 4)
CASES = {
    "Conv2D": lambda: single(IMAGE, L.Conv2D(5, 3, activation="gelu", **FIRST)),
    "Conv2DTranspose": lambda: single(IMAGE, L.Conv2DTranspose(4, 3, strides=2, **FIRST)),
    "DepthwiseConv2D": lambda: single(IMAGE, L.DepthwiseConv2D(3, depth_multiplier=2, **FIRST)),
    "SeparableConv2D": lambda: single(IMAGE, L.SeparableConv2D(4, 3, padding="same", **FIRST)),
    "Conv1D": lambda: single(SEQUENCE, L.Conv1D(4, 3, **FIRST), L.ReLU(), L.MaxPooling1D(2, **FIRST)),
    "Conv3D": lambda: single(VOLUME, L.Conv3D(5, 2, **FIRST)),
    "MaxPooling2D": lambda: single(IMAGE, L.MaxPooling2D((2, 3), **FIRST)),
    "AveragePooling2D": lambda: single(IMAGE, L.AveragePooling2D(3, 2, "same", **FIRST)),
    "MaxPooling3D": lambda: single(VOLUME, L.MaxPooling3D(2, **FIRST)),
    "GlobalAveragePooling2D": lambda: single(IMAGE, L.GlobalAveragePooling2D(**FIRST)),
    "GlobalMaxPooling2D": lambda: single(IMAGE, L.GlobalMaxPooling2D(keepdims=True, **FIRST)),
    "UpSampling2D": lambda: single(IMAGE, L.UpSampling2D((2, 3), **FIRST)),
    "ZeroPadding2D": lambda: single(IMAGE, L.ZeroPadding2D(((1, 0), (0, 2)), **FIRST)),
    "Cropping2D": lambda: single(IMAGE, L.Cropping2D(((1, 0), (0, 2)), **FIRST)),
    "Resizing": lambda: single(IMAGE, L.Resizing(5, 11, **FIRST)),
    "Flatten": lambda: single(IMAGE, L.Flatten(**FIRST)),
    "softmax over the last axis": lambda: single(IMAGE, L.Conv2D(5, 3, **FIRST), L.Activation("softmax")),
    "CenterCrop": lambda: single(IMAGE, L.CenterCrop(5, 4, **FIRST)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_channels_first_layer_computes_what_keras_computes(name):
    model = CASES[name]()
    randomize(model)
    bridged = to_tf_keras(model, seed=1)
    # The same sums in another order.
    assert bridge_report(bridged).largest_relative_difference < 1e-5


def channels_first_student():
    inputs = keras.Input((3, 12, 10))
    x = L.Rescaling(1 / 255.0)(inputs)
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="stem", **FIRST)(x)
    x = skip = L.ReLU()(L.BatchNormalization(axis=1, name="stem_bn")(x))
    x = L.Activation("hard_silu")(L.DepthwiseConv2D(3, padding="same", **FIRST)(x))
    gate = L.GlobalAveragePooling2D(keepdims=True, **FIRST)(x)
    gate = L.Conv2D(8, 1, activation="hard_sigmoid", **FIRST)(gate)
    x = L.Add()([L.Multiply()([x, gate]), skip])
    x = L.MaxPooling2D(2, **FIRST)(L.Concatenate(axis=1)([x, skip]))
    return keras.Model(inputs, L.Dense(3, name="head")(L.Flatten(**FIRST)(x)))


def test_a_whole_network_is_transposed_once():
    model = channels_first_student()
    randomize(model)
    bridged = to_tf_keras(model)
    report = bridge_report(bridged)
    assert report.largest_relative_difference < 1e-5
    assert [layer.name for layer in bridged.layers if "channels_" in layer.name] == ["stem/channels_last"]
    # Nothing stands between the convolution and its BatchNormalization, so TF-MOT folds it.
    assert report.layer_names["stem_bn"] == ("stem_bn",)

    before = model.get_weights()
    bridged.set_weights([weight + 1.0 for weight in bridged.get_weights()])
    copy_weights_back(bridged, model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1.0, rtol=1e-5)


def test_its_file_takes_the_same_inputs_and_says_the_same():
    model = channels_first_student()
    x = np.random.default_rng(0).uniform(0, 255, size=(4, 3, 12, 10)).astype("float32")
    bridged = to_tf_keras(model)
    artifact = tflite_tools.convert(bridged)
    assert tflite_tools.inspect(artifact).ops["TRANSPOSE"] == 1
    np.testing.assert_allclose(tflite_tools.predict(artifact, x), bridged(x), rtol=1e-4, atol=1e-5)


def test_a_shared_channels_first_layer_stays_shared():
    inputs = keras.Input((4, 6, 6))
    shared = L.Conv2D(4, 3, padding="same", name="shared", **FIRST)
    model = keras.Model(inputs, shared(L.ReLU()(shared(inputs))))
    randomize(model)
    bridged = to_tf_keras(model)
    assert len(bridged.weights) == 2
    assert bridge_report(bridged).largest_relative_difference < 1e-5


def test_channels_first_recurrent_convolutions_are_refused_by_name():
    model = single((3, 2, 6, 5), L.ConvLSTM2D(2, 3, name="recurrent", **FIRST))
    with pytest.raises(
        UnsupportedLayerError, match=r"recurrent \(ConvLSTM2D\): data_format='channels_first'"
    ):
        to_tf_keras(model)


@pytest.mark.parametrize(
    "function", [lambda x: x + 3.0, lambda x: x * x, lambda x: x + np.array([1.0, -2.0, 0.5, 3.0], "float32")]
)
def test_operators_behind_a_1d_convolution(function):
    inputs = keras.Input((8, 3))
    model = keras.Model(inputs, L.Conv1D(2, 3)(function(L.Conv1D(4, 3)(inputs))))
    randomize(model)
    assert bridge_report(to_tf_keras(model)).largest_relative_difference < 1e-5
