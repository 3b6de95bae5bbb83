"""`compare`: how far a .tflite file's outputs are from another model's, output by output."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_tools.artifact import TFLiteArtifact
from tflite_tools.interpreter import ArtifactLike, Isolate, as_artifact, predict
from tflite_tools.layer_errors import LayerError, layer_errors, plot_layer_errors, short_name, worst_layer
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
    """What `compare` found; the properties speak about the first output.

    Attributes:
      num_examples: examples compared.
      outputs: one row per output.
      layers: one row per inner tensor, when they were asked for.
      sha256: of the judged file.
    """

    num_examples: int
    outputs: tuple[OutputComparison, ...]
    layers: tuple[LayerError, ...] = ()
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

    @property
    def worst_layer(self) -> LayerError | None:
        """The layer that itself lost most signal to quantization noise; None without `layers=True`."""
        return worst_layer(self.layers)

    def plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws the error layer by layer; needs `compare(..., layers=True)` and matplotlib."""
        if not self.layers:
            raise ValueError("plot: there is nothing to draw; compare(..., layers=True) looks at the layers.")
        return plot_layer_errors(self.layers, path)

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
        text = f"{count(self.num_examples)} examples\n\n{text_table(header, rows)}"
        if not self.layers:
            return text
        table = [
            [
                short_name(layer.name),
                layer.operator,
                DASH if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
                DASH if layer.lost_db is None else f"{layer.lost_db:+.1f}",
                f"{layer.max_error:.4g}",
            ]
            for layer in self.layers
        ]
        text += "\n\n" + text_table(["layer", "operator", "SQNR dB", "lost dB", "max error"], table, left=2)
        if self.worst_layer is not None and self.worst_layer.lost_db is not None:
            text += f"\n\n{short_name(self.worst_layer.name)} loses most: {self.worst_layer.lost_db:.1f} dB."
        return text


def compare(
    reference: Any,
    artifact: ArtifactLike,
    x: Any,
    *,
    layers: bool = False,
    isolate: Isolate = "auto",
) -> ComparisonResult:
    """Compares a .tflite file with the model it came from, or with another file.

    Args:
      reference: a keras.Model or tf_keras.Model, any callable from a batch to outputs, an artifact, or a
        path.
      artifact: the file to judge.
      x: as for `predict`.
      layers: also compare layer by layer, over the first 100 examples. A Keras model is converted to a
        float file for that; any other callable has no layers to look at.
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
    rows: tuple[LayerError, ...] = ()
    if layers:
        rows = layer_errors(_float_file(reference), artifact, x, isolate=isolate)
    return ComparisonResult(len(pairs[0][2]), outputs, rows, artifact.sha256)


def _is_file(reference: Any) -> bool:
    return isinstance(reference, (TFLiteArtifact, str, bytes)) or hasattr(reference, "__fspath__")


def _float_file(reference: Any) -> TFLiteArtifact:
    if _is_file(reference):
        return as_artifact(reference)
    if not hasattr(reference, "predict"):
        raise TypeError(
            "layers: needs a Keras model or a .tflite file as the reference, not a plain function."
        )
    from tflite_tools.conversion import convert

    return convert(reference, metadata=False)


def _reference_outputs(reference: Any, x: Any, isolate: Isolate) -> Any:
    if _is_file(reference):
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
