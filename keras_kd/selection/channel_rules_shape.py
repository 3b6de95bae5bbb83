"""What layers without weights do to channels: pass them on, move them, put them together."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_kd.selection.channel_graph import ChannelGraph, Ids, Labelled, Shape, labelled_as_fixed, tensors_in

# Above this many values per example a reshape is not followed value by value.
_MOST_VALUES = 4_000_000

# fmt: off
# Activations that need one value at a time. Those of `keras.activations` that are absent (softmax, glu ...) look
# at several channels; a function that is not known might.
_ELEMENTWISE = frozenset([
    "celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_swish",
    "hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid",
    "silu", "soft_shrink", "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus",
    "swish", "tanh", "tanh_shrink", "threshold",
])

# Operations of `keras.ops` that map every value by itself, by the names of their classes, which are what a
# saved model holds (the classes themselves are not public).
_ELEMENTWISE_OPS = frozenset([
    "Absolute", "Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSilu",
    "HardTanh", "HardShrink", "LeakyRelu", "Log1p", "LogSigmoid", "Mish", "Negative", "Reciprocal",
    "Relu", "Relu6", "Rsqrt", "Selu", "Sigmoid", "Sign", "Silu", "SoftShrink", "Softplus", "Softsign",
    "SparsePlus", "SparseSigmoid", "Sqrt", "Square", "Squareplus", "Tanh", "TanhShrink", "Threshold",
    "Identity", "StopGradient",
])
# fmt: on
_MERGING_OPS = frozenset(["Add", "Subtract", "Multiply", "Maximum", "Minimum", "TrueDivide", "Divide"])
_MERGING_LAYERS = (
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)


def acts_on_each_value(activation: Any) -> bool:
    """Whether an activation maps every value by itself.

    Example:
      >>> acts_on_each_value(keras.activations.relu), acts_on_each_value(keras.activations.softmax)
      (True, False)
    """
    if activation is None:
        return True
    if isinstance(activation, layers.Layer):
        return type(activation) in RULES and RULES[type(activation)] in (unchanged, activation_layer)
    name = getattr(activation, "__name__", "")
    # By identity too: a user's own function called "relu" might do anything.
    return name in _ELEMENTWISE and getattr(keras.activations, name, None) is activation


def unchanged(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Every value by itself."""
    return tensor


def unchanged_but_whole(graph: ChannelGraph, path: str, tensor: Labelled, why: str) -> Labelled:
    """The shape stays, and so do all channels."""
    graph.keep_whole(path, why, [tensor])
    return tensor


def activation_layer(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Activation: depends on which."""
    if acts_on_each_value(layer.activation):
        return tensor
    name = getattr(layer.activation, "__name__", repr(layer.activation))
    return unchanged_but_whole(graph, path, tensor, f"its activation {name} may look at all channels at once")


def rescaling(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Rescaling by numbers; by a list there would be one number per channel."""
    if np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0:
        return tensor
    return unchanged_but_whole(graph, path, tensor, "it has a scale for each channel")


def spatial(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Pooling, padding, cropping, upsampling: works on positions, and leaves the channels."""
    axis = _channel_axis(layer, tensor)
    shape = tuple(layer.compute_output_shape(tensor.shape))
    if tensor.axis != axis:
        graph.keep_whole(path, f"it works on axis {tensor.axis}, where the channels lie", [tensor])
        return labelled_as_fixed(shape)
    return Labelled(shape, axis, tensor.ids)


def _channel_axis(layer: Any, tensor: Labelled) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(tensor.shape) - 1


def global_pooling(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """One value per channel."""
    shape = tuple(layer.compute_output_shape(tensor.shape))
    if tensor.axis != _channel_axis(layer, tensor):
        graph.keep_whole(path, f"it pools axis {tensor.axis}, where the channels lie", [tensor])
        return labelled_as_fixed(shape)
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1
    return Labelled(shape, axis, tensor.ids)


def flatten(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Flatten: every channel becomes as many values as there are positions."""
    if layer.data_format == "channels_first" and len(tensor.shape) > 2:
        graph.keep_whole(path, "it transposes channels_first data", [tensor])
        return labelled_as_fixed(layer.compute_output_shape(tensor.shape))
    return _reshaped(graph, path, tensor, tuple(layer.compute_output_shape(tensor.shape)))


def reshape(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Reshape, as far as the channels still lie on one axis afterwards."""
    result = _reshaped(graph, path, tensor, tuple(layer.compute_output_shape(tensor.shape)))
    if result.axis is None or result.fixed:
        return result
    axis, target = result.axis, list(layer.target_shape)
    ids = graph.slot(layer, "out", result.ids)

    def new_target(count: Callable[[Ids], int]) -> tuple[int, ...]:
        if target[axis - 1] != -1:
            target[axis - 1] = count(ids)
        return tuple(target)

    graph.cut(layer, path).fields["target_shape"] = new_target
    return result


def _reshaped(graph: ChannelGraph, path: str, tensor: Labelled, shape: Shape) -> Labelled:
    assert tensor.axis is not None
    known = None not in tensor.shape[1:] and None not in shape[1:]
    values = math.prod(size or 0 for size in tensor.shape[1:])
    if tensor.fixed or not known or values > _MOST_VALUES:
        graph.keep_whole(path, "the sizes that it reshapes are not known or too large to follow", [tensor])
        return labelled_as_fixed(shape)
    sizes = [size or 0 for size in tensor.shape[1:]]
    along = [1] * len(sizes)
    along[tensor.axis - 1] = len(tensor.ids)
    grid = np.broadcast_to(tensor.ids.reshape(along), sizes).reshape([size or 0 for size in shape[1:]])
    for axis in reversed(range(grid.ndim)):
        row = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis])
        if np.all(row == row[0]):
            return Labelled(shape, axis + 1, row[0].copy())
    graph.keep_whole(path, "it spreads the channels over several axes", [tensor])
    return labelled_as_fixed(shape)


def permute(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Permute: the channels move to another axis."""
    assert tensor.axis is not None
    shape = tuple(layer.compute_output_shape(tensor.shape))
    return Labelled(shape, list(layer.dims).index(tensor.axis) + 1, tensor.ids)


def merge(
    graph: ChannelGraph, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Labelled | None:
    """Additions and the like, concatenations, and operations on every value; None for anything else."""
    name = type(operation).__name__
    is_layer = isinstance(operation, layers.Layer)
    if isinstance(operation, _MERGING_LAYERS) and args:
        return _broadcast(graph, path, list(args[0]))
    if isinstance(operation, layers.Concatenate) and args:
        return _concatenated(graph, path, list(args[0]), operation.axis)
    if is_layer:
        return None
    if name == "Concatenate" and not kwargs and args and isinstance(args[0], (list, tuple)):
        return _concatenated(graph, path, list(args[0]), operation.axis)
    if name in _MERGING_OPS and not kwargs:
        return _broadcast(graph, path, list(args))
    if (
        name in _ELEMENTWISE_OPS
        and not kwargs
        and len(tensors_in(args)) == 1
        and isinstance(args[0], Labelled)
    ):
        return args[0]
    return None


def _rank(value: Any) -> int:
    return len(value.shape) if isinstance(value, Labelled) else np.ndim(value)


def _broadcast(graph: ChannelGraph, path: str, operands: list[Any]) -> Labelled:
    """Values met entry by entry: the ids along the common axis become one."""
    tensors = [operand for operand in operands if isinstance(operand, Labelled)]
    rank = max(_rank(operand) for operand in operands)
    shapes = [
        tuple(operand.shape if isinstance(operand, Labelled) else np.shape(operand)) for operand in operands
    ]
    if any(len(tensor.shape) != rank or tensor.axis is None for tensor in tensors):
        graph.keep_whole(path, "it joins tensors of different ranks", tensors)
        return labelled_as_fixed(_broadcast_shape(shapes, rank))
    shape = _broadcast_shape(shapes, rank)
    # A single channel that is spread over many is needed as long as one of them is left.
    wide = [tensor for tensor in tensors if tensor.axis is not None and len(tensor.ids) == shape[tensor.axis]]
    labelled = [tensor for tensor in wide if not tensor.fixed] or wide
    if not labelled:
        graph.keep_whole(path, "it joins tensors whose sizes are not known", tensors)
        return labelled_as_fixed(shape)
    axis = labelled[0].axis
    assert axis is not None
    ids = labelled[0].ids
    for operand, its_shape in zip(operands, shapes):
        if isinstance(operand, Labelled) and operand.axis == axis:
            if len(operand.ids) == len(ids):
                graph.unite(ids, operand.ids)
            else:
                graph.fix(operand.ids)
            continue
        if isinstance(operand, Labelled):
            graph.keep_whole(path, "it joins channels that lie on different axes", [operand])
        place = axis - (rank - len(its_shape))
        if place >= 0 and its_shape[place] != 1:  # full width, and nothing of it can be removed
            graph.keep_whole(path, "it joins the channels with a constant for each of them", [labelled[0]])
    return Labelled(shape, axis, ids)


def _broadcast_shape(shapes: list[tuple[Any, ...]], rank: int) -> Shape:
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for sizes in zip(*padded):
        known = [size for size in sizes if size not in (None, 1)]
        result.append(known[0] if known else (None if None in sizes else 1))
    return tuple(result)


def _concatenated(graph: ChannelGraph, path: str, operands: list[Any], axis: int) -> Labelled:
    tensors = [operand for operand in operands if isinstance(operand, Labelled)]
    rank = len(tensors[0].shape)
    axis = axis if axis >= 0 else rank + axis
    shape = list(tensors[0].shape)
    sizes = [tensor.shape[axis] for tensor in tensors]
    shape[axis] = None if None in sizes else sum(size for size in sizes if size is not None)
    along = {tensor.axis for tensor in tensors}
    if len(tensors) != len(operands) or len(along) != 1 or None in along:
        graph.keep_whole(path, "it concatenates tensors whose channels lie on different axes", tensors)
        return labelled_as_fixed(shape)
    if along == {axis}:
        return Labelled(tuple(shape), axis, np.concatenate([tensor.ids for tensor in tensors]))
    for tensor in tensors[1:]:
        graph.unite(tensors[0].ids, tensor.ids)
    return Labelled(tuple(shape), tensors[0].axis, tensors[0].ids)


def unknown(
    graph: ChannelGraph, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A layer without a rule: everything that reaches it stays, and so does everything that it returns."""
    graph.keep_whole(
        path, f"{type(operation).__name__} has no rule for removing channels", tensors_in((args, kwargs))
    )

    def symbolic(value: Any) -> Any:
        return keras.KerasTensor(value.shape) if isinstance(value, Labelled) else value

    args, kwargs = keras.tree.map_structure(symbolic, (args, kwargs))
    outputs = operation.compute_output_spec(*args, **kwargs)
    return keras.tree.map_structure(lambda tensor: labelled_as_fixed(tensor.shape), outputs)


RULES: dict[type, Callable[[ChannelGraph, Any, str, Labelled], Labelled]] = {
    layers.Activation: activation_layer,
    layers.Flatten: flatten,
    layers.Permute: permute,
    layers.Reshape: reshape,
    layers.Rescaling: rescaling,
    **dict.fromkeys(
        (
            layers.ActivityRegularization,
            layers.AlphaDropout,
            layers.Dropout,
            layers.ELU,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.Identity,
            layers.LeakyReLU,
            layers.ReLU,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
        ),
        unchanged,
    ),
    **dict.fromkeys(
        (
            layers.AveragePooling1D,
            layers.AveragePooling2D,
            layers.AveragePooling3D,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Cropping3D,
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.MaxPooling3D,
            layers.Resizing,
            layers.UpSampling1D,
            layers.UpSampling2D,
            layers.UpSampling3D,
            layers.ZeroPadding1D,
            layers.ZeroPadding2D,
            layers.ZeroPadding3D,
        ),
        spatial,
    ),
    **dict.fromkeys(
        (
            layers.GlobalAveragePooling1D,
            layers.GlobalAveragePooling2D,
            layers.GlobalAveragePooling3D,
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.GlobalMaxPooling3D,
        ),
        global_pooling,
    ),
}
