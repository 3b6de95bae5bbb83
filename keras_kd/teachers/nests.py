"""Nested outputs and inputs as flat lists of arrays, and back, without loading TensorFlow."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def leaves(structure: Any) -> list[Any]:
    """The leaves of dicts (keys sorted), lists and tuples, in order.

    Example:
      >>> leaves({"b": 1, "a": (2, [3])})
      [2, 3, 1]
    """
    if isinstance(structure, dict):
        return [leaf for key in sorted(structure) for leaf in leaves(structure[key])]
    if isinstance(structure, (list, tuple)):
        return [leaf for part in structure for leaf in leaves(part)]
    return [structure]


def skeleton(structure: Any) -> Any:
    """The structure without its leaves, as JSON can hold it; a leaf is None.

    Example:
      >>> skeleton({"a": (1, 2)})
      {'dict': {'a': {'tuple': [None, None]}}}
    """
    if isinstance(structure, dict):
        return {"dict": {key: skeleton(structure[key]) for key in sorted(structure)}}
    if isinstance(structure, (list, tuple)):
        kind = "list" if isinstance(structure, list) else "tuple"
        return {kind: [skeleton(part) for part in structure]}
    return None


def assemble(frame: Any, values: Sequence[Any]) -> Any:
    """A structure from its skeleton and its leaves; lists become tuples, which is what tf.data takes.

    Example:
      >>> assemble(skeleton({"a": (1, 2), "b": 3}), ["x", "y", "z"])
      {'a': ('x', 'y'), 'b': 'z'}
    """
    return _built(frame, iter(values))


def _built(part: Any, remaining: Iterator[Any]) -> Any:
    # Not a function inside `assemble`: one that calls itself is a cycle, which would keep whole batches in memory until
    # Python looks for cycles.
    if part is None:
        return next(remaining)
    if "dict" in part:
        return {key: _built(inner, remaining) for key, inner in part["dict"].items()}
    return tuple(_built(inner, remaining) for inner in part.get("tuple", part.get("list")))


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """The same structure with a function applied to every leaf; lists become tuples.

    Example:
      >>> map_leaves(lambda leaf: 2 * leaf, {"a": [1, 2]})
      {'a': (2, 4)}
    """
    return assemble(skeleton(structure), [function(leaf) for leaf in leaves(structure)])
