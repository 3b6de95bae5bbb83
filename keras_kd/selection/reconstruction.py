"""Kernels of a carved model, fitted so that each layer puts out what it put out in the original.

A layer that reads fewer channels than before computes another sum. The channels that are left are not independent
of those that went, and by least squares on real inputs their weights take over what can be taken over. Layers are
fitted in the order of the graph, on inputs from layers that already are.

Source: He et al. 2017, arXiv:1707.06168, section 3.1 (reconstruction by least squares), here with a penalty on the
distance from the original's weights: where nothing of consequence was removed nothing moves.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

#: Examples that are looked at, at most: a Dense layer sees one row of inputs per example.
EXAMPLES = 1024
# Numbers in all inputs together: the feature maps of all examples are in memory at once.
_ROOM = 2**25
#: Rows of inputs per layer at most: drawn from all examples and positions.
ROWS = 8192
#: Strength of the penalty, relative to the mean square of an input.
RIDGE = 1e-3


def examples_for(x: Any) -> int:
    """How many of these examples to look at: fewer where they are large.

    Example:
      >>> examples_for(np.zeros((4, 28, 28, 1))), examples_for(np.zeros((4, 224, 224, 3)))
      (1024, 222)
    """
    numbers = sum(int(np.prod(leaf.shape[1:])) for leaf in keras.tree.flatten(x))
    return min(EXAMPLES, max(64, _ROOM // max(numbers, 1)))


class Targets:
    """What the layers of the original put out, for those of the carved model to be fitted to.

    Args:
      outputs: {id() of a layer of the original: bool [its outputs], those that are left}; layers that are absent, that
        cannot be fitted or that are called more than once keep their weights.
    """

    def __init__(self, outputs: Mapping[int, np.ndarray]):
        self._outputs = outputs
        self._seen: dict[int, np.ndarray | None] = {}
        self._seeds: dict[int, int] = {}

    def look(self, layer: Any, args: tuple[Any, ...]) -> None:
        """A layer of the original, about to be called."""
        if id(layer) not in self._outputs or not can_be_fitted(layer):
            return
        if id(layer) in self._seen:
            self._seen[id(layer)] = None
            return
        self._seeds[id(layer)] = len(self._seeds)
        target = target_of(layer, rows_of(layer, args[0], self._seeds[id(layer)]))
        self._seen[id(layer)] = target[:, self._outputs[id(layer)]]

    def fit(self, old: Any, new: Any, args: tuple[Any, ...]) -> None:
        """The layer made from `old`, about to be called for the first time."""
        target = self._seen.pop(id(old), None)
        if target is not None:
            fit(new, rows_of(new, args[0], self._seeds[id(old)]), target)


def can_be_fitted(layer: Any) -> bool:
    """Dense, and ungrouped Conv1D and Conv2D with channels last: layers that are one matrix product per position."""
    if type(layer) is keras.layers.Dense:
        return True
    is_convolution = type(layer) in (keras.layers.Conv1D, keras.layers.Conv2D)
    return is_convolution and layer.groups == 1 and layer.data_format == "channels_last"


def rows_of(layer: Any, value: Any, seed: int) -> np.ndarray:
    """What the layer multiplies its kernel with, at some of its output positions.

    Args:
      layer: one that can be fitted.
      value: its input, [examples, ..., channels].
      seed: the same seed draws the same positions for inputs of the same size, whatever their channels.

    Returns:
      float64 [rows, inputs of one output value], in the order of the flattened kernel.
    """
    if type(layer) is keras.layers.Dense:
        rows = tf.reshape(value, [-1, value.shape[-1]])
        return _drawn(np.asarray(rows, np.float64), ROWS, seed)
    if type(layer) is keras.layers.Conv1D:
        value = value[:, None]
    sizes, strides, rates = (
        (1, *((1,) * (2 - len(field)) + tuple(field)), 1)
        for field in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    padding = layer.padding.upper()
    if padding == "CAUSAL":
        left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        value, padding = tf.pad(value, [[0, 0], [0, 0], [left, 0], [0, 0]]), "VALID"
    # A few examples at a time: the patches of all of them would take many times the room of the feature map.
    per_example = -(-ROWS // len(value))
    drawn = []
    for start in range(0, len(value), 64):
        patches = tf.image.extract_patches(value[start : start + 64], sizes, strides, rates, padding)
        for number, patch in enumerate(np.asarray(patches), start):
            drawn.append(_drawn(patch.reshape(-1, patch.shape[-1]), per_example, (seed, number)))
    return np.concatenate(drawn).astype(np.float64)


def _drawn(rows: np.ndarray, count: int, seed: Any) -> np.ndarray:
    if len(rows) <= count:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), count, replace=False)]


def target_of(layer: Any, rows: np.ndarray) -> np.ndarray:
    """What the layer makes of its rows before its activation, float64 [rows, outputs]."""
    return rows @ _flat(layer) + (_number(layer.bias) if layer.use_bias else 0.0)


def fit(layer: Any, rows: np.ndarray, target: np.ndarray) -> None:
    """Move the layer's kernel and bias so that its rows give the target, as far as the penalty lets them.

    minimize ||target - rows W||^2 / n + RIDGE m ||W - W0||^2,  with m the mean square of the rows' entries.
    """
    kernel = _flat(layer)
    missing = target - target_of(layer, rows)
    mean, offset = np.zeros(rows.shape[1]), np.zeros(target.shape[1])
    if layer.use_bias:
        mean, offset = rows.mean(axis=0), missing.mean(axis=0)
    centered = rows - mean
    gram = centered.T @ centered / len(rows)
    penalty = RIDGE * max(float(np.mean(np.diag(gram))), 1e-12)
    right = centered.T @ (missing - offset) / len(rows)
    change = np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
    layer.kernel.assign((kernel + change).reshape(layer.kernel.shape))
    if layer.use_bias:
        layer.bias.assign(_number(layer.bias) + offset - mean @ change)


def _flat(layer: Any) -> np.ndarray:
    kernel = _number(layer.kernel)
    return kernel.reshape(-1, kernel.shape[-1])


def _number(weight: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(weight).astype(np.float64)
