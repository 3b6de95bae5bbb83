"""tf_keras models as students: rebuilt into what TF-MOT takes, computing the same."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from keras_kd.compression.bridge import bridge_report, to_tf_keras
from keras_kd.compression.bridge_errors import UnsupportedLayerError
from keras_kd.compression.bridge_layers import custom_objects
from keras_kd.compression.bridge_legacy import _FUNCTIONS

L = tf_keras.layers


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 1.2, w.shape).astype(w.dtype) for w in model.get_weights()])


def rebuilt(model):
    randomize(model)
    bridged = to_tf_keras(model, seed=1)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    return bridged


# TensorFlow function -> a graph that holds it.
FUNCTIONS = {
    "__operators__.add": lambda x: 3.0 + tf.nn.relu(x) + x,
    "concat": lambda x: tf.concat([x, x], axis=-1),
    "math.abs": lambda x: tf.abs(x),
    "math.add": lambda x: tf.add(x, 2.0),
    "math.exp": lambda x: tf.exp(x),
    "math.maximum": lambda x: tf.maximum(x, 0.1),
    "math.minimum": lambda x: tf.minimum(x, 0.1),
    "math.multiply": lambda x: 2.0 * x * tf.sigmoid(x),
    "math.negative": lambda x: -x,
    "math.reduce_max": lambda x: tf.reduce_max(x, axis=[1, 2]),
    "math.reduce_mean": lambda x: tf.reduce_mean(x, axis=[1, 2], keepdims=True),
    "math.reduce_min": lambda x: tf.reduce_min(x, axis=-1),
    "math.reduce_sum": lambda x: tf.reduce_sum(x, axis=1),
    "math.rsqrt": lambda x: tf.math.rsqrt(tf.exp(x)),
    "math.sigmoid": lambda x: tf.sigmoid(x),
    "math.sqrt": lambda x: tf.sqrt(tf.exp(x)),
    "math.square": lambda x: tf.square(x),
    "math.subtract": lambda x: 1.0 - (x - 0.5),
    "math.tanh": lambda x: tf.tanh(x),
    "nn.elu": lambda x: tf.nn.elu(x),
    "nn.relu": lambda x: tf.nn.relu(x),
    "nn.relu6": lambda x: tf.nn.relu6(9.0 * x),
    "nn.silu": lambda x: tf.nn.silu(x),
    "reshape": lambda x: tf.reshape(x, (-1, 12, 4)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensorflow_functions(name):
    inputs = tf_keras.Input((4, 4, 3))
    model = tf_keras.Model(inputs, FUNCTIONS[name](inputs))
    assert name in {layer.get_config().get("function") for layer in model.layers}
    bridged = rebuilt(model)
    assert not any("Lambda" in type(layer).__name__ for layer in bridged.layers)


def test_every_function_rule_is_tried():
    assert sorted(FUNCTIONS) == sorted(_FUNCTIONS)


def test_slices():
    inputs = tf_keras.Input((4, 6, 3))
    rebuilt(tf_keras.Model(inputs, [inputs[:, 1:, ::2], inputs[:, 0]]))


@pytest.mark.parametrize("kind", ["hard_sigmoid", "swish", "gelu", "softplus", "relu", "exponential"])
def test_activations_mean_what_they_mean_in_tf_keras(kind):
    rebuilt(tf_keras.Sequential([L.Conv2D(3, 2, activation=kind, input_shape=(4, 4, 2)), L.Activation(kind)]))


def test_layers_that_tfmot_would_refuse():
    inputs = tf_keras.Input((8, 8, 3))
    x = L.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    x = L.BatchNormalization(name="first")(x)
    x = L.SeparableConv2D(4, 3, name="separable")(x)
    x = L.BatchNormalization(name="second")(x)
    x = L.GlobalAveragePooling2D(keepdims=True)(x)
    model = tf_keras.Model(inputs, L.Dense(2)(x))
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if not isinstance(layer, L.Normalization):
            layer.set_weights([generator.uniform(0.2, 1.2, w.shape) for w in layer.get_weights()])
    bridged = to_tf_keras(model)
    report = bridge_report(bridged)
    assert report.largest_relative_difference < 1e-5
    assert report.layer_names["first"] == ("first/channels", "first")
    assert report.layer_names["second"] == ("second",)
    assert report.layer_names["separable"] == ("separable/depthwise", "separable")


def test_nested_and_shared_models():
    inner = tf_keras.Sequential(
        [L.Conv2D(3, 3, padding="same", input_shape=(8, 8, 3), name="conv")], name="inner"
    )
    ends = tf_keras.Input((8, 8, 3))
    block = tf_keras.Model(ends, [L.Conv2D(2, 1, name="side")(ends), ends], name="block")
    inputs = tf_keras.Input((8, 8, 3))
    first, again = block(inner(inputs))
    second, _ = block(inner(again))
    bridged = rebuilt(tf_keras.Model(inputs, {"first": first, "second": second}))
    assert set(bridge_report(bridged).layer_names) == {"inner/conv", "block/side"}
    assert len(bridged.weights) == 4


def test_the_model_itself_stays_as_it_is():
    model = tf_keras.Sequential([L.Dense(2, input_shape=(4,))])
    before = model.get_weights()
    bridged = to_tf_keras(model)
    bridged.set_weights([weight + 1 for weight in before])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_bridged_model_can_be_bridged_again():
    inputs = tf_keras.Input((8, 8, 3))
    once = rebuilt(tf_keras.Model(inputs, L.Conv2D(2, 3, activation="swish")(inputs * 2.0)))
    with tf_keras.utils.custom_object_scope(custom_objects()):
        rebuilt(once)


def test_what_cannot_be_rebuilt_is_named():
    inputs = tf_keras.Input((4,))
    x = L.Lambda(lambda v: v + 1, name="plus")(inputs)
    model = tf_keras.Model(inputs, tf.math.cumsum(x))
    with pytest.raises(UnsupportedLayerError) as raised:
        to_tf_keras(model)
    assert [path for path, _, _ in raised.value.layers] == ["plus", "tf.math.cumsum"]
    assert "cumsum" in str(raised.value)


LEGACY = (
    "mlperf_tiny/vww_96.h5",
    "mlperf_tiny/str_ww_ref_model.h5",
    "keras_legacy/mltk_keyword_spotting.h5",
    "keras_legacy/mltk_keyword_spotting_mobilenetv2.h5",
)


@pytest.mark.parametrize("name", LEGACY)
def test_files_that_only_tf_keras_can_load(shared_data, name):
    model = tf_keras.models.load_model(shared_data / name, compile=False)
    bridged = to_tf_keras(model)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    assert bridged.output_shape == model.output_shape
