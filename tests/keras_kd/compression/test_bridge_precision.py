"""Students of lower precision: rebuilt in float32, and compared there."""

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers as L
from keras import ops

from keras_kd.compression.bridge import bridge_report, copy_weights_back, to_tf_keras
from keras_kd.compression.bridge_errors import BridgeParityError, UnsupportedLayerError

POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"]


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 1.2, w.shape) for w in model.get_weights()])


def student(policy):
    """A nested model, layers that stay Keras inside, attention, recurrence, and a head in float32."""
    block = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            L.Conv2D(4, 3, dtype=policy, name="conv"),
            L.BatchNormalization(dtype=policy),
            L.ReLU(dtype=policy),
        ],
        name="block",
    )
    inputs = keras.Input((8, 8, 4))
    x = block(L.Rescaling(0.5, 0.1, dtype=policy)(inputs))
    x = L.GroupNormalization(2, dtype=policy)(x)
    pooled = ops.cast(ops.mean(x, axis=(1, 2)), "float32") * 2.0
    steps = L.Reshape((36, 4), dtype=policy)(x)
    attended = L.MultiHeadAttention(2, 4, dtype=policy)(steps, steps)
    # Keras makes no orthogonal matrix in bfloat16.
    read = L.LSTM(3, recurrent_initializer="glorot_uniform", dtype=policy)(attended)
    both = L.Concatenate(dtype="float32")([pooled, read])
    return keras.Model(inputs, L.Dense(3, activation="softmax", dtype="float32", name="head")(both))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_student_of_lower_precision_becomes_a_float32_one(policy):
    model = student(policy)
    randomize(model)
    assert model.get_layer("block").get_layer("conv").compute_dtype in ("float16", "bfloat16")
    bridged = to_tf_keras(model, seed=1)
    # The tolerance of float32: in 16 bits alone the two would differ by a thousandth.
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    assert {weight.dtype.name for weight in bridged.trainable_weights} == {"float32"}

    wanted = [weight.astype("float32") * 2 for weight in model.get_weights()]
    for link, value in zip(bridged.weights, bridged.get_weights(), strict=True):
        link.assign(2 * value)
    copy_weights_back(bridged, model)
    for old, new in zip(wanted, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new.astype("float32"), old)


def test_a_wrong_rule_is_caught_in_lower_precision_too():
    class Doubler(L.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, dtype="mixed_float16"), Doubler(name="double"), L.Dense(2)]
    )
    rules = {Doubler: lambda layer, name: tf_keras.layers.Rescaling(2.001, name=name)}
    with pytest.raises(BridgeParityError, match="first layer that differs is 'double'"):
        to_tf_keras(model, rules=rules)


def test_a_layer_that_cannot_be_made_again_is_said_to_be_the_reason():
    class NoConfig(L.Layer):
        def __init__(self, function):
            super().__init__(name="function")
            self.function = function

        def call(self, x):
            return self.function(x)

    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(4, dtype="mixed_float16"), NoConfig(lambda x: 2 * x)]
    )
    rules = {NoConfig: lambda layer, name: tf_keras.layers.Rescaling(2.0, name=name)}
    with pytest.raises(ValueError, match=r"lower precision.*check=False"):
        to_tf_keras(model, rules=rules)
    assert bridge_report(to_tf_keras(model, rules=rules, check=False)).largest_relative_difference is None


def test_a_legacy_model_under_a_mixed_policy():
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, activation="swish", dtype="mixed_float16"),
            layers.BatchNormalization(dtype="mixed_float16"),
            layers.Flatten(dtype="mixed_float16"),
            layers.Dense(3, dtype="float32"),
        ]
    )
    randomize(model)
    bridged = to_tf_keras(model, seed=1)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    assert all(layer.compute_dtype == "float32" for layer in bridged.layers)


def test_a_model_that_keras_has_quantized_is_refused_by_name():
    model = keras.Sequential([keras.Input((8,)), L.Dense(8, name="first"), L.Dense(3, name="second")])
    model.quantize("int8")
    with pytest.raises(UnsupportedLayerError, match=r"first \(Dense\): Keras has quantized it \(int8\)"):
        to_tf_keras(model)
