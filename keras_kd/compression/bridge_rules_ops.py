"""Rules for `keras.ops` and Python operators in a graph: `x + 3.0`, `x * y`, `ops.mean(x, axis=1)`, `x[:, ::2]`.

An operation without a rule here still crosses the bridge: Keras 3's own code runs inside a tf_keras layer, and
that layer computes in float in the `.tflite` (an island, which the report names).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_activations import ACTIVATIONS
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_layout import is_tensor
from keras_kd.compression.bridge_rules_shape import fold_extremes

_L = tf_keras.layers


def _two(call: Call) -> tuple[Any, Any]:
    """Both operands; those that are no tensors become float arrays."""
    first, second = [*call.args, *call.kwargs.values()][:2]
    return tuple(item if is_tensor(item) else np.asarray(item, "float32") for item in (first, second))  # type: ignore[return-value]


def _tensor_and_constant(first: Any, second: Any) -> tuple[Any, Any]:
    return (first, second) if is_tensor(first) else (second, first)


def add(call: Call) -> Any:
    """X + y, x + 3.0, 3.0 + x."""
    first, second = _two(call)
    if is_tensor(first) and is_tensor(second):
        if first is second:
            return call.run(ours.ConstantMultiply(2.0, name=call.name()), first)
        return call.run(_L.Add(name=call.name()), [first, second])
    tensor, constant = _tensor_and_constant(first, second)
    return call.run(ours.ConstantAdd(constant, name=call.name()), tensor)


def subtract(call: Call) -> Any:
    """X - y, x - 3.0, 3.0 - x."""
    first, second = _two(call)
    if is_tensor(first) and is_tensor(second):
        return call.run(_L.Subtract(name=call.name()), [first, second])
    if is_tensor(first):
        return call.run(ours.ConstantAdd(-second, name=call.name()), first)
    return call.run(ours.ConstantMinus(first, name=call.name()), second)


def multiply(call: Call) -> Any:
    """X * y, x * 3.0, 3.0 * x."""
    first, second = _two(call)
    if is_tensor(first) and is_tensor(second):
        if first is second:
            return call.run(ours.Unary("square", name=call.name()), first)
        return call.run(_L.Multiply(name=call.name()), [first, second])
    tensor, constant = _tensor_and_constant(first, second)
    return call.run(ours.ConstantMultiply(constant, name=call.name()), tensor)


def negative(call: Call) -> Any:
    """-x as a product: TFLite's NEG has no integer form."""
    return call.run(ours.ConstantMultiply(-1.0, name=call.name()), call.input)


def divide(call: Call) -> Any:
    """X / 3.0 as a product; anything else as Keras computes it."""
    first, second = _two(call)
    if is_tensor(first) and not is_tensor(second):
        return call.run(ours.ConstantMultiply(1.0 / second, name=call.name()), first)
    return as_keras_runs_it(call)


def maximum(call: Call) -> Any:
    """The larger of two tensors, or of a tensor and a number."""
    return _limit(call, "Add", "low")


def minimum(call: Call) -> Any:
    """The smaller of two tensors, or of a tensor and a number."""
    return _limit(call, "Subtract", "high")


def _limit(call: Call, last: str, side: str) -> Any:
    first, second = _two(call)
    if is_tensor(first) and is_tensor(second):
        return fold_extremes(call, [first, second], last)
    tensor, constant = _tensor_and_constant(first, second)
    if constant.size != 1:
        return as_keras_runs_it(call)
    limit = float(constant.reshape(()))
    if side == "low" and limit == 0.0:
        return call.run(_L.ReLU(name=call.name()), tensor)
    return call.run(ours.Clip(**{side: limit}, name=call.name()), tensor)


def clip(call: Call) -> Any:
    """Clip with two numbers; 0 and 6 make a relu6."""
    low, high = float(call.operation.x_min), float(call.operation.x_max)
    if low == 0.0:
        return call.run(_L.ReLU(max_value=high, name=call.name()), call.input)
    return call.run(ours.Clip(low, high, name=call.name()), call.input)


def power(call: Call) -> Any:
    """Squares and square roots; other powers as Keras computes them."""
    first, second = _two(call)
    names = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if is_tensor(first) and not is_tensor(second) and second.size == 1:
        function = names.get(float(second.reshape(())))
        if function is not None:
            return call.run(ours.Unary(function, name=call.name()), first)
    return as_keras_runs_it(call)


def unary(function: str) -> Callable[[Call], Any]:
    """A rule for an operation of one tensor."""
    return lambda call: call.run(ours.Unary(function, name=call.name()), call.input)


def activation(kind: str) -> Callable[[Call], Any]:
    """A rule for an activation function without settings."""

    def rule(call: Call) -> Any:
        value = call.input
        for layer in ACTIVATIONS[kind](call.name()):
            value = call.run(layer, value)
        return value

    return rule


def leaky_relu(call: Call) -> Any:
    """leaky_relu with its slope."""
    slope = float(call.operation.negative_slope)
    return call.run(_L.LeakyReLU(alpha=slope, name=call.name()), call.input)


def elu(call: Call) -> Any:
    """Elu with its alpha."""
    return call.run(ours.Elu(float(call.operation.alpha), name=call.name()), call.input)


def gelu(call: Call) -> Any:
    """Gelu, exact or approximate."""
    return call.run(ours.Gelu(bool(call.operation.approximate), name=call.name()), call.input)


def softmax(call: Call) -> Any:
    """Softmax over one axis."""
    axis = call.operation.axis
    if axis is None:
        return as_keras_runs_it(call)
    return call.run(_L.Softmax(axis=axis, name=call.name()), call.input)


def reduction(function: str) -> Callable[[Call], Any]:
    """A rule for mean, sum, max ... over axes that leave the batch alone."""

    def rule(call: Call) -> Any:
        axis = call.operation.axis
        rank = len(call.input.shape)
        axes = list(range(rank)) if axis is None else [axis] if isinstance(axis, int) else list(axis)
        axes = sorted(index % rank for index in axes)
        if getattr(call.operation, "initial", None) is not None or 0 in axes:
            return as_keras_runs_it(call)
        keepdims = bool(call.operation.keepdims)
        if function == "mean" and axes == [1, 2] and rank == 4:
            return call.run(_L.GlobalAveragePooling2D(keepdims=keepdims, name=call.name()), call.input)
        return call.run(ours.Reduce(function, axes, keepdims, name=call.name()), call.input)

    return rule


def get_item(call: Call) -> Any:
    """x[...] with slices and integers."""
    value, key = [*call.args, *call.kwargs.values()][:2]
    entries: list[Any] = []
    for item in key if isinstance(key, (list, tuple)) else [key]:
        if item is None:
            entries.append("newaxis")
        elif item is Ellipsis:
            entries.append("...")
        elif isinstance(item, slice):
            entries.append([item.start, item.stop, item.step])
        elif isinstance(item, (int, np.integer)):
            entries.append(int(item))
        else:
            return as_keras_runs_it(call)
    return call.run(ours.Slice(entries, name=call.name()), value)


def reshape(call: Call) -> Any:
    """Reshape; the batch axis may be named -1 or left as it is."""
    value = call.input
    shape = [-1 if length is None else int(length) for length in call.operation.newshape]
    known = value.shape[1:].as_list() if hasattr(value.shape, "as_list") else list(value.shape[1:])
    keeps_batch = shape[0] == -1 and None not in known and -1 not in shape[1:]
    if keeps_batch and int(np.prod(known)) == int(np.prod(shape[1:])):
        return call.run(_L.Reshape(shape[1:], name=call.name()), value)
    return call.run(ours.FullReshape(shape, name=call.name()), value)


def transpose(call: Call) -> Any:
    """Transpose of all axes but the batch axis."""
    rank = len(call.input.shape)
    axes = [axis % rank for axis in call.operation.axes or reversed(range(rank))]
    if axes[0] != 0:
        return as_keras_runs_it(call)
    return call.run(_L.Permute(axes[1:], name=call.name()), call.input)


def add_or_drop_axes(call: Call) -> Any:
    """expand_dims and squeeze as a reshape, where all lengths but the batch's are known."""
    value = call.input
    symbolic = keras.KerasTensor(tuple(value.shape), "float32")
    shape = tuple(call.operation.compute_output_spec(symbolic).shape)
    if shape[0] != value.shape[0] or None in shape[1:] or len(shape) < 2:
        return as_keras_runs_it(call)
    return call.run(_L.Reshape(shape[1:], name=call.name()), value)


def concatenate(call: Call) -> Any:
    """Concatenate of tensors."""
    tensors = list(call.input)
    if not all(is_tensor(item) for item in tensors) or call.operation.axis == 0:
        return as_keras_runs_it(call)
    return call.run(_L.Concatenate(axis=call.operation.axis, name=call.name()), tensors)


def matmul(call: Call) -> Any:
    """Matrix product of two tensors."""
    first, second = [*call.args, *call.kwargs.values()][:2]
    if not (is_tensor(first) and is_tensor(second)):
        return as_keras_runs_it(call)
    return call.run(ours.MatMul(name=call.name()), [first, second])


def cast(call: Call) -> Any:
    """Cast to another number type; between two float types there is nothing to do, all of them are float32 here."""
    if call.input.dtype.is_floating and tf.as_dtype(str(call.operation.dtype)).is_floating:
        return call.run(_L.Activation("linear", name=call.name()), call.input)
    return call.run(ours.Cast(str(call.operation.dtype), name=call.name()), call.input)


def as_keras_runs_it(call: Call) -> Any:
    """Any operation, by Keras 3's own code inside a tf_keras layer; float in the file.

    Raises:
      NotBridgeable: an argument cannot be written down.
    """
    tensors: list[Any] = []

    def mark(item: Any) -> Any:
        if is_tensor(item):
            tensors.append(item)
            return {"tensor": len(tensors) - 1}
        if isinstance(item, (list, tuple)):
            return [mark(entry) for entry in item]
        try:
            return keras.saving.serialize_keras_object(item)
        except (TypeError, ValueError) as error:
            raise NotBridgeable(f"its argument {item!r} cannot be saved: {error}") from error

    args = [mark(item) for item in call.args]
    kwargs = {key: mark(item) for key, item in call.kwargs.items()}
    if not tensors:
        raise NotBridgeable("it has no tensor among its arguments")
    layer = ours.KerasOperation(
        keras.saving.serialize_keras_object(call.operation), args, kwargs, name=call.name()
    )
    return call.run(layer, tensors if len(tensors) > 1 else tensors[0])


# Class name of a `keras.ops` operation -> rule(call).
OPERATION_RULES: dict[str, Callable[[Call], Any]] = {
    "Absolute": unary("abs"),
    "Add": add,
    "Amax": reduction("max"),
    "Amin": reduction("min"),
    "Cast": cast,
    "Ceil": unary("ceil"),
    "Clip": clip,
    "Concatenate": concatenate,
    "Cos": unary("cos"),
    "Divide": divide,
    "Elu": elu,
    "Erf": unary("erf"),
    "Exp": unary("exp"),
    "ExpandDims": add_or_drop_axes,
    "Expm1": unary("expm1"),
    "Floor": unary("floor"),
    "Gelu": gelu,
    "GetItem": get_item,
    "HardSigmoid": activation("hard_sigmoid"),
    "HardSilu": activation("hard_silu"),
    "LeakyRelu": leaky_relu,
    "Log": unary("log"),
    "Log1p": unary("log1p"),
    "LogSigmoid": activation("log_sigmoid"),
    "Matmul": matmul,
    "Max": reduction("max"),
    "Maximum": maximum,
    "Mean": reduction("mean"),
    "Min": reduction("min"),
    "Minimum": minimum,
    "Multiply": multiply,
    "Negative": negative,
    "Power": power,
    "Prod": reduction("prod"),
    "Reciprocal": unary("reciprocal"),
    "Relu": activation("relu"),
    "Relu6": activation("relu6"),
    "Reshape": reshape,
    "Round": unary("round"),
    "Rsqrt": unary("rsqrt"),
    "Selu": activation("selu"),
    "Sigmoid": activation("sigmoid"),
    "Sign": unary("sign"),
    "Silu": activation("silu"),
    "Sin": unary("sin"),
    "Softmax": softmax,
    "Softplus": activation("softplus"),
    "Softsign": activation("softsign"),
    "Sqrt": unary("sqrt"),
    "Square": unary("square"),
    "Squeeze": add_or_drop_axes,
    "Std": reduction("std"),
    "Subtract": subtract,
    "Sum": reduction("sum"),
    "Tanh": activation("tanh"),
    "Transpose": transpose,
    "TrueDivide": divide,
    "Var": reduction("var"),
}
