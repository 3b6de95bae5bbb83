"""Python operators and `keras.ops` in a graph, each against Keras 3 itself."""

import keras
import numpy as np
import pytest
import tf_keras
from keras import ops

from keras_kd.compression.bridge import bridge_report, to_tf_keras
from keras_kd.compression.bridge_layers import custom_objects, quantization_of
from keras_kd.compression.bridge_rules_ops import OPERATION_RULES

ROW = np.array([1.0, -2.0, 0.5], "float32")

# Rule -> functions of a [batch, 8, 6, 3] tensor; `test_every_operation_rule_is_tried` fails for a rule without one.
CASES = {
    "Absolute": [lambda x: abs(x), lambda x: ops.abs(x)],
    "Add": [lambda x: x + 3.0, lambda x: 3.0 + x, lambda x: x + ROW, lambda x: x + x, lambda x: x + 2 * x],
    "Amax": [lambda x: ops.amax(x, axis=-1)],
    "Amin": [lambda x: ops.amin(x, axis=1, keepdims=True)],
    "Cast": [lambda x: ops.cast(ops.cast(x * 10, "int32"), "float32")],
    "Ceil": [lambda x: ops.ceil(x)],
    "Clip": [lambda x: ops.clip(x, 0, 0.5), lambda x: ops.clip(x, -0.5, 0.5)],
    "Concatenate": [
        lambda x: ops.concatenate([x, 2 * x], axis=-1),
        lambda x: ops.concatenate([x, x], axis=1),
    ],
    "Cos": [lambda x: ops.cos(x)],
    "Divide": [lambda x: ops.divide(x, 4), lambda x: ops.divide(1.0, x + 9), lambda x: ops.divide(x, x + 9)],
    "Elu": [lambda x: ops.elu(x, alpha=0.5)],
    "Erf": [lambda x: ops.erf(x)],
    "Exp": [lambda x: ops.exp(x)],
    "ExpandDims": [lambda x: ops.expand_dims(x, 2), lambda x: ops.expand_dims(x, -1)],
    "Expm1": [lambda x: ops.expm1(x)],
    "Floor": [lambda x: ops.floor(x)],
    "Gelu": [lambda x: ops.gelu(x, approximate=False), lambda x: ops.gelu(x, approximate=True)],
    "GetItem": [
        lambda x: x[:, 1:-1, ::2],
        lambda x: x[:, 3],
        lambda x: x[..., -1],
        lambda x: x[:, None, ..., 0:2],
        lambda x: x[:, ::-1],
    ],
    "HardSigmoid": [lambda x: ops.hard_sigmoid(3 * x)],
    "HardSilu": [lambda x: ops.hard_silu(3 * x)],
    "LeakyRelu": [lambda x: ops.leaky_relu(x, negative_slope=0.1)],
    "Log": [lambda x: ops.log(x + 9)],
    "Log1p": [lambda x: ops.log1p(x + 9)],
    "LogSigmoid": [lambda x: ops.log_sigmoid(x)],
    "Matmul": [
        lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
        lambda x: x @ np.eye(3, dtype="float32"),
    ],
    "Max": [lambda x: ops.max(x, axis=(1, 2))],
    "Maximum": [lambda x: ops.maximum(x, 0.0), lambda x: ops.maximum(x, 0.3), lambda x: ops.maximum(-x, x)],
    "Mean": [
        lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
        lambda x: ops.mean(x, axis=[1, 2]),
        lambda x: ops.mean(x, axis=-1),
        lambda x: ops.mean(x, axis=1, keepdims=True) + x,
    ],
    "Min": [lambda x: ops.min(x, axis=2)],
    "Minimum": [lambda x: ops.minimum(x, 0.3), lambda x: ops.minimum(-x, x), lambda x: ops.minimum(x, ROW)],
    "Multiply": [lambda x: x * 2.0, lambda x: ops.multiply(ROW, x), lambda x: x * x, lambda x: x * (x + 1)],
    "Negative": [lambda x: -x],
    "Power": [lambda x: x**2, lambda x: (x + 9) ** 0.5, lambda x: (x + 9) ** 1.5],
    "Prod": [lambda x: ops.prod(x, axis=-1)],
    "Reciprocal": [lambda x: ops.reciprocal(x + 9)],
    "Relu": [lambda x: ops.relu(x)],
    "Relu6": [lambda x: ops.relu6(9 * x)],
    "Reshape": [
        lambda x: ops.reshape(x, (-1, 4, 12, 3)),
        lambda x: ops.reshape(x, (-1, 6, 3)),
    ],
    "Round": [lambda x: ops.round(x)],
    "Rsqrt": [lambda x: ops.rsqrt(x + 9)],
    "Selu": [lambda x: ops.selu(x)],
    "Sigmoid": [lambda x: ops.sigmoid(x)],
    "Sign": [lambda x: ops.sign(x)],
    "Silu": [lambda x: ops.silu(x)],
    "Sin": [lambda x: ops.sin(x)],
    "Softmax": [lambda x: ops.softmax(x), lambda x: ops.softmax(x, axis=1)],
    "Softplus": [lambda x: ops.softplus(x)],
    "Softsign": [lambda x: ops.softsign(x)],
    "Sqrt": [lambda x: ops.sqrt(x + 9)],
    "Square": [lambda x: ops.square(x)],
    "Squeeze": [lambda x: ops.squeeze(x[:, :1], 1)],
    "Std": [lambda x: ops.std(x, axis=(1, 2))],
    "Subtract": [lambda x: x - 1.5, lambda x: 1.0 - x, lambda x: x - 2 * x, lambda x: x - ROW],
    "Sum": [lambda x: ops.sum(x, axis=-1), lambda x: ops.sum(x, axis=(1, 2, 3))],
    "Tanh": [lambda x: ops.tanh(x)],
    "Transpose": [lambda x: ops.transpose(x, (0, 3, 1, 2))],
    "TrueDivide": [lambda x: x / 4.0, lambda x: x / ROW, lambda x: 1 / (x + 9)],
    "Var": [lambda x: ops.var(x, axis=1, keepdims=True)],
}

# No rule of their own: Keras's code runs inside a tf_keras layer.
OTHERS = {
    "flip": lambda x: ops.flip(x, axis=1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
    "stack": lambda x: ops.stack([x, -x], axis=1),
    "split": lambda x: ops.add(*ops.split(x, 2, axis=1)),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0))),
    "where": lambda x: ops.where(x > 0, x, 0.1 * x),
    "einsum": lambda x: ops.einsum("bhwc,bhwd->bcd", x, x),
    "argmax": lambda x: ops.argmax(x, axis=-1),
    "logsumexp": lambda x: ops.logsumexp(x, axis=-1),
    "max_pool": lambda x: ops.max_pool(x, 2),
    "resize": lambda x: ops.image.resize(x, (4, 4)),
    "normalize": lambda x: ops.normalize(x, axis=-1),
}


def graph_of(function):
    inputs = keras.Input((8, 6, 3))
    return keras.Model(inputs, function(inputs))


NUMBERED = [(kind, number) for kind, made in CASES.items() for number in range(len(made))]


@pytest.mark.parametrize(("kind", "number"), NUMBERED)
def test_operation_computes_what_keras_computes(kind, number):
    model = graph_of(CASES[kind][number])
    assert kind in {type(operation).__name__ for operation in model.operations}
    bridged = to_tf_keras(model, seed=1)
    # The same TensorFlow kernels, or the same sums in another order.
    assert bridge_report(bridged).largest_relative_difference < 1e-5


def test_every_operation_rule_is_tried():
    assert sorted(CASES) == sorted(OPERATION_RULES)


@pytest.mark.parametrize("name", OTHERS)
def test_operations_without_a_rule_run_as_keras_runs_them(name):
    bridged = to_tf_keras(graph_of(OTHERS[name]), seed=1)
    assert bridge_report(bridged).largest_relative_difference < 1e-5


@pytest.mark.parametrize("name", ["where", "split", "einsum"])
def test_they_survive_cloning_by_configuration(name):
    bridged = to_tf_keras(graph_of(OTHERS[name]))
    with tf_keras.utils.custom_object_scope(custom_objects()):
        copy = tf_keras.Model.from_config(bridged.get_config())
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype("float32")
    np.testing.assert_array_equal(copy(x), bridged(x))


def test_layers_say_how_they_want_to_be_quantized():
    def graph(x):
        x = ops.hard_silu(x + 1.0)
        gate = ops.sigmoid(ops.mean(x, axis=(1, 2), keepdims=True))
        return ops.flip(x * gate, axis=1)[:, 1:]

    answers = {
        layer.name.split("/")[0]: quantization_of(layer) for layer in to_tf_keras(graph_of(graph)).layers[1:]
    }
    kinds = {name.rstrip("_0123456789"): answer for name, answer in answers.items()}
    assert kinds == {
        "add": "output",
        "hard_silu": "output",
        "mean": "tfmot",
        "sigmoid": "tfmot",
        "multiply": "output",
        "flip": "island",
        "get_item": "pass",
    }
