"""Rules for 1-D convolutions, as 2-D convolutions over one row.

TFLite has no 1-D convolution: the converter reshapes around a 2-D one anyway. TF-MOT prunes and quantizes 2-D
convolutions (one scale per channel, folded BatchNormalization) and knows no 1-D ones. Between two such layers
the rows are handed on as they are (`Call.rows`), so that no reshapes pile up and BatchNormalization and
activations stay right behind their convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression.bridge_activations import split_activation
from keras_kd.compression.bridge_build import Call, Chain
from keras_kd.compression.bridge_fields import common, fields, penalties
from keras_kd.compression.bridge_rules_conv import DEPTHWISE_PENALTIES, KERNEL_PENALTIES

_L = tf_keras.layers


def _add_row(kernel: np.ndarray) -> np.ndarray:
    return kernel[np.newaxis]


def _drop_row(kernel: np.ndarray) -> np.ndarray:
    return kernel[0]


def on_rows(make: Callable[[Any, str], Chain]) -> Callable[[Call], Any]:
    """A rule(call) that runs the chain of `make(layer, name)` on [batch, 1, length, channels].

    Kernels get an axis in front on their way into tf_keras; biases do not.
    """

    def rule(call: Call) -> Any:
        def build() -> Chain:
            chain = make(call.operation, call.name())
            kernels = [len(weight.shape) > 1 for weight in call.weights]
            return Chain(
                chain.layers,
                chain.weighted,
                forward=[_add_row if kernel else None for kernel in kernels],
                backward=[_drop_row if kernel else None for kernel in kernels],
            )

        chain = call.builder.remembered(call, build)
        return call.from_rows(call.chain(chain, call.rows(call.input)))

    return rule


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _causal(layer: Any, name: str) -> tuple[list[Any], str]:
    """What stands before the convolution and the padding left to it."""
    if layer.padding != "causal":
        return [], layer.padding
    missing = _one(layer.dilation_rate) * (_one(layer.kernel_size) - 1)
    return [_L.ZeroPadding2D(((0, 0), (missing, 0)), name=f"{name}/causal")], "valid"


def _window(layer: Any, padding: str, *, equal_strides: bool) -> dict[str, Any]:
    stride = _one(layer.strides)
    return {
        "kernel_size": (1, _one(layer.kernel_size)),
        # A row is one high, so a vertical stride changes nothing; depthwise kernels want both equal.
        "strides": (stride, stride) if equal_strides else (1, stride),
        "dilation_rate": (1, _one(layer.dilation_rate)),
        "padding": padding,
    }


def conv_1d(layer: Any, name: str) -> Chain:
    """Conv1D."""
    fused, behind = split_activation(layer.activation, name)
    before, padding = _causal(layer, name)
    made = _L.Conv2D(
        activation=fused,
        **fields(layer, "filters", "groups", "use_bias"),
        **_window(layer, padding, equal_strides=False),
        **penalties(layer, *KERNEL_PENALTIES),
        **common(layer, name),
    )
    return Chain([*before, made, *behind])


def conv_1d_transpose(layer: Any, name: str) -> Chain:
    """Conv1DTranspose."""
    fused, behind = split_activation(layer.activation, name)
    extra = _one(layer.output_padding)
    made = _L.Conv2DTranspose(
        activation=fused,
        output_padding=None if extra is None else (0, extra),
        **fields(layer, "filters", "use_bias"),
        **_window(layer, layer.padding, equal_strides=False),
        **penalties(layer, *KERNEL_PENALTIES),
        **common(layer, name),
    )
    return Chain([made, *behind])


def depthwise_1d(layer: Any, name: str) -> Chain:
    """DepthwiseConv1D."""
    fused, behind = split_activation(layer.activation, name)
    before, padding = _causal(layer, name)
    made = _L.DepthwiseConv2D(
        activation=fused,
        **fields(layer, "depth_multiplier", "use_bias"),
        **_window(layer, padding, equal_strides=True),
        **penalties(layer, *DEPTHWISE_PENALTIES),
        **common(layer, name),
    )
    return Chain([*before, made, *behind])


def separable_1d(layer: Any, name: str) -> Chain:
    """SeparableConv1D as its two operators; the pointwise convolution keeps the name."""
    fused, behind = split_activation(layer.activation, name)
    before, padding = _causal(layer, name)
    first = _L.DepthwiseConv2D(
        use_bias=False,
        **fields(layer, "depth_multiplier"),
        **_window(layer, padding, equal_strides=True),
        **penalties(layer, "depthwise_regularizer", "depthwise_constraint"),
        **common(layer, f"{name}/depthwise"),
    )
    second = _L.Conv2D(
        layer.filters,
        1,
        activation=fused,
        **fields(layer, "use_bias"),
        **penalties(layer, "bias_regularizer", "activity_regularizer", "bias_constraint"),
        kernel_regularizer=penalties(layer, "pointwise_regularizer").get("pointwise_regularizer"),
        kernel_constraint=penalties(layer, "pointwise_constraint").get("pointwise_constraint"),
        **common(layer, name),
    )
    return Chain([*before, first, second, *behind])
