"""In which units a model expects its inputs, as far as its own first layers say: pixels of 0 to 255, degrees, euros.

Random values around 0 say little about a model that begins by dividing by 255: it would see one color. Worse, what
such a model makes of nearly equal inputs hangs on the last digits of float32, in any program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Arithmetic with one number, by the names that Keras 3 gives the operations.
_WITH_NUMBER = {
    "Add": lambda number: (1.0, number),
    "Divide": lambda number: (1.0 / number, 0.0),
    "Multiply": lambda number: (number, 0.0),
    "Subtract": lambda number: (1.0, -number),
    "TrueDivide": lambda number: (1.0 / number, 0.0),
}
_EITHER_WAY_ROUND = ("Add", "Multiply")


class InputUnits:
    """Follows a model's inputs through the layers that only scale and shift them.

    Args:
      inputs: the model's input tensors, symbolic.
    """

    def __init__(self, inputs: Sequence[Any]):
        self._inputs = list(inputs)
        # id of a tensor -> the (operation, arguments, output) of those that read it. Outputs are kept alive.
        self._readers: dict[int, list[tuple[Any, tuple[Any, ...], Any]]] = {id(t): [] for t in inputs}

    def note(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Any) -> None:
        """Tells of one call; calls come in the order of the graph."""
        followed = [
            item for item in keras.tree.flatten([list(args), dict(kwargs)]) if id(item) in self._readers
        ]
        for tensor in followed:
            self._readers[id(tensor)].append((operation, tuple(args), outputs))
        if followed and scale_and_shift_of(operation, args) is not None:
            self._readers.setdefault(id(outputs), [])

    def of(self, number: int) -> tuple[Any, Any]:
        """Scale and shift between the input of that number and what the first other layer reads.

        Returns:
          (scale, shift): the layer reads scale * input + shift; (1.0, 0.0) where the input has several readers.
        """
        scale: Any = 1.0
        shift: Any = 0.0
        tensor = self._inputs[number]
        while len(self._readers.get(id(tensor), ())) == 1:
            operation, args, outputs = self._readers[id(tensor)][0]
            step = scale_and_shift_of(operation, args)
            if step is None:
                break
            scale, shift, tensor = step[0] * scale, step[0] * shift + step[1], outputs
        return scale, shift


def scale_and_shift_of(operation: Any, args: Sequence[Any]) -> tuple[Any, Any] | None:
    """(scale, shift) of a call that computes scale * input + shift, each a number or an array; None for any other."""
    kind = type(operation).__name__
    if kind == "Rescaling":
        found = np.asarray(operation.scale, "float64"), np.asarray(operation.offset, "float64")
    elif kind == "Normalization" and getattr(operation, "mean", None) is not None and not operation.invert:
        deviation = np.sqrt(np.asarray(operation.variance, "float64"))
        if not np.all(deviation > 0):
            return None
        found = 1.0 / deviation, -np.asarray(operation.mean, "float64") / deviation
    elif kind in _WITH_NUMBER and len(args) == 2:
        number = args[0] if kind in _EITHER_WAY_ROUND and _is_number(args[0]) else args[1]
        if not _is_number(number):
            return None
        scale, shift = _WITH_NUMBER[kind](float(number))
        found = np.asarray(scale, "float64"), np.asarray(shift, "float64")
    else:
        return None
    return found if np.all(found[0] != 0) and all(np.isfinite(value).all() for value in found) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value != 0
