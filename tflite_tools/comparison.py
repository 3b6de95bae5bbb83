"""`compare`: how far a .tflite file's outputs are from another model's, output by output."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_tools.artifact import TFLiteArtifact
from tflite_tools.interpreter import ArtifactLike, Isolate, as_artifact, predict
from tflite_tools.metrics import sqnr_db
from tflite_tools.records import Record
from tflite_tools.text_table import DASH, count, text_table


@dataclasses.dataclass(frozen=True)
class OutputComparison(Record):
    """One output, compared in real values.

    Attributes:
      top1_agreement: fraction of examples with the same highest value; None where there is one value only.
      max_error, mean_error: of the absolute difference, in the output's own unit.
      sqnr_db: signal to quantization noise; None when the outputs are equal or all zero.
      shape: of one example's output.
    """

    name: str
    shape: tuple[int, ...]
    top1_agreement: float | None
    max_error: float
    mean_error: float
    sqnr_db: float | None


@dataclasses.dataclass(frozen=True)
class ComparisonResult(Record):
    """What `compare` found; the properties speak about the first output."""

    num_examples: int
    outputs: tuple[OutputComparison, ...]
    sha256: str | None = None

    @property
    def top1_agreement(self) -> float | None:
        """Of the first output."""
        return self.outputs[0].top1_agreement

    @property
    def max_error(self) -> float:
        """Of the first output."""
        return self.outputs[0].max_error

    @property
    def mean_error(self) -> float:
        """Of the first output."""
        return self.outputs[0].mean_error

    @property
    def sqnr_db(self) -> float | None:
        """Of the first output."""
        return self.outputs[0].sqnr_db

    def __str__(self) -> str:
        header = ["output", "top-1 agreement", "max error", "mean error", "SQNR dB"]
        rows = [
            [
                output.name,
                DASH if output.top1_agreement is None else f"{output.top1_agreement:.4f}",
                f"{output.max_error:.4g}",
                f"{output.mean_error:.4g}",
                DASH if output.sqnr_db is None else f"{output.sqnr_db:.2f}",
            ]
            for output in self.outputs
        ]
        return f"{count(self.num_examples)} examples\n\n{text_table(header, rows)}"


def compare(
    reference: Any,
    artifact: ArtifactLike,
    x: Any,
    *,
    isolate: Isolate = "auto",
) -> ComparisonResult:
    """Compares a .tflite file with the model it came from, or with another file.

    Args:
      reference: a keras.Model or tf_keras.Model, any callable from a batch to outputs, an artifact, or a
        path.
      artifact: the file to judge.
      x: as for `predict`.
      isolate: as for `predict`.

    Returns:
      The result; print it for a table.

    Raises:
      ValueError: the outputs cannot be compared; the message names both shapes.

    Example:
      >>> import keras
      >>> from tflite_tools import convert
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
      >>> result = compare(model, convert(model), np.eye(4, dtype="float32"))
      >>> result.top1_agreement, result.max_error < 1e-6
      (1.0, True)
    """
    artifact = as_artifact(artifact)
    measured = _named_outputs(predict(artifact, x, isolate=isolate))
    expected = _named_outputs(_reference_outputs(reference, x, isolate))
    pairs = _pair(expected, measured)
    outputs = tuple(_compare_one(name, first, second) for name, first, second in pairs)
    return ComparisonResult(num_examples=len(pairs[0][2]), outputs=outputs, sha256=artifact.sha256)


def _reference_outputs(reference: Any, x: Any, isolate: Isolate) -> Any:
    if isinstance(reference, (TFLiteArtifact, str, bytes)) or hasattr(reference, "__fspath__"):
        return predict(reference, x, isolate=isolate)
    if hasattr(reference, "predict"):
        return reference.predict(x, verbose=0)
    if callable(reference):
        return reference(x)
    raise TypeError(
        f"reference: expected a model, a callable or an artifact, got {type(reference).__name__}."
    )


def _named_outputs(outputs: Any) -> dict[str, np.ndarray]:
    if isinstance(outputs, Mapping):
        return {str(name): np.asarray(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return {f"output_{number}": np.asarray(value) for number, value in enumerate(outputs)}
    return {"output": np.asarray(outputs)}


def _pair(
    expected: dict[str, np.ndarray], measured: dict[str, np.ndarray]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Outputs that belong together: by name, otherwise by order where that is the only way the shapes fit."""
    if len(expected) != len(measured):
        raise ValueError(f"The reference has {len(expected)} outputs and the file {len(measured)}.")
    if set(expected) == set(measured):
        pairs = [(name, expected[name], measured[name]) for name in expected]
    else:
        shapes = [value.shape for value in measured.values()]
        if sorted(shapes) != sorted(value.shape for value in expected.values()):
            pairs = [(n, e, m) for (n, m), e in zip(measured.items(), expected.values())]
        elif len(set(shapes)) == len(shapes):
            by_shape = {value.shape: value for value in expected.values()}
            pairs = [(name, by_shape[value.shape], value) for name, value in measured.items()]
        else:
            pairs = [(n, e, m) for (n, m), e in zip(measured.items(), expected.values())]
    for name, first, second in pairs:
        if first.size != second.size or len(first) != len(second):
            raise ValueError(
                f"Output {name!r}: the reference gives {first.shape} and the file {second.shape}."
            )
    return pairs


def _compare_one(name: str, expected: np.ndarray, measured: np.ndarray) -> OutputComparison:
    first = expected.astype(np.float64).reshape(len(expected), -1)
    second = measured.astype(np.float64).reshape(len(measured), -1)
    error = np.abs(first - second)
    agreement = float(np.mean(first.argmax(axis=1) == second.argmax(axis=1))) if first.shape[1] > 1 else None
    return OutputComparison(
        name=name,
        shape=tuple(measured.shape[1:]),
        top1_agreement=agreement,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        sqnr_db=sqnr_db(first, second),
    )
