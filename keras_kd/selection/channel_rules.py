"""What layers with weights do to channels, and the walk over a whole model.

A rule is a function (graph, layer, path, tensor) -> Labelled. `RULES` says which layer has which; a layer
without a rule keeps every channel that reaches it, and is named.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_kd.compression.bridge_graph import is_graph_model, run_graph
from keras_kd.errors import raise_all
from keras_kd.selection import channel_rules_shape as shape_rules
from keras_kd.selection.channel_graph import (
    ChannelGraph,
    Ids,
    Labelled,
    how_many,
    labelled_as_fixed,
    tensors_in,
)

Rule = Callable[[ChannelGraph, Any, str, Labelled], Labelled]


def _spatial_axis(layer: Any, tensor: Labelled) -> int:
    return 1 if layer.data_format == "channels_first" else len(tensor.shape) - 1


def _positions(shape: tuple[int | None, ...], axis: int) -> int | None:
    sizes = [size for index, size in enumerate(shape) if index not in (0, axis)]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _read(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled, axis: int) -> Ids:
    """The ids of what a layer reads along `axis`."""
    if tensor.axis != axis:
        graph.keep_whole(path, f"it reads axis {axis}, and the channels lie on axis {tensor.axis}", [tensor])
        size = tensor.shape[axis]
        assert size is not None  # the layer is built
        tensor = Labelled(tensor.shape, axis, np.zeros(size, dtype=np.int64))
    ids = graph.slot(layer, "in", tensor.ids)
    graph.reads.append((tensor.ids, axis))
    return ids


def _produce(graph: ChannelGraph, layer: Any, path: str, count: int) -> Ids:
    ids = graph.slot(layer, "out", count=count)
    activation = getattr(layer, "activation", None)
    if not shape_rules.acts_on_each_value(activation):
        name = getattr(activation, "__name__", repr(activation))
        graph.keep_whole(path, f"its activation {name} looks at all channels at once", [_row(ids)])
    return ids


def _row(ids: Ids) -> Labelled:
    return Labelled((None, len(ids)), 1, ids)


def convolution(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Conv1D, Conv2D, Conv3D, in groups or not: kernel [..., in / groups, out]."""
    axis = _spatial_axis(layer, tensor)
    into = _read(graph, layer, path, tensor, axis)
    groups, spatial = layer.groups, [None] * len(layer.kernel_size)
    cut = graph.cut(layer, path)
    if groups > 1 and groups == len(into):
        # Every input channel has filters of its own: it goes together with them, and the groups become fewer.
        out = np.repeat(into, layer.filters // groups)
        cut.weight_ids = {"kernel": (*spatial, None, out), "bias": (out,)}
        cut.fields["groups"] = how_many(into)
        _produce_in_place(graph, layer, path, out)
    else:
        out = _produce(graph, layer, path, layer.filters)
        if groups > 1:
            # Groups must stay equally wide: the j-th channel of every group goes, or none.
            for ids in (into, out):
                table = ids.reshape(groups, -1)
                for row in table[1:]:
                    graph.unite(table[0], row)
            into = into.reshape(groups, -1)[0]
        cut.weight_ids = {"kernel": (*spatial, into, out), "bias": (out,)}
        cut.produced = out
    cut.fields["filters"] = how_many(out)
    return _result(cut, layer, tensor, axis, out, ("kernel",))


def _produce_in_place(graph: ChannelGraph, layer: Any, path: str, out: Ids) -> None:
    activation = getattr(layer, "activation", None)
    if not shape_rules.acts_on_each_value(activation):
        graph.keep_whole(path, "its activation looks at all channels at once", [_row(out)])


def _result(
    cut: Any, layer: Any, tensor: Labelled, axis: int, out: Ids, kernels: tuple[str, ...]
) -> Labelled:
    shape = tuple(layer.compute_output_shape(tensor.shape))
    cut.positions.append(_positions(shape, axis))
    cut.kernels = kernels
    return Labelled(shape, axis, out)


def transposed_convolution(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose: kernel [..., out, in]."""
    axis = _spatial_axis(layer, tensor)
    into = _read(graph, layer, path, tensor, axis)
    out = _produce(graph, layer, path, layer.filters)
    cut = graph.cut(layer, path)
    cut.weight_ids = {"kernel": (*[None] * len(layer.kernel_size), out, into), "bias": (out,)}
    cut.fields["filters"] = how_many(out)
    cut.produced = out
    result = _result(cut, layer, tensor, axis, out, ("kernel",))
    cut.positions[-1] = _positions(tensor.shape, axis)  # the kernel is applied once per input position
    return result


def depthwise_convolution(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """DepthwiseConv1D, DepthwiseConv2D: kernel [..., in, multiplier], outputs in the order of the inputs."""
    axis = _spatial_axis(layer, tensor)
    into = _read(graph, layer, path, tensor, axis)
    out = np.repeat(into, layer.depth_multiplier)
    cut = graph.cut(layer, path)
    spatial = [None] * (len(layer.kernel.shape) - 2)
    cut.weight_ids = {"kernel": (*spatial, into, None), "bias": (out,)}
    _produce_in_place(graph, layer, path, out)
    return _result(cut, layer, tensor, axis, out, ("kernel",))


def separable_convolution(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """SeparableConv1D, SeparableConv2D: a depthwise kernel, then a pointwise one."""
    axis = _spatial_axis(layer, tensor)
    into = _read(graph, layer, path, tensor, axis)
    out = _produce(graph, layer, path, layer.filters)
    cut = graph.cut(layer, path)
    spatial = [None] * (len(layer.pointwise_kernel.shape) - 2)
    cut.weight_ids = {
        "depthwise_kernel": (*spatial, into, None),
        "pointwise_kernel": (*spatial, np.repeat(into, layer.depth_multiplier), out),
        "bias": (out,),
    }
    cut.fields["filters"] = how_many(out)
    cut.produced = out
    return _result(cut, layer, tensor, axis, out, ("depthwise_kernel", "pointwise_kernel"))


def dense(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Dense on the last axis: kernel [in, out]."""
    axis = len(tensor.shape) - 1
    into = _read(graph, layer, path, tensor, axis)
    out = _produce(graph, layer, path, layer.units)
    cut = graph.cut(layer, path)
    cut.weight_ids = {"kernel": (into, out), "bias": (out,)}
    cut.fields["units"] = how_many(out)
    cut.produced = out
    return _result(cut, layer, tensor, axis, out, ("kernel",))


def batch_normalization(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """Four vectors over the channels."""
    axis = layer.axis if layer.axis >= 0 else len(tensor.shape) + layer.axis
    if tensor.axis != axis:
        return shape_rules.unchanged_but_whole(graph, path, tensor, f"it normalizes axis {axis}")
    ids = graph.slot(layer, "in", tensor.ids)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    graph.cut(layer, path).weight_ids = dict.fromkeys(names, (ids,))
    return tensor


def parametric_relu(graph: ChannelGraph, layer: Any, path: str, tensor: Labelled) -> Labelled:
    """PReLU: a slope per value, shared over some axes."""
    assert tensor.axis is not None
    ids = graph.slot(layer, "in", tensor.ids)
    shape = tuple(layer.alpha.shape)
    axes: list[Ids | None] = [None] * len(shape)
    if shape[tensor.axis - 1] != 1:
        axes[tensor.axis - 1] = ids
    graph.cut(layer, path).weight_ids = {"alpha": tuple(axes)}
    return tensor


RULES: dict[type, Rule] = {
    layers.Conv1D: convolution,
    layers.Conv2D: convolution,
    layers.Conv3D: convolution,
    layers.Conv1DTranspose: transposed_convolution,
    layers.Conv2DTranspose: transposed_convolution,
    layers.Conv3DTranspose: transposed_convolution,
    layers.DepthwiseConv1D: depthwise_convolution,
    layers.DepthwiseConv2D: depthwise_convolution,
    layers.SeparableConv1D: separable_convolution,
    layers.SeparableConv2D: separable_convolution,
    layers.Dense: dense,
    layers.BatchNormalization: batch_normalization,
    layers.PReLU: parametric_relu,
    **shape_rules.RULES,
}


def read_channels(model: keras.Model) -> ChannelGraph:
    """Walk a model and find out which channels belong together.

    Args:
      model: Functional or Sequential, built; nested models are walked too.

    Raises:
      ValueError: the model has no graph of layers.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="hidden"), layers.Dense(2)])
      >>> graph = read_channels(model)
      >>> sorted(graph.cuts[id(model.layers[0])].weight_ids)
      ['bias', 'kernel']
    """
    problems = []
    if not isinstance(model, keras.Model):
        problems.append(f"teacher must be a keras.Model, got {type(model).__name__}.")
    elif isinstance(model, keras.Sequential) and not model.built:
        problems.append(
            "the Sequential model is not built. Begin it with a keras.Input, or call it on a batch."
        )
    elif not is_graph_model(model):
        problems.append(
            f"{model.name!r} is a subclassed model, whose layers are called by Python code and form no graph that "
            "could be followed. Only Functional and Sequential models can be carved."
        )
    raise_all(problems, subject="The channels of this model cannot be read")
    graph = ChannelGraph()

    def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return apply_rule(graph, operation, path, args, kwargs)

    outputs = run_graph(model, [labelled_as_fixed(tensor.shape) for tensor in model.inputs], visit)
    graph.finish(tensors_in(outputs))
    return graph


def apply_rule(
    graph: ChannelGraph, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Follow the channels through one call."""
    rule = RULES.get(type(operation))
    first = args[0] if args else None
    only = isinstance(first, Labelled) and len(tensors_in((args, kwargs))) == 1
    if rule is not None and only and first is not None and first.axis is not None:
        return rule(graph, operation, path, first)
    merged = shape_rules.merge(graph, operation, path, args, kwargs)
    if merged is not None:
        return merged
    return shape_rules.unknown(graph, operation, path, args, kwargs)
