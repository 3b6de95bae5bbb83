"""Rules for layers without weights: activations, pooling, shape, padding, merging, regularization."""

from __future__ import annotations

from typing import Any

import tf_keras

from keras_kd.compression.bridge_activations import ACTIVATIONS, activation_name
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_fields import common, fields

_L = tf_keras.layers


def activation(layer: Any, name: str) -> list[Any]:
    """Activation("..."), by the name of its function."""
    return ACTIVATIONS[activation_name(layer.activation)](name)


def relu(layer: Any, name: str) -> Any:
    """ReLU with its limits."""
    config = fields(layer, "max_value", "negative_slope", "threshold")
    return _L.ReLU(**config, **common(layer, name))


def leaky_relu(layer: Any, name: str) -> Any:
    """LeakyReLU."""
    return _L.LeakyReLU(alpha=float(layer.negative_slope), **common(layer, name))


def same(*names: str) -> Any:
    """A rule for a layer that tf_keras has under the same name, taking the named fields."""

    def rule(layer: Any, name: str) -> Any:
        return getattr(_L, type(layer).__name__)(**fields(layer, *names), **common(layer, name))

    return rule


def merge(call: Call) -> Any:
    """Add, Multiply, Concatenate and the other layers that take a list of tensors."""
    kind = type(call.operation).__name__
    config = fields(call.operation, "axis", "axes", "normalize")
    return call.run(getattr(_L, kind)(name=call.name(), **config), list(call.input))


def reshape(layer: Any, name: str) -> Any:
    """Reshape."""
    return _L.Reshape(tuple(layer.target_shape), **common(layer, name))


def dropout(layer: Any, name: str) -> Any:
    """Dropout and its relatives; nothing is left of them in the file."""
    config = layer.get_config()
    kind = getattr(_L, type(layer).__name__)
    rate = config["stddev"] if "stddev" in config else config["rate"]
    extra = {"noise_shape": config["noise_shape"]} if config.get("noise_shape") else {}
    return kind(rate, seed=config.get("seed"), **extra, **common(layer, name))


def identity(layer: Any, name: str) -> Any:
    """Identity."""
    return _L.Activation("linear", name=name)
