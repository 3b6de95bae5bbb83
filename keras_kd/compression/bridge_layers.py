"""Small tf_keras layers that the bridge puts where tf_keras or TF-MOT has none of its own.

Each becomes one TFLite operator, so that a quantization-aware model can give every tensor of the file a range
of its own. How a layer wants to be quantized is said without TF-MOT: `quantization_of(layer)` answers for our
layers and for tf_keras's own with one of four words.

| answer   | meaning                                                                            |
|----------|------------------------------------------------------------------------------------|
| "tfmot"  | TF-MOT 0.8.1 knows the layer: leave it to its registry                             |
| "output" | integer inside; its output needs an 8-bit range of its own                         |
| "pass"   | hands on values in the scale that it got, or has a fixed output range (sigmoid)    |
| "island" | float inside in the .tflite; quantize the output, so that what follows is integer  |

Number of inputs: one, except `tf_keras`'s merging layers and `MatMul` (two).

| layer                     | computes                          | TFLite operator        | answer |
|---------------------------|-----------------------------------|------------------------|--------|
| `ConstantAdd`             | x + c, then relu6 where asked     | ADD (fused relu6)      | output |
| `ConstantMultiply`        | c * x                             | MUL                    | output |
| `ConstantMinus`           | c - x                             | SUB                    | output |
| `HardSwish`               | x * relu6(x + 3) / 6              | HARD_SWISH             | output |
| `Swish`                   | x * sigmoid(x)                    | LOGISTIC, MUL          | output |
| `Gelu`                    | Gaussian error linear unit        | GELU                   | output |
| `Clip`                    | min(max(x, low), high)            | MAXIMUM, MINIMUM       | output |
| `Unary`                   | exp, sqrt, abs ... by name        | EXP, SQRT, ABS ...     | output or island |
| `Reduce`                  | mean, sum, max, min over axes     | MEAN, SUM, REDUCE_MAX  | output or pass |
| `Cast`                    | another number type               | CAST                   | pass   |
| `Slice`                   | x[begin:end:step, ...]            | STRIDED_SLICE          | pass   |
| `Resize`                  | nearest or bilinear to a size     | RESIZE_*               | output |
| `Pad`                     | constant padding                  | PADV2                  | output |
| `FullReshape`             | a new shape, batch axis included  | RESHAPE                | pass   |
| `KerasOperation`          | any other `keras.ops` operation   | as Keras computes it   | island |
| `MatMul`                  | a @ b, transposed where asked     | BATCH_MATMUL           | output |

`Unary` is an island for functions without an 8-bit kernel; `Reduce` passes for the largest and the smallest.

Source of the idea: TF-MOT's "Quantization aware training comprehensive guide", section on custom layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras  # Keras 3 first: `tf.keras` resolves to it, not to tf_keras
import numpy as np
import tensorflow as tf
import tf_keras


class BridgeLayer(tf_keras.layers.Layer):
    """Base of our layers. `quantization` is the answer of `quantization_of`."""

    quantization: ClassVar[str] = "output"


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


# Functions of one tensor by the name that Keras 3 gives them.
UNARY_FUNCTIONS: dict[str, Any] = {
    "abs": tf.abs,
    "ceil": tf.math.ceil,
    "cos": tf.cos,
    "exp": tf.exp,
    "floor": tf.floor,
    "log": tf.math.log,
    "negative": tf.negative,
    "reciprocal": lambda x: 1.0 / x,
    "round": tf.round,
    "rsqrt": tf.math.rsqrt,
    "sin": tf.sin,
    "softplus": tf.math.softplus,
    "softsign": tf.math.softsign,
    "sqrt": tf.sqrt,
    "square": tf.square,
    "erf": tf.math.erf,
    "mish": lambda x: x * tf.tanh(tf.math.softplus(x)),
    "selu": tf.nn.selu,
    "log_softmax": tf.nn.log_softmax,
    "log_sigmoid": tf.math.log_sigmoid,
    "sign": tf.sign,
    "expm1": tf.math.expm1,
    "log1p": tf.math.log1p,
}
# Those for which TFLite has an 8-bit kernel of one operator; the others are computed in float.
_INTEGER_UNARY = frozenset({"abs", "exp", "rsqrt", "log_softmax", "square"})


class Unary(BridgeLayer):
    """One of `UNARY_FUNCTIONS`, by its name."""

    def __init__(self, function: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.function = function

    @property
    def quantization(self) -> str:  # type: ignore[override]
        """Depends on the function."""
        return "output" if self.function in _INTEGER_UNARY else "island"

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return UNARY_FUNCTIONS[self.function](inputs)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "function": self.function}


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

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return REDUCTIONS[self.function](inputs, axis=self.axis, keepdims=self.keepdims)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"function": self.function, "axis": self.axis, "keepdims": self.keepdims}
        return {**super().get_config(), **mine}


class Cast(BridgeLayer):
    """Another number type; integers from an image become floats here."""

    quantization = "pass"

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


class Pad(BridgeLayer):
    """Constant padding; `paddings` is one [before, after] per axis."""

    def __init__(self, paddings: Sequence[Sequence[int]], value: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.paddings, self.value = [list(pair) for pair in paddings], value

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """See the class."""
        return tf.pad(inputs, self.paddings, constant_values=self.value)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        return {**super().get_config(), "paddings": self.paddings, "value": self.value}


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


class KerasOperation(BridgeLayer):
    """A `keras.ops` operation for which the bridge has no layer of its own, run as Keras 3 runs it.

    Args:
      operation: the operation as `keras.saving.serialize_keras_object` writes it.
      args: its positional arguments; {"tensor": i} stands for the i-th input, the rest is serialized.
      kwargs: its keyword arguments likewise.
    """

    quantization = "island"

    def __init__(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], **more: Any):
        super().__init__(**more)
        self.operation = operation
        self.arguments, self.keywords = list(args), dict(kwargs)
        self._operation = keras.saving.deserialize_keras_object(operation)

    def call(self, inputs: Any) -> Any:
        """See the class."""
        tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        args = [_fill_tensors(item, tensors) for item in self.arguments]
        kwargs = {key: _fill_tensors(item, tensors) for key, item in self.keywords.items()}
        return self._operation.call(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"operation": self.operation, "args": list(self.arguments), "kwargs": dict(self.keywords)}
        return {**super().get_config(), **mine}


def _fill_tensors(item: Any, tensors: Sequence[tf.Tensor]) -> Any:
    if isinstance(item, dict) and set(item) == {"tensor"}:
        return tensors[item["tensor"]]
    if isinstance(item, dict) and "class_name" in item:
        return keras.saving.deserialize_keras_object(item)
    if isinstance(item, (list, tuple)):
        return [_fill_tensors(entry, tensors) for entry in item]
    return item


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


# tf_keras layers that TF-MOT 0.8.1 quantizes by itself (its default 8-bit registry; public documentation
# lists fewer). BatchNormalization only after a convolution or Dense, which is the only place where the bridge
# leaves one.
_TFMOT_KNOWS = frozenset(
    {
        "InputLayer",
        "ReLU",
        "Softmax",
        "LeakyReLU",
        "Conv2D",
        "DepthwiseConv2D",
        "Conv2DTranspose",
        "Concatenate",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "UpSampling2D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ActivityRegularization",
        "Dense",
        "Dropout",
        "Flatten",
        "Permute",
        "Reshape",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "AveragePooling1D",
        "AveragePooling2D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "MaxPooling2D",
        "Add",
        "Activation",
        "SeparableConv1D",
        "SeparableConv2D",
        "BatchNormalization",
    }
)
_PASS = frozenset(
    {"MaxPooling1D", "RepeatVector", "UpSampling1D", "GaussianNoise", "GaussianDropout", "AlphaDropout"}
)
_OUTPUT = frozenset({"Multiply", "Subtract", "Maximum", "Minimum", "Average", "ELU", "PReLU", "Dot"})


def quantization_of(layer: Any) -> str:
    """How a layer of a bridged model wants to be quantized: "tfmot", "output", "pass" or "island".

    The table at the top of this module says what each word means. A layer that is in no list computes in
    float, so it is an "island".
    """
    if isinstance(layer, BridgeLayer):
        return layer.quantization
    name = type(layer).__name__
    if type(layer).__module__.startswith("tf_keras."):
        for answer, names in (("tfmot", _TFMOT_KNOWS), ("output", _OUTPUT), ("pass", _PASS)):
            if name in names:
                return answer
    return "island"


def custom_objects() -> dict[str, type]:
    """Our layers by class name, for `tf_keras.models.load_model(..., custom_objects=...)` and scopes."""
    return {name: cls for name, cls in globals().items() if _is_ours(cls) and not name.startswith("_")}


def _is_ours(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BridgeLayer) and value is not BridgeLayer
