"""Frozen results that go to JSON and come back equal."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_R = TypeVar("_R", bound="Record")


class Record:
    """A base for frozen dataclasses of plain values, tuples, dicts and other records.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Point(Record):
      ...     name: str
      ...     at: tuple[float, ...] = ()
      >>> point = Point("a", (1.0, 2.0))
      >>> Point.from_dict(json.loads(point.to_json())) == point
      True
    """

    __slots__ = ()  # records that exist in thousands have slots and no dictionary

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values that `json.dumps` takes; tuples become lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def to_json(self, indent: int | None = 2) -> str:
        """The fields as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls: type[_R], values: Mapping[str, Any]) -> _R:
        """The record that `to_dict` was called on.

        Raises:
          ValueError: a field is missing or has a name that this class does not know; all are listed.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{cls.__name__} needs a dict of its fields, got {type(values).__name__}.")
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(fields))
        missing = sorted(
            name
            for name, f in fields.items()
            if name not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        )
        if unknown or missing:
            raise ValueError(
                f"These are not the fields of a {cls.__name__}: unknown {unknown}, missing {missing}."
            )
        hints = _hints(cls)  # type: ignore[arg-type]
        return cls(**{name: _typed(value, hints[name]) for name, value in values.items()})


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _typed(value: Any, hint: Any) -> Any:
    """Gives back to lists and dicts from JSON the tuples and records that the annotation names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _typed(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(item, arguments[0]) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _typed(item, arguments[1]) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record) and isinstance(value, Mapping):
        return hint.from_dict(value)
    return value
