"""Layers of ours that treat every number alike: constants, activations, functions of one tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd.compression.bridge_layer_base import BridgeLayer


class _ConstantLayer(BridgeLayer):
    """Holds a constant that broadcasts against one example batch; kept as nested lists in the config."""

    def __init__(self, value: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.value = np.asarray(value, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": self.value.tolist()}


class ConstantAdd(_ConstantLayer):
    """x + value, followed by relu6 where asked: one ADD with a fused activation."""

    def __init__(self, value: Any, relu6: bool = False, **kwargs: Any):
        super().__init__(value, **kwargs)
        self.relu6 = relu6

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        outputs = inputs + tf.constant(self.value, inputs.dtype)
        return tf.nn.relu6(outputs) if self.relu6 else outputs

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "relu6": self.relu6}


class ConstantMultiply(_ConstantLayer):
    """Value times x."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return inputs * tf.constant(self.value, inputs.dtype)


class ConstantMinus(_ConstantLayer):
    """Value minus x."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.constant(self.value, inputs.dtype) - inputs


class HardSwish(BridgeLayer):
    """x * relu6(x + 3) / 6, which the converter recognizes as HARD_SWISH."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)


class Swish(BridgeLayer):
    """x * sigmoid(x); the sigmoid's range in the file is fixed, so one range for the output is enough."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return inputs * tf.sigmoid(inputs)


class Gelu(BridgeLayer):
    """Gaussian error linear unit, exact or in the tanh approximation."""

    def __init__(self, approximate: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.approximate = approximate

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.nn.gelu(inputs, approximate=self.approximate)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "approximate": self.approximate}


class Elu(BridgeLayer):
    """scale * (relu(x) + alpha * (exp(min(x, 0)) - 1)): elu and selu without TFLite's float-only ELU."""

    def __init__(self, alpha: float = 1.0, scale: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.alpha, self.scale = alpha, scale

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        below = (tf.exp(tf.minimum(inputs, 0.0)) - 1.0) * (self.alpha * self.scale)
        return tf.nn.relu(inputs) * self.scale + below

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale}


class Clip(BridgeLayer):
    """Limits values from below, from above or both: MAXIMUM, MINIMUM."""

    def __init__(self, low: float | None = None, high: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        outputs = inputs
        if self.low is not None:
            outputs = tf.maximum(outputs, tf.constant(self.low, inputs.dtype))
        if self.high is not None:
            outputs = tf.minimum(outputs, tf.constant(self.high, inputs.dtype))
        return outputs

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "low": self.low, "high": self.high}


@tf.custom_gradient
def _sqrt(x: tf.Tensor) -> Any:
    """The root, with a slope of 0 at 0 instead of infinity, which would turn every weight before it into NaN.

    Rounding to 8 bits puts many values at exactly 0, where a float model has few.
    """
    root = tf.sqrt(x)

    def slope(upstream: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(0.5 * upstream, root)

    return root, slope


# Functions of one tensor by the name that Keras 3 gives them.
UNARY_FUNCTIONS: dict[str, Any] = {
    "abs": tf.abs,
    "ceil": tf.math.ceil,
    "cos": tf.cos,
    "exp": tf.exp,
    "floor": tf.floor,
    "log": tf.math.log,
    "reciprocal": lambda x: 1.0 / x,
    "round": tf.round,
    "rsqrt": tf.math.rsqrt,
    "sin": tf.sin,
    "softplus": tf.math.softplus,
    "softsign": tf.math.softsign,
    "sqrt": _sqrt,
    "square": tf.square,
    "erf": tf.math.erf,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "log_softmax": tf.nn.log_softmax,
    "log_sigmoid": tf.math.log_sigmoid,
    "sign": tf.sign,
    "expm1": tf.math.expm1,
    "log1p": tf.math.log1p,
}
# Those whose operators the converter of TensorFlow 2.21 turns into integer ones; SQUARE and RSQRT, though TFLite
# has kernels for them, come out as float or as a file that does not run.
_INTEGER_UNARY = frozenset({"abs", "exp", "log_softmax", "softplus"})


class Unary(BridgeLayer):
    """One of `UNARY_FUNCTIONS`, by its name."""

    def __init__(self, function: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.function = function

    @property
    def quantization(self) -> str:  # type: ignore[override]
        """Depends on the function."""
        return "output" if self.function in _INTEGER_UNARY else "island"

    @property
    def computes(self) -> str:
        """The function's name."""
        return self.function

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return UNARY_FUNCTIONS[self.function](inputs)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "function": self.function}
