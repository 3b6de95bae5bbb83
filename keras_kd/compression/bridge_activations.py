"""Activations: which stay inside their layer, and which become tf_keras layers of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_errors import NotBridgeable

# TFLite computes these in the operator before (relu) or in one operator of fixed output range; TF-MOT
# quantizes them as the `activation` of a layer.
FUSED = frozenset({"linear", "relu", "sigmoid", "softmax", "tanh"})

_L = tf_keras.layers


def _hard_sigmoid(name: str) -> list[Any]:
    # relu6(x + 3) / 6 as one layer stays float in the file; as ADD with fused relu6 and MUL it is integer.
    shift = ours.ConstantAdd(3.0, relu6=True, name=f"{name}_shift")
    return [shift, ours.ConstantMultiply(1.0 / 6.0, name=name)]


def _unary(function: str) -> Callable[[str], list[Any]]:
    return lambda name: [ours.Unary(function, name=name)]


# Klambauer et al. 2017, arXiv:1706.02515, section 2.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# Keras 3's name of an activation -> tf_keras layers that compute it, given the name of the last one.
ACTIVATIONS: dict[str, Callable[[str], list[Any]]] = {
    "linear": lambda name: [_L.Activation("linear", name=name)],
    "relu": lambda name: [_L.ReLU(name=name)],
    "relu6": lambda name: [_L.ReLU(max_value=6.0, name=name)],
    "sigmoid": lambda name: [_L.Activation("sigmoid", name=name)],
    "softmax": lambda name: [_L.Softmax(name=name)],
    "tanh": lambda name: [_L.Activation("tanh", name=name)],
    "silu": lambda name: [ours.Swish(name=name)],
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda name: [ours.HardSwish(name=name)],
    "gelu": lambda name: [ours.Gelu(name=name)],
    "elu": lambda name: [ours.Elu(name=name)],
    "leaky_relu": lambda name: [_L.LeakyReLU(alpha=0.2, name=name)],
    "exponential": _unary("exp"),
    "log_sigmoid": _unary("log_sigmoid"),
    "log_softmax": _unary("log_softmax"),
    "mish": _unary("mish"),
    "selu": lambda name: [ours.Elu(_SELU_ALPHA, _SELU_SCALE, name=name)],
    "softplus": _unary("softplus"),
    "softsign": _unary("softsign"),
}


def activation_name(activation: Any) -> str:
    """Keras 3's name of an activation function.

    Raises:
      NotBridgeable: it is none of Keras's own, or none that the bridge knows.
    """
    if activation is None:
        return "linear"
    if isinstance(activation, keras.layers.Layer):
        raise NotBridgeable(
            f"its activation is a layer ({type(activation).__name__}); call that layer after this one"
        )
    known = getattr(activation, "__name__", None)
    if known is None or keras.activations.get(activation) is not _builtin(known):
        raise NotBridgeable(f"its activation {activation!r} is not one of Keras's own")
    if known not in ACTIVATIONS:
        raise NotBridgeable(f"no rule for the activation {known!r}")
    return known


def _builtin(name: str) -> Any:
    try:
        return keras.activations.get(name)
    except ValueError:
        return None


def split_activation(activation: Any, name: str) -> tuple[str, list[Any]]:
    """The activation to leave inside a layer, and the layers to put behind it.

    Args:
      activation: the Keras 3 layer's `activation`.
      name: name of the layer that it belongs to.

    Returns:
      ("relu", []) where it can stay; ("linear", layers) where it becomes layers of its own.
    """
    kind = activation_name(activation)
    if kind in FUSED:
        return kind, []
    return "linear", ACTIVATIONS[kind](f"{name}/{kind}")
