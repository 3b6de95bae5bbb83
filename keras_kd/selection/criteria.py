"""How much a channel matters: by its weights alone, or by what real inputs make of it.

Every criterion gives each set of channels that stands and falls together the mean of its members' scores,
each divided by the mean over its layer: layers of different scale weigh the same.
"""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd.compression.bridge_graph import run_graph
from keras_kd.selection.channel_graph import ChannelGraph, Ids
from keras_kd.selection.examples_of import batches_of
from keras_kd.selection.running import call_operation

CRITERIA = ("l1", "bn_scale", "activation", "taylor")
_BATCH = 64


class _Scores:
    """Sums and counts per root, from scores per id."""

    def __init__(self, graph: ChannelGraph):
        self._roots = graph.roots()
        self._sums = np.zeros(len(self._roots))
        self._counts = np.zeros(len(self._roots))

    def add(self, ids: Ids, values: np.ndarray) -> None:
        """One layer's scores, float [channels]."""
        mean = values.mean() if values.size else 0.0
        np.add.at(self._sums, self._roots[ids], values / mean if mean > 0 else values)
        np.add.at(self._counts, self._roots[ids], 1.0)

    @property
    def known(self) -> np.ndarray:
        """Bool [ids]: roots that got a score."""
        return self._counts > 0

    @property
    def means(self) -> np.ndarray:
        """Float [ids], 0 where nothing is known."""
        return self._sums / np.maximum(self._counts, 1.0)


def by_weights(graph: ChannelGraph) -> np.ndarray:
    """`l1`: the mean absolute weight of the filter that produces a channel.

    Source: Li et al. 2017, arXiv:1608.08710, section 3.1, averaged over the filters that share a channel.
    """
    scores = _Scores(graph)
    for cut in graph.cuts.values():
        if cut.produced is None:
            continue
        for weight in cut.layer.weights:
            axes = cut.weight_ids.get(weight.name, ())
            for axis, ids in enumerate(axes):
                if ids is cut.produced and len(axes) > 1:
                    value = np.abs(keras.ops.convert_to_numpy(weight).astype(np.float64))
                    others = tuple(index for index in range(value.ndim) if index != axis)
                    scores.add(ids, value.mean(axis=others))
    return scores.means


def by_scale(graph: ChannelGraph) -> np.ndarray:
    """`bn_scale`: |gamma| of the normalizations on a channel; `l1` for channels that no normalization scales.

    Source: Liu et al. 2017, arXiv:1708.06519, section 3.
    """
    scores = _Scores(graph)
    for cut in graph.cuts.values():
        for weight in cut.layer.weights:
            if weight.name == "gamma" and weight.name in cut.weight_ids:
                (ids,) = cut.weight_ids["gamma"]
                assert ids is not None
                scores.add(ids, np.abs(keras.ops.convert_to_numpy(weight).astype(np.float64)))
    return np.where(scores.known, scores.means, by_weights(graph))


def reads_of(
    model: keras.Model, graph: ChannelGraph, inputs: Any, watch: Callable[[Any], Any] | None = None
) -> tuple[Any, list[Any]]:
    """(outputs, the tensors that layers with kernels read), in the order of `graph.reads`."""
    found: list[Any] = []

    def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(operation) in graph.cuts and graph.cuts[id(operation)].kernels:
            found.append(args[0] if watch is None else watch(args[0]))
            args = (found[-1], *args[1:])
        return call_operation(operation, args, kwargs)

    by_input = keras.tree.flatten(inputs)
    return run_graph(model, [tf.convert_to_tensor(value) for value in by_input], visit, training=False), found


def by_activation(model: keras.Model, graph: ChannelGraph, x: Any) -> np.ndarray:
    """`activation`: the mean absolute value that the next layer reads, over examples and positions.

    Source: the activation criteria that Molchanov et al. 2017 compare, arXiv:1611.06440, section 2.2.
    """

    @tf.function(reduce_retracing=True)
    def of_batch(inputs: Any) -> Any:
        _, found = reads_of(model, graph, inputs)
        return [
            tf.reduce_mean(tf.abs(tf.cast(value, "float32")), axis=_all_but(value, axis))
            for value, (_, axis) in zip(found, graph.reads)
        ]

    return _streamed(graph, (of_batch(batch) for batch in batches_of(x, _BATCH)))


def by_taylor(
    model: keras.Model, graph: ChannelGraph, x: Any, y: Any, loss: Callable[[Any, Any], Any]
) -> np.ndarray:
    """`taylor`: how much the loss would change without the channel, to first order.

    |sum over positions of value times gradient|, averaged over the examples.

    Source: Molchanov et al. 2017, arXiv:1611.06440, equation 8.
    """

    @tf.function(reduce_retracing=True)
    def of_batch(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:

            def watched(value: Any) -> Any:
                tape.watch(value)
                return value

            outputs, found = reads_of(model, graph, inputs, watched)
            value = loss(labels, outputs)
        gradients = tape.gradient(value, found, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        changes = []
        for tensor, gradient, (_, axis) in zip(found, gradients, graph.reads):
            product = tf.cast(tensor, "float32") * tf.cast(gradient, "float32")
            positions = [index for index in range(len(tensor.shape)) if index not in (0, axis)]
            changes.append(tf.reduce_mean(tf.abs(tf.reduce_sum(product, axis=positions)), axis=0))
        return changes

    pairs = zip(batches_of(x, _BATCH), batches_of(y, _BATCH))
    return _streamed(graph, (of_batch(inputs, labels) for inputs, labels in pairs))


def _all_but(value: Any, axis: int) -> list[int]:
    return [index for index in range(len(value.shape)) if index != axis]


def _streamed(graph: ChannelGraph, batches: Iterator[Any]) -> np.ndarray:
    totals: list[np.ndarray] | None = None
    for batch in batches:
        values = [np.asarray(value, dtype=np.float64) for value in batch]
        totals = values if totals is None else [total + value for total, value in zip(totals, values)]
    scores = _Scores(graph)
    for (ids, _), total in zip(graph.reads, totals or []):
        scores.add(ids, total)
    return scores.means
