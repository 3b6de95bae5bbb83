"""Pools of channels that compete with each other, how many of each stay, and what that costs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_kd.selection.channel_graph import FIXED, ChannelGraph, Ids, LayerCut


@dataclasses.dataclass(frozen=True)
class Pool:
    """Channels that the same layers produce: they are alike, and the best of them stay.

    Attributes:
      roots: one id for each set of channels that stands and falls together, in the order of the channels.
      paths: the layers that produce them.
    """

    roots: Ids
    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a model costs.

    Attributes:
      params: numbers in all weights, trainable or not.
      size_bytes: the weights as they are stored in memory (float32: four bytes each).
      macs: multiply-accumulates of the convolutions and Dense layers for one example; None where the sizes of the
        feature maps are not known.
    """

    params: int
    size_bytes: int
    macs: int | None


def pools_of(graph: ChannelGraph) -> list[Pool]:
    """Every pool of a graph; channels that cannot be cut are in none."""
    roots = graph.roots()
    owners: dict[int, list[str]] = {}
    for cut in graph.cuts.values():
        if cut.produced is not None:
            for root in np.unique(roots[cut.produced]).tolist():
                owners.setdefault(root, []).append(cut.path)
    owners.pop(FIXED, None)
    members: dict[tuple[str, ...], list[int]] = {}
    for root, paths in owners.items():
        members.setdefault(tuple(paths), []).append(root)
    return [Pool(np.array(sorted(channels)), paths) for paths, channels in members.items()]


def kept_of(size: int, fraction: float, round_to: int) -> int:
    """How many of `size` channels stay: a multiple of `round_to`, at least one, all where there are fewer.

    Example:
      >>> [kept_of(64, 0.25, 1), kept_of(24, 0.25, 8), kept_of(6, 0.5, 8), kept_of(3, 0.01, 1)]
      [16, 8, 6, 1]
    """
    steps = max(1, math.floor(size * fraction / round_to + 0.5))
    return min(size, steps * round_to)


def keep_best(graph: ChannelGraph, pools: list[Pool], importance: Ids, fraction: float, round_to: int) -> Any:
    """Which ids stay.

    Args:
      graph: the channels.
      pools: of this graph.
      importance: float [ids], read at the roots.
      fraction: of each pool, in (0, 1].
      round_to: the number kept is a multiple of this.

    Returns:
      bool [ids].
    """
    roots = graph.roots()
    kept = np.ones(len(roots), dtype=bool)
    for pool in pools:
        count = kept_of(len(pool.roots), fraction, round_to)
        # A stable sort keeps the earlier channel of two equals, so that the result does not depend on the platform.
        best_first = np.argsort(-importance[pool.roots], kind="stable")
        kept[pool.roots[best_first[count:]]] = False
    return kept[roots]


def counter(kept: np.ndarray) -> Callable[[Ids], int]:
    """How many of a row of ids stay."""
    return lambda ids: int(np.count_nonzero(kept[ids]))


def _numel(cut: LayerCut, name: str, shape: tuple[int, ...], count: Callable[[Ids], int]) -> int:
    axes = cut.weight_ids.get(name, (None,) * len(shape))
    return math.prod(size if ids is None else count(ids) for size, ids in zip(shape, axes))


def costs_of(model: keras.Model, graph: ChannelGraph, kept: np.ndarray) -> Costs:
    """What the model costs with these channels."""
    count = counter(kept)
    params = sum(math.prod(weight.shape) for weight in model.weights)
    size_bytes = sum(math.prod(weight.shape) * _itemsize(weight) for weight in model.weights)
    macs: int | None = 0
    for cut in graph.cuts.values():
        for weight in cut.layer.weights:
            shape = tuple(weight.shape)
            fewer = math.prod(shape) - _numel(cut, weight.name, shape, count)
            params -= fewer
            size_bytes -= fewer * _itemsize(weight)
        per_position = sum(
            _numel(cut, weight.name, tuple(weight.shape), count)
            for weight in cut.layer.weights
            if weight.name in cut.kernels
        )
        for positions in cut.positions:
            macs = None if macs is None or positions is None else macs + positions * per_position
    return Costs(params, size_bytes, macs)


def _itemsize(weight: Any) -> int:
    name = keras.backend.standardize_dtype(weight.dtype)
    return 2 if name == "bfloat16" else np.dtype(name).itemsize


def largest_fraction(fits: Callable[[float], bool], ceiling: float) -> float | None:
    """The largest fraction up to `ceiling` that fits, to one part in a million; None where nothing does.

    Example:
      >>> round(largest_fraction(lambda fraction: fraction <= 0.3, 1.0), 4)
      0.3
    """
    if fits(ceiling):
        return ceiling
    low, high = 0.0, ceiling
    if not fits(low):
        return None
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
