"""What the bridge's layers become in the file: integer operators, the ones that were meant."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import keras_kd
import tflite_tools


def image_model():
    inputs = keras.Input((8, 8, 3))
    x = L.Rescaling([1.0, 0.5, 2.0], offset=0.1)(inputs)
    x = ops.hard_silu(L.Conv2D(4, 3, padding="same")(x) + 1.0)
    gate = L.Conv2D(4, 1, activation="hard_sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.BatchNormalization()(x * gate)
    x = L.Conv2D(4, 1, activation="gelu")(1.0 - 2.0 * x)
    x = ops.maximum(x, L.Conv2D(4, 1, activation="elu")(x))
    x = L.Resizing(4, 4, interpolation="nearest")(ops.clip(x, -1.0, 1.0))
    return keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))


def sequence_model():
    inputs = keras.Input((12, 6))
    x = L.Conv1D(8, 3, padding="causal")(inputs)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)])
    return keras.Model(inputs, L.Dense(3)(L.LSTM(5)(x)))


# Operators that must be there, and how many.
EXPECTED = {
    "image": (
        image_model,
        # The rescaling per channel and the BatchNormalization that follows no convolution: one each.
        {"HARD_SWISH": 1, "GELU": 1, "DEPTHWISE_CONV_2D": 2, "CONV_2D": 4, "RESIZE_NEAREST_NEIGHBOR": 1},
    ),
    "sequence": (
        sequence_model,
        # Query, key, value and output of the attention, and the head; BatchNormalization and ReLU are folded.
        {
            "UNIDIRECTIONAL_SEQUENCE_LSTM": 1,
            "FULLY_CONNECTED": 5,
            "BATCH_MATMUL": 2,
            "SOFTMAX": 1,
            "CONV_2D": 1,
        },
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_operator_is_an_integer_one(name):
    keras.utils.set_random_seed(0)
    build, expected = EXPECTED[name]
    model = build()
    x = np.random.default_rng(0).normal(size=(32, *model.input_shape[1:])).astype("float32")
    compressed = keras_kd.compress(
        model,
        "int8_qat",
        x,
        np.zeros((32, 3), "float32"),
        loss="mse",
        optimizer=keras.optimizers.SGD(1e-5),
        epochs=2,
        batch_size=8,
        verbose=0,
    )
    artifact = compressed.to_tflite()
    found = tflite_tools.inspect(artifact)
    assert {operator: found.ops.get(operator, 0) for operator in expected} == expected
    # No tensor that an operator computes with is float. An LSTM's "intermediates" carry a type and no values.
    floats = {
        operator.name
        for operator in found.operators
        if operator.name != "UNIDIRECTIONAL_SEQUENCE_LSTM"
        for number in (*operator.inputs, *operator.outputs)
        if number >= 0 and "FLOAT" in found.tensors[number].dtype.upper()
    }
    assert not floats
    # A dozen layers of 8 bits in a row, differently rounded by Keras and the file, leave about 20 dB of these
    # untrained networks' outputs; a tensor of the wrong scale leaves none.
    assert tflite_tools.compare(compressed.model, artifact, x).sqnr_db > 15
