"""Rules for layers with kernels: Dense and the convolutions."""

from __future__ import annotations

from typing import Any

import tf_keras

from keras_kd.compression.bridge_activations import split_activation
from keras_kd.compression.bridge_build import Chain
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_fields import common, fields, penalties

_L = tf_keras.layers
KERNEL_PENALTIES = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)
DEPTHWISE_PENALTIES = (
    "depthwise_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "depthwise_constraint",
    "bias_constraint",
)
_WINDOW = ("kernel_size", "strides", "padding", "data_format", "dilation_rate")


def dense(layer: Any, name: str) -> list[Any]:
    """Dense, with an activation that TFLite cannot fuse as a layer behind it."""
    if getattr(layer, "lora_enabled", False):
        raise NotBridgeable("LoRA is enabled; merge it first")
    fused, behind = split_activation(layer.activation, name)
    made = _L.Dense(
        layer.units,
        activation=fused,
        use_bias=layer.use_bias,
        **penalties(layer, *KERNEL_PENALTIES),
        **common(layer, name),
    )
    return [made, *behind]


def convolution(layer: Any, name: str) -> list[Any]:
    """Conv1D, Conv2D, Conv3D."""
    fused, behind = split_activation(layer.activation, name)
    made = getattr(_L, type(layer).__name__)(
        activation=fused,
        **fields(layer, "filters", "groups", "use_bias", *_WINDOW),
        **penalties(layer, *KERNEL_PENALTIES),
        **common(layer, name),
    )
    return [made, *behind]


def transposed_convolution(layer: Any, name: str) -> list[Any]:
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose."""
    fused, behind = split_activation(layer.activation, name)
    made = getattr(_L, type(layer).__name__)(
        activation=fused,
        **fields(layer, "filters", "use_bias", "output_padding", *_WINDOW),
        **penalties(layer, *KERNEL_PENALTIES),
        **common(layer, name),
    )
    return [made, *behind]


def depthwise(layer: Any, name: str) -> list[Any]:
    """DepthwiseConv1D, DepthwiseConv2D."""
    fused, behind = split_activation(layer.activation, name)
    made = getattr(_L, type(layer).__name__)(
        activation=fused,
        **fields(layer, "depth_multiplier", "use_bias", *_WINDOW),
        **penalties(layer, *DEPTHWISE_PENALTIES),
        **common(layer, name),
    )
    return [made, *behind]


def separable_2d(layer: Any, name: str) -> Chain:
    """SeparableConv2D as its two operators; the pointwise convolution keeps the name."""
    fused, behind = split_activation(layer.activation, name)
    first = _L.DepthwiseConv2D(
        use_bias=False,
        **fields(layer, "depth_multiplier", *_WINDOW),
        **penalties(layer, "depthwise_regularizer", "depthwise_constraint"),
        **common(layer, f"{name}/depthwise"),
    )
    renamed = {
        "kernel_regularizer": penalties(layer, "pointwise_regularizer").get("pointwise_regularizer"),
        "kernel_constraint": penalties(layer, "pointwise_constraint").get("pointwise_constraint"),
    }
    second = _L.Conv2D(
        layer.filters,
        1,
        activation=fused,
        **fields(layer, "use_bias", "data_format"),
        **renamed,
        **penalties(layer, "bias_regularizer", "activity_regularizer", "bias_constraint"),
        **common(layer, name),
    )
    return Chain([first, second, *behind])
