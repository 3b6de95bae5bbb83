"""Which channels of a network stand and fall together.

Every channel that a layer produces is given an id of its own. Walking the graph, ids flow with the tensors:
a residual addition unites the ids of its two sides, a concatenation puts them side by side, flattening
repeats them. Afterwards every axis of every weight is a row of ids, and removing a channel is removing its id
from all of them at once. Id 0 is FIXED: whatever is united with it (the inputs, the outputs, anything a layer
mixes in a way that cannot be cut) always stays.

Source: the dependency graph of Fang et al. 2023, arXiv:2301.12900, section 3, kept per channel instead of per layer.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

Ids = np.ndarray  # int64 [channels]
Shape = tuple[int | None, ...]

FIXED = 0

# From a function that counts the kept ids of a row to the new value of a constructor field.
NewValue = Callable[[Callable[[Ids], int]], Any]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A tensor as the walk sees it: its shape, and the ids along the one axis whose channels can be cut.

    Attributes:
      shape: with the batch as None.
      axis: the labelled axis, at least 1; None for tensors without axes beside the batch.
      ids: one per entry of that axis.
    """

    shape: Shape
    axis: int | None
    ids: Ids

    @property
    def fixed(self) -> bool:
        """Whether nothing of it was ever labelled."""
        return not np.any(self.ids)


@dataclasses.dataclass
class LayerCut:
    """How one layer shrinks with its channels.

    Attributes:
      path: the layer, "backbone/conv_1" inside a nested model.
      layer: the live Keras layer.
      weight_ids: {weight name: ids or None for every axis}; weights that are not named stay whole.
      fields: {constructor field: function of a counter of kept ids that returns the new value}.
      produced: ids that this layer brings into being, None for layers that pass channels on.
      positions: output positions per example and call (height times width), None where they are not known.
      kernels: names of the weights that are multiplied with the input at each of these positions.
    """

    path: str
    layer: Any
    weight_ids: dict[str, tuple[Ids | None, ...]] = dataclasses.field(default_factory=dict)
    fields: dict[str, NewValue] = dataclasses.field(default_factory=dict)
    produced: Ids | None = None
    positions: list[int | None] = dataclasses.field(default_factory=list)
    kernels: tuple[str, ...] = ()


class ChannelGraph:
    """The ids of a model, their unions, and what every layer does with them."""

    def __init__(self) -> None:
        self._parents: list[int] = [FIXED]
        self._slots: dict[tuple[int, str], Ids] = {}
        self._kept_whole: list[tuple[str, str, list[Ids]]] = []
        self._roots: Ids | None = None  # computed once the walk is over
        self.cuts: dict[int, LayerCut] = {}  # by id() of the layer
        #: {layer path: why the channels that reach it stay whole}
        self.whole: dict[str, str] = {}
        #: (ids, axis) of every tensor that a layer with a kernel reads, in the order of the calls.
        self.reads: list[tuple[Ids, int]] = []

    def fresh(self, count: int) -> Ids:
        """New ids."""
        start = len(self._parents)
        self._roots = None
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def unite(self, first: Ids, second: Ids) -> None:
        """Make two rows of ids one, entry by entry."""
        self._roots = None
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            if one != other:
                # The smaller id survives, so that FIXED does.
                self._parents[max(one, other)] = min(one, other)

    def fix(self, ids: Ids) -> None:
        """Keep these channels whatever happens."""
        self.unite(ids, np.zeros_like(ids))

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def roots(self) -> Ids:
        """For every id the one that stands for its union."""
        if self._roots is None:
            self._roots = np.array([self._root(channel) for channel in range(len(self._parents))])
        return self._roots

    def slot(self, layer: Any, name: str, ids: Ids | None = None, *, count: int = 0) -> Ids:
        """The ids at one place of a layer: of its first call, united with those of every further call."""
        key = (id(layer), name)
        if key not in self._slots:
            self._slots[key] = self.fresh(count) if ids is None else ids
        elif ids is not None:
            self.unite(self._slots[key], ids)
        return self._slots[key]

    def cut(self, layer: Any, path: str) -> LayerCut:
        """The record of a layer, made at its first call."""
        return self.cuts.setdefault(id(layer), LayerCut(path, layer))

    def keep_whole(self, path: str, why: str, tensors: Iterable[Labelled]) -> None:
        """Fix everything that reaches a layer, once the walk is over."""
        self._kept_whole.append((path, why, [tensor.ids for tensor in tensors]))

    def finish(self, outputs: Iterable[Labelled]) -> None:
        """End of the walk: outputs stay as they are, and so does what reaches layers that cannot be cut.

        Only layers that cost something are named in `whole`: a softmax at the very end keeps channels that stay anyway.
        """
        for tensor in outputs:
            self.fix(tensor.ids)
        roots = self.roots()
        for path, why, rows in self._kept_whole:
            if any(np.any(roots[ids]) for ids in rows):
                self.whole.setdefault(path, why)
        for _, _, rows in self._kept_whole:
            for ids in rows:
                self.fix(ids)


def how_many(ids: Ids) -> NewValue:
    """A field that says how many of these there are."""
    return lambda count: count(ids)


def labelled_as_fixed(shape: Sequence[int | None]) -> Labelled:
    """A tensor of which nothing can be cut; its last axis carries the ids.

    Example:
      >>> labelled_as_fixed((None, 4, 3)).ids.tolist()
      [0, 0, 0]
    """
    shape = tuple(shape)
    if len(shape) < 2 or shape[-1] is None:
        return Labelled(shape, None, np.zeros(0, dtype=np.int64))
    return Labelled(shape, len(shape) - 1, np.zeros(shape[-1], dtype=np.int64))


def tensors_in(structure: Any) -> list[Labelled]:
    """All labelled tensors in the arguments of a call."""
    return [leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Labelled)]
