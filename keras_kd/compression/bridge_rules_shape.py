"""Rules for layers without weights: activations, pooling, shape, padding, merging, regularization."""

from __future__ import annotations

from typing import Any

import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_activations import ACTIVATIONS, activation_name
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_fields import common, fields, penalties
from keras_kd.compression.bridge_rules_keep import keep_in_keras

_L = tf_keras.layers


def activation(layer: Any, name: str) -> list[Any]:
    """Activation("..."), by the name of its function."""
    return ACTIVATIONS[activation_name(layer.activation)](name)


def relu(layer: Any, name: str) -> Any:
    """ReLU with its limits."""
    config = fields(layer, "max_value", "negative_slope", "threshold")
    return _L.ReLU(**config, **common(layer, name))


def elu(layer: Any, name: str) -> Any:
    """ELU."""
    return ours.Elu(float(layer.alpha), **common(layer, name))


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


def prelu(layer: Any, name: str) -> Any:
    """PReLU."""
    return _L.PReLU(
        shared_axes=layer.get_config()["shared_axes"],
        **penalties(layer, "alpha_regularizer", "alpha_constraint"),
        **common(layer, name),
    )


def up_sampling(layer: Any, name: str) -> Any:
    """UpSampling2D by repetition or bilinear."""
    if layer.interpolation not in ("nearest", "bilinear"):
        raise NotBridgeable(f"interpolation {layer.interpolation!r}; TFLite resizes nearest or bilinear")
    return _L.UpSampling2D(**fields(layer, "size", "data_format", "interpolation"), **common(layer, name))


def resizing(call: Call) -> Any:
    """Resizing to a fixed size; what TFLite has no operator for runs as Keras 3 runs it."""
    config = call.operation.get_config()
    plain = config["interpolation"] in ("nearest", "bilinear") and not any(
        config.get(name) for name in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    )
    # Keras rounds the result for integer pixels.
    if not plain or len(call.input.shape) != 4 or not call.input.dtype.is_floating:
        return keep_in_keras(call)
    resize = ours.Resize(config["height"], config["width"], config["interpolation"], name=call.name())
    return call.run(resize, call.input)


def pooling_3d(call: Call) -> Any:
    """MaxPooling3D and AveragePooling3D as two 2-D poolings, over each plane and then over the depth.

    TFLite has no 3-D pooling. Windows are products of their sides, so maximum and mean come out the same.
    """
    layer, value = call.operation, call.input
    depth, height, width, channels = value.shape[1:]
    if None in (depth, height, width, channels):
        raise NotBridgeable(
            "its input has an open size; TFLite has no 3-D pooling, and two 2-D ones need fixed sizes"
        )
    kind = getattr(_L, type(layer).__name__.replace("3D", "2D"))
    (deep, *window), (step, *steps) = layer.pool_size, layer.strides
    value = call.run(ours.FullReshape([-1, height, width, channels], name=call.name("planes")), value)
    value = call.run(kind(window, steps, layer.padding, name=call.name("in_planes")), value)
    high, wide = value.shape[1:3]
    value = call.run(ours.FullReshape([-1, depth, high * wide, channels], name=call.name("columns")), value)
    value = call.run(kind((deep, 1), (step, 1), layer.padding, name=call.name("in_depth")), value)
    back = ours.FullReshape([-1, value.shape[1], high, wide, channels], name=call.name())
    return call.run(back, value)


def larger(call: Call) -> Any:
    """Maximum of tensors."""
    return fold_extremes(call, list(call.input), "Add")


def smaller(call: Call) -> Any:
    """Minimum of tensors."""
    return fold_extremes(call, list(call.input), "Subtract")


def fold_extremes(call: Call, tensors: list[Any], last: str) -> Any:
    """max(a, b) as a + relu(b - a), min(a, b) as a - relu(a - b).

    TFLite's MAXIMUM wants one scale for both operands and the result, which two trained ranges never are;
    TensorFlow 2.21 ends the conversion over it.
    """
    value = tensors[0]
    for number, other in enumerate(tensors[1:], 1):
        pair = [other, value] if last == "Add" else [value, other]
        gap = call.run(_L.Subtract(name=call.name("gap")), pair)
        gap = call.run(_L.ReLU(name=call.name("relu")), gap)
        name = call.name() if number == len(tensors) - 1 else call.name("part")
        value = call.run(getattr(_L, last)(name=name), [value, gap])
    return value
