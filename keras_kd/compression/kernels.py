"""The weights of a tf_keras model that pruning and clustering act on, and what can be counted in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tf_keras

DEPTHWISE_REASON = (
    "depthwise kernels stay as they are: one small filter per channel, few weights, much accuracy"
)
NO_KERNEL_REASON = "has no kernel"
SHARED_REASON = "a nested model's layers are not reached"


def kernels(layer: Any) -> list[Any]:
    """Variables of a built layer that hold its multiplications, without biases and depthwise filters.

    Example:
      >>> import tf_keras
      >>> dense = tf_keras.layers.Dense(2); dense.build((None, 3))
      >>> [tuple(kernel.shape) for kernel in kernels(dense)]
      [(3, 2)]
    """
    layers = tf_keras.layers
    if isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D):
        return []
    if isinstance(layer, layers.SeparableConv1D | layers.SeparableConv2D):
        return [layer.pointwise_kernel]
    if isinstance(layer, layers.Bidirectional):
        return kernels(layer.forward_layer) + kernels(layer.backward_layer)
    if isinstance(layer, layers.TimeDistributed):
        return kernels(layer.layer)
    if isinstance(layer, layers.RNN):
        cells = getattr(layer.cell, "cells", [layer.cell])
        return [v for cell in cells for v in _named(cell, ("kernel", "recurrent_kernel"))]
    if isinstance(layer, layers.MultiHeadAttention):
        # Named by what they are, because the attributes that hold them are private.
        return [v for v in layer.trainable_weights if v.name.split(":")[0].endswith("kernel")]
    if isinstance(layer, layers.Embedding):
        return _named(layer, ("embeddings",))
    return _named(layer, ("kernel",))


def _named(layer: Any, names: Iterable[str]) -> list[Any]:
    found = (getattr(layer, name, None) for name in names)
    return [
        value for value in found if value is not None and hasattr(value, "assign") and value.shape.rank >= 2
    ]


def trained_kernels(layer: Any, wrapper: Any | None) -> list[Any]:
    """The variables of `kernels(layer)` where a quantization wrapper around a layer of that name holds them.

    The wrapper puts quantized tensors in the places of the kernels; the variables are among its weights.

    Args:
      layer: the layer as it was before it was wrapped.
      wrapper: the wrapper around its copy; None where the layer was not wrapped.
    """
    found = kernels(layer)
    if wrapper is None:
        return found
    names = {_base_name(kernel) for kernel in found}
    held = [weight for weight in wrapper.weights if _base_name(weight) in names]
    if [tuple(kernel.shape) for kernel in found] != [tuple(weight.shape) for weight in held]:
        raise RuntimeError(
            f"The kernels of layer {layer.name!r} were not found behind its quantization wrapper."
        )
    return held


def _base_name(variable: Any) -> str:
    return variable.name.rsplit("/", 1)[-1]


def why_no_kernel(layer: Any) -> str:
    """Why `kernels` finds nothing in a layer."""
    if isinstance(layer, tf_keras.layers.DepthwiseConv1D | tf_keras.layers.DepthwiseConv2D):
        return DEPTHWISE_REASON
    return SHARED_REASON if isinstance(layer, tf_keras.Model) else NO_KERNEL_REASON


def ends(model: Any) -> set[str]:
    """Names of the layers with a kernel that stand first after an input or last before an output.

    Example:
      >>> import tf_keras
      >>> layers = [tf_keras.layers.Dense(8, name=name) for name in "abc"]
      >>> model = tf_keras.Sequential([tf_keras.layers.Input((4,)), *layers])
      >>> sorted(ends(model))
      ['a', 'c']
    """
    before: dict[str, set[str]] = {}
    for layer in model.layers:
        before[layer.name] = _producers(layer, model)
    # A frozen depthwise layer is a Rescaling in disguise (the bridge makes one of it), and no first layer.
    holds = {
        layer.name for layer in model.layers if kernels(layer) or (_is_depthwise(layer) and layer.trainable)
    }
    reached: dict[str, set[str]] = {}

    def kernels_upstream(name: str) -> set[str]:
        """Layers with a kernel on the way from the inputs, nearest ones only."""
        if name not in reached:
            reached[name] = set()  # cut for the (impossible) cycle
            found: set[str] = set()
            for source in before.get(name, ()):
                found |= {source} if source in holds else kernels_upstream(source)
            reached[name] = found
        return reached[name]

    first = {name for name in holds if not kernels_upstream(name)}
    feeding = set().union(*(kernels_upstream(name) for name in holds)) if holds else set()
    last = {name for name in holds if name not in feeding}
    return first | last


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.DepthwiseConv1D | tf_keras.layers.DepthwiseConv2D)


def _producers(layer: Any, model: Any) -> set[str]:
    known = {other.name for other in model.layers}
    sources: set[str] = set()
    for node in layer.inbound_nodes:
        inbound = node.inbound_layers
        sources |= {source.name for source in (inbound if isinstance(inbound, list) else [inbound])}
    return sources & known


def sparsity_of(values: Iterable[np.ndarray]) -> float:
    """Fraction of exact zeros over all arrays together.

    Example:
      >>> sparsity_of([np.array([0.0, 1.0]), np.array([0.0, 0.0])])
      0.75
    """
    values = list(values)
    size = sum(value.size for value in values)
    return sum(int(np.count_nonzero(value == 0)) for value in values) / size if size else 0.0


def most_clusters(value: np.ndarray, *, per_channel: bool) -> int:
    """Distinct values in a kernel, or the largest number of them in one output channel (the last axis).

    Example:
      >>> most_clusters(np.array([[1.0, 5.0], [2.0, 5.0], [1.0, 5.0]]), per_channel=True)
      2
    """
    if not per_channel:
        return int(np.unique(value).size)
    flat = value.reshape(-1, value.shape[-1])
    return max(int(np.unique(flat[:, channel]).size) for channel in range(flat.shape[1]))
