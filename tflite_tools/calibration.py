"""Calibration data: brought into one form, and checked against the model before the conversion runs."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_tools.errors import CalibrationError, nearest
from tflite_tools.traced import InputSpec

# TensorFlow's guide asks for 100 to 500 examples; more cost time and, the ranges being minima and maxima,
# make them wider rather than better.
MAX_EXAMPLES = 500
FEW_EXAMPLES = 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Checked calibration data.

    Attributes:
      arrays: input name to values [examples, ...], of the model's dtype.
      warnings: what is allowed but looks wrong.
    """

    arrays: Mapping[str, np.ndarray]
    warnings: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return len(next(iter(self.arrays.values())))

    def sha256(self) -> str:
        """SHA-256 over all values in order, so that a conversion can be repeated."""
        digest = hashlib.sha256()
        for name, values in self.arrays.items():
            digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """The data in batches of exactly batch_size, the last one filled up from the start."""
        for start in range(0, self.num_examples, batch_size):
            rows = np.arange(start, start + batch_size) % self.num_examples
            yield {name: values[rows] for name, values in self.arrays.items()}


def check_calibration(data: Any, inputs: Sequence[InputSpec]) -> Calibration:
    """Brings calibration data into one form and checks them against the model's inputs.

    Args:
      data: an array [examples, ...]; for several inputs a dictionary by input name, or a tuple or list in the
        model's order; a batched tf.data.Dataset or PyDataset of x or (x, y); or a callable that yields
        batches, as TensorFlow's `representative_dataset` does.
      inputs: the model's inputs.

    Returns:
      At most 500 examples, spread evenly over an array, from the start of anything that streams.

    Raises:
      CalibrationError: with every problem found.
    """
    problems: list[str] = []
    columns = _columns(data, inputs, problems)
    if problems:
        raise CalibrationError(problems)
    warnings: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for spec in inputs:
        values = _check_one(columns[spec.name], spec, problems, warnings)
        if values is not None:
            arrays[spec.name] = values
    counts = {name: len(values) for name, values in arrays.items()}
    if len(set(counts.values())) > 1:
        problems.append(f"the inputs have different numbers of examples: {counts}.")
    if problems:
        raise CalibrationError(problems)
    count = next(iter(counts.values()))
    if count < FEW_EXAMPLES:
        warnings.append(
            f"only {count} calibration example{'s' * (count != 1)}: the ranges of the activations are found from "
            "them. 100 to 500 that look like real inputs are usual."
        )
    return Calibration(arrays, tuple(warnings))


def _columns(data: Any, inputs: Sequence[InputSpec], problems: list[str]) -> dict[str, np.ndarray]:
    """Input name to array, whatever form the data came in."""
    if isinstance(data, Mapping) or _is_array(data) or _is_tuple_of_arrays(data, inputs):
        whole = _named(data, inputs, problems)
        return {name: _spread(values) for name, values in whole.items()}
    batches: list[dict[str, np.ndarray]] = []
    taken = 0
    for element in itertools.islice(_stream(data, problems), MAX_EXAMPLES):
        batch = _named(_features(element, inputs), inputs, problems)
        if problems:
            return {}
        batches.append(batch)
        first = next(iter(batch.values()))
        taken += len(first) if first.ndim else 1
        if taken >= MAX_EXAMPLES:
            break
    if not problems and not batches:
        problems.append("there is not a single example in them.")
    if problems:
        return {}
    try:
        return {
            spec.name: np.concatenate([batch[spec.name] for batch in batches])[:MAX_EXAMPLES]
            for spec in inputs
        }
    except ValueError as error:
        problems.append(f"their batches do not fit together: {error}.")
        return {}


def _is_array(data: Any) -> bool:
    # tf.data.Dataset has __iter__ and no shape; arrays, eager tensors and memory maps have both.
    return hasattr(data, "shape") and hasattr(data, "dtype") and not callable(data)


def _is_tuple_of_arrays(data: Any, inputs: Sequence[InputSpec]) -> bool:
    return (
        isinstance(data, (tuple, list))
        and len(data) > 0
        and (len(data) == len(inputs) or isinstance(data, tuple))
        and all(_is_array(part) and np.ndim(part) > 0 for part in data)
    )


def _stream(data: Any, problems: list[str]) -> Iterator[Any]:
    if hasattr(data, "__getitem__") and hasattr(data, "num_batches"):  # a Keras PyDataset
        return (data[number] for number in range(data.num_batches))
    produced = data() if isinstance(data, Callable) else data  # type: ignore[arg-type]
    if not isinstance(produced, Iterable):
        problems.append(
            "calibration: expected an array, a tf.data.Dataset or a callable that yields batches, got "
            f"{type(data).__name__}."
        )
        return iter(())
    return iter(produced)


def _features(element: Any, inputs: Sequence[InputSpec]) -> Any:
    """The inputs of one element of a stream: (x, y) and (x, y, weight) lose everything but x."""
    if isinstance(element, tuple) and len(element) in (2, 3) and len(inputs) != len(element):
        return element[0]
    if isinstance(element, tuple) and isinstance(element[0], (Mapping, tuple, list)):
        return element[0]
    return element


def _named(data: Any, inputs: Sequence[InputSpec], problems: list[str]) -> dict[str, np.ndarray]:
    names = [spec.name for spec in inputs]
    if isinstance(data, Mapping):
        for name in names:
            if name not in data:
                problems.append(
                    f"there is nothing for the input {name!r}; they have {sorted(map(str, data))}."
                )
        for name in data:
            if name not in names:
                problems.append(
                    f"the model has no input {name!r}; it has {names}.{nearest(str(name), names)}"
                )
        return {name: np.asarray(data[name]) for name in names if name in data}
    parts = list(data) if isinstance(data, (tuple, list)) and not _is_array(data) else [data]
    if len(parts) != len(names):
        problems.append(
            f"they hold {len(parts)} array{'s' * (len(parts) != 1)}, and the model has the inputs {names}."
        )
        return {}
    return {name: np.asarray(part) for name, part in zip(names, parts)}


def _spread(values: np.ndarray) -> np.ndarray:
    if values.ndim == 0 or len(values) <= MAX_EXAMPLES:
        return values
    return values[np.linspace(0, len(values) - 1, MAX_EXAMPLES).round().astype(int)]


def _check_one(
    values: np.ndarray, spec: InputSpec, problems: list[str], warnings: list[str]
) -> np.ndarray | None:
    name = f"input {spec.name!r}"
    if values.ndim == 0 or values.shape[0] == 0:
        problems.append(f"{name}: there is not a single example in an array of shape {values.shape}.")
        return None
    expected = spec.shape[1:]
    if len(values.shape) - 1 != len(expected) or any(
        e is not None and e != v for e, v in zip(expected, values.shape[1:])
    ):
        problems.append(
            f"{name}: expected shape [examples, {', '.join(map(str, expected))}], got {list(values.shape)}."
            f"{_shape_hint(values.shape, expected)}"
        )
        return None
    if values.dtype == object or values.dtype.kind in "SUMmV":
        problems.append(f"{name}: expected numbers of {spec.dtype}, got {values.dtype}.")
        return None
    wanted = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
    if wanted.kind in "iu" and values.dtype.kind == "f" and not np.array_equal(values, np.round(values)):
        problems.append(f"{name}: the model takes whole numbers ({spec.dtype}), and the data have fractions.")
        return None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        problems.append(f"{name}: {bad:,} of {values.size:,} values are NaN or infinite.")
        return None
    if values.size > 1 and values.min() == values.max():
        problems.append(
            f"{name}: every value is {values.flat[0]!s}; a constant says nothing about the ranges."
        )
        return None
    if len(values) > 1 and all(np.array_equal(values[0], other) for other in values[1:]):
        problems.append(f"{name}: all {len(values)} examples are the same.")
        return None
    return values.astype(wanted)


def _shape_hint(got: tuple[int, ...], expected: tuple[int | None, ...]) -> str:
    if tuple(got) == tuple(expected):
        return " That is one example without the batch axis: x[None] adds it."
    if len(got) == len(expected) and tuple(got[1:]) == tuple(expected[:-1]) and expected[-1] == 1:
        return " The last axis (one channel) is missing: x[..., None] adds it."
    if len(expected) == 3 and len(got) == 4 and (*got[2:], got[1]) == tuple(expected):
        return " The channels come first in the data and last in the model: np.moveaxis(x, 1, -1)."
    return ""
