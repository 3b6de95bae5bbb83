"""Who somebody else's function is: its name, its settings, and how it behaves.

A manifest cannot hold a function. It holds what tells it from another: the name, the arguments that it was made with
(for dataclasses and `functools.partial`), and a few numbers of what it returns, which also notice a changed body.
"""

import dataclasses
import functools
import importlib
import sys
from typing import Any

import numpy as np

_OWN_MODULES = ("keras_kd.teachers.augmentations",)
PROBE_EXAMPLES = 8
_PROBE_VALUES = 32


def name_of(function: Any) -> str:
    """A name that stays the same from run to run.

    Example:
      >>> name_of(functools.partial(max, 3)), name_of(len)
      ('partial(max, 3)', 'len')
    """
    if isinstance(function, functools.partial):
        parts = [name_of(function.func), *map(repr, function.args)]
        parts += [f"{key}={value!r}" for key, value in sorted(function.keywords.items())]
        return f"partial({', '.join(parts)})"
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        return repr(function)
    name = getattr(function, "__qualname__", None)
    return name if isinstance(name, str) else type(function).__qualname__


def describe(function: Any) -> dict[str, Any]:
    """Name, module and, for the augmentations of keras_kd, the arguments to make it again."""
    kind = type(function)
    record: dict[str, Any] = {"name": name_of(function), "module": getattr(function, "__module__", None)}
    if kind.__module__ in _OWN_MODULES and dataclasses.is_dataclass(function):
        record["module"] = kind.__module__
        record["config"] = function.to_config()  # type: ignore[union-attr]
    return record


def recall(record: dict[str, Any]) -> Any:
    """The function that `describe` described, or None where it is not at hand.

    Only keras_kd's own modules are imported for it: a cache may come from somebody else, and a file must not decide
    what code is loaded. A function of a module that the program has imported itself is found.
    """
    if record.get("config") is not None and record["module"] in _OWN_MODULES:
        return importlib.import_module(record["module"]).from_config(record["config"])
    found: Any = sys.modules.get(record.get("module") or "")
    for part in record["name"].split("."):
        found = getattr(found, part, None)
    return found if callable(found) and name_of(found) == record["name"] else None


def sample_values(leaves: list[np.ndarray]) -> list[list[float]]:
    """A few values of each array, evenly spread, for a manifest."""
    samples = []
    for leaf in leaves:
        flat = np.asarray(leaf, dtype=np.float64).reshape(-1)
        chosen = np.linspace(0, max(flat.size - 1, 0), min(_PROBE_VALUES * PROBE_EXAMPLES, flat.size))
        samples.append([float(f"{value:.6g}") for value in flat[chosen.astype(int)]])
    return samples


def same_values(recorded: list[list[float]], found: list[list[float]], *, tolerance: float) -> bool:
    """Whether two samples agree, up to `tolerance` times their largest value.

    Example:
      >>> same_values([[1.0, 2.0]], [[1.0, 2.001]], tolerance=1e-3)
      True
    """
    if [len(part) for part in recorded] != [len(part) for part in found]:
        return False
    return all(
        np.allclose(
            np.array(a), np.array(b), rtol=0.0, atol=tolerance * max(1e-6, np.abs(a).max(initial=0.0))
        )
        for a, b in zip(recorded, found)
    )
