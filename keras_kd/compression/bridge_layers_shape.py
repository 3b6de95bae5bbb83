"""Layers of ours that change shapes, number types or positions, and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from keras_kd.compression.bridge_layer_base import BridgeLayer

REDUCTIONS: dict[str, Any] = {
    "mean": tf.reduce_mean,
    "sum": tf.reduce_sum,
    "max": tf.reduce_max,
    "min": tf.reduce_min,
    "prod": tf.reduce_prod,
    "std": tf.math.reduce_std,
    "var": tf.math.reduce_variance,
}


class Reduce(BridgeLayer):
    """Mean, sum, max or min over axes."""

    def __init__(self, function: str, axis: Sequence[int], keepdims: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.function, self.axis, self.keepdims = function, list(axis), keepdims

    @property
    def quantization(self) -> str:  # type: ignore[override]
        """The largest and the smallest keep the scale of the input; variances need float."""
        if self.function in ("max", "min"):
            return "pass"
        return "output" if self.function in ("mean", "sum") else "island"

    @property
    def computes(self) -> str:
        """The function's name."""
        return self.function

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return REDUCTIONS[self.function](inputs, axis=self.axis, keepdims=self.keepdims)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"function": self.function, "axis": self.axis, "keepdims": self.keepdims}
        return {**super().get_config(), **mine}


class Cast(BridgeLayer):
    """Another number type; integers from an image become floats here."""

    quantization = "bare"

    def __init__(self, target: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.target = target

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.cast(inputs, self.target)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "target": self.target}


class Slice(BridgeLayer):
    """x[key]: per axis [begin, end, step] (each may be None), an integer, "newaxis" or "..."."""

    quantization = "pass"

    def __init__(self, key: Sequence[Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.key = list(key)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return inputs[tuple(_as_index(entry) for entry in self.key)]

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "key": self.key}


def _as_index(entry: Any) -> Any:
    if entry == "newaxis":
        return tf.newaxis
    if entry == "...":
        return Ellipsis
    return entry if isinstance(entry, int) else slice(*entry)


class Resize(BridgeLayer):
    """Resizes [batch, height, width, channels] with half-pixel centers, as Keras 3 does."""

    def __init__(self, height: int, width: int, interpolation: str = "bilinear", **kwargs: Any):
        super().__init__(**kwargs)
        self.height, self.width, self.interpolation = height, width, interpolation

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.cast(
            tf.image.resize(inputs, (self.height, self.width), method=self.interpolation), inputs.dtype
        )

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"height": self.height, "width": self.width, "interpolation": self.interpolation}
        return {**super().get_config(), **mine}


class FullReshape(BridgeLayer):
    """Reshapes the whole tensor, batch axis included."""

    quantization = "pass"

    def __init__(self, shape: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.shape = [int(length) for length in shape]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.reshape(inputs, self.shape)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "shape": self.shape}


class MatMul(BridgeLayer):
    """Matrix product of the last two axes of two tensors."""

    def __init__(self, transpose_a: bool = False, transpose_b: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.transpose_a, self.transpose_b = transpose_a, transpose_b

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """See the class."""
        first, second = inputs
        return tf.matmul(first, second, transpose_a=self.transpose_a, transpose_b=self.transpose_b)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"transpose_a": self.transpose_a, "transpose_b": self.transpose_b}
        return {**super().get_config(), **mine}


class AxisNormalization(tf_keras.layers.BatchNormalization, BridgeLayer):
    """BatchNormalization over another axis than the last; the bridge finds no kernel to fold it into."""

    quantization = "island"
