"""Normalization statistics of a carved model, corrected on real inputs.

With channels gone, what reaches a later BatchNormalization has another mean and variance than the one it
remembers. Its statistics are moved by as much as the carved model's differ from the original's on the same
inputs, so that what it puts out is distributed as before. Where nothing of consequence was removed nothing moves.
On the same walk kernels can be fitted too: see `reconstruction`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd.compression.bridge_graph import run_graph
from keras_kd.selection.reconstruction import Targets
from keras_kd.selection.running import call_operation

#: Examples that run at once, all layers' values in memory one after the other.
SAMPLE = 256


def correct_statistics(
    original: keras.Model,
    smaller: keras.Model,
    pairs: Sequence[tuple[Any, Any]],
    kept: Mapping[int, np.ndarray],
    x: Any,
    outputs: Mapping[int, np.ndarray] | None = None,
) -> None:
    """Set the moving means and variances of `smaller`, and its kernels where that is asked for.

    Args:
      original: the model that it was made from; not changed.
      smaller: changed in place.
      pairs: (layer of the original, the layer made from it).
      kept: {id() of a layer of the original: bool [channels]}; layers that are absent kept all.
      x: inputs of at most some hundred examples, [examples, ...].
      outputs: {id() of a layer of the original: bool [its outputs], those that are left}: layers to reconstruct;
        None leaves all kernels as they are.
    """
    inputs = [tf.convert_to_tensor(value) for value in keras.tree.flatten(x)]
    reference: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    targets = Targets(outputs or {})

    def look(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(operation, keras.layers.BatchNormalization) and id(operation) not in reference:
            reference[id(operation)] = _moments(operation, args[0])
        targets.look(operation, args)
        return call_operation(operation, args, kwargs)

    run_graph(original, inputs, look, training=False)
    waiting = {id(new): old for old, new in pairs}

    def correct(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        old = waiting.pop(id(operation), None)
        if id(old) in reference:
            mean, variance = reference[id(old)]
            places = kept.get(id(old), np.ones(len(mean), dtype=bool))
            _move(operation, _moments(operation, args[0]), (mean[places], variance[places]))
        targets.fit(old, operation, args)
        return call_operation(operation, args, kwargs)

    # In the order of the graph: every layer is corrected on inputs from layers that already are.
    run_graph(smaller, inputs, correct, training=False)


def _moments(layer: Any, value: Any) -> tuple[np.ndarray, np.ndarray]:
    axis = layer.axis % len(value.shape)
    others = [index for index in range(len(value.shape)) if index != axis]
    mean, variance = tf.nn.moments(tf.cast(value, tf.float32), axes=others)
    return mean.numpy().astype(np.float64), variance.numpy().astype(np.float64)


def _move(layer: Any, now: tuple[np.ndarray, np.ndarray], then: tuple[np.ndarray, np.ndarray]) -> None:
    """(x - mean) / deviation shall have the first two moments that it had in the original."""
    mean, variance = (
        keras.ops.convert_to_numpy(value).astype(np.float64)
        for value in (layer.moving_mean, layer.moving_variance)
    )
    ratio = (now[1] + layer.epsilon) / (then[1] + layer.epsilon)
    layer.moving_mean.assign(now[0] - (then[0] - mean) * np.sqrt(ratio))
    layer.moving_variance.assign(np.maximum((variance + layer.epsilon) * ratio - layer.epsilon, 0.0))
