"""Where quantization costs accuracy: the error of every layer's output against the float model's."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_tools.artifact import TFLiteArtifact
from tflite_tools.interpreter import Isolate, open_runner, prepare, to_raw
from tflite_tools.processes import ChildRunner
from tflite_tools.quantized_values import dequantize
from tflite_tools.records import Record
from tflite_tools.runner import Arrays, TensorSpec
from tflite_tools.schema import Model, Operator, parse

# Every inner tensor of every example passes through Python; a hundred examples settle a mean error.
MAX_EXAMPLES = 100


@dataclasses.dataclass(frozen=True)
class LayerError(Record):
    """One operator's output, in real values, against the same tensor of the reference.

    Attributes:
      name: of the tensor, as in the file.
      operator: its kind, such as CONV_2D.
      sqnr_db: signal to quantization noise over all examples; None when there is no error.
      max_error: of the absolute difference, in the tensor's own unit.
      relative_error: root mean square of the difference over that of the reference; 0 is equal.
      lost_db: how much lower sqnr_db is than that of the operator's worst input: what this layer itself
        did. Negative where a layer averages noise away; None for the first layers.
    """

    name: str
    operator: str
    sqnr_db: float | None
    max_error: float
    relative_error: float | None
    lost_db: float | None


def layer_errors(
    reference: TFLiteArtifact, artifact: TFLiteArtifact, x: Any, *, isolate: Isolate = "auto"
) -> tuple[LayerError, ...]:
    """Errors of all tensors that both files have, in the order in which the judged file computes them.

    Tensors belong together when they have the same name and shape: the converter keeps names when it
    quantizes. Those of one file only (a fused activation, a requantization) have nothing to be compared with.

    Args:
      reference: the float file.
      artifact: the quantized one.
      x: as for `predict`; the first 100 examples are used.
      isolate: as for `predict`.

    Raises:
      ValueError: not one tensor is in both.
    """
    first = open_runner(reference, isolate, {"all_tensors": True})
    second: Any = None
    try:
        second = open_runner(artifact, isolate, {"all_tensors": True})
        pairs = _pairs(first.outputs, second.outputs)
        if not pairs:
            raise ValueError(
                "layers: the two files have no inner tensor in common. They must come from the same model, both "
                "converted by tflite_tools.convert; of a Keras model, pass the model itself as the reference."
            )
        sums = {mine.name: _Sums() for _, mine in pairs}
        head = _head(x)
        values, single = prepare(head, first.inputs)
        feeds_first = to_raw(values, first.inputs)
        feeds_second = to_raw(prepare(head, second.inputs)[0], second.inputs)
        for expected, measured in zip(
            _calls(first, feeds_first, single), _calls(second, feeds_second, single)
        ):
            for theirs, mine in pairs:
                sums[mine.name].add(_real(expected[theirs.name], theirs), _real(measured[mine.name], mine))
    finally:
        for runner in (first, second):
            if isinstance(runner, ChildRunner):
                runner.close()
    return _rows(parse(artifact.content), second.outputs, sums)


def _pairs(
    first: tuple[TensorSpec, ...], second: tuple[TensorSpec, ...]
) -> list[tuple[TensorSpec, TensorSpec]]:
    by_name = {_plain(spec.tensor_name): spec for spec in first}
    pairs = []
    for spec in second:
        other = by_name.get(_plain(spec.tensor_name))
        comparable = spec.is_quantized or spec.dtype.startswith("float")
        if other is not None and other.shape == spec.shape and comparable and other.dtype != "string":
            pairs.append((other, spec))
    return pairs


def _plain(name: str) -> str:
    """A tensor's name without what quantizing adds to it."""
    return re.sub(r"(_int8|_int16|_uint8|_quantized|_dequantize)$", "", name)


def _head(x: Any) -> Any:
    """The first examples of x, whatever form it has."""
    if isinstance(x, Mapping):
        return {name: values[:MAX_EXAMPLES] for name, values in x.items()}
    if isinstance(x, (list, tuple)):
        return [values[:MAX_EXAMPLES] for values in x]
    return np.asarray(x)[:MAX_EXAMPLES]


def _calls(runner: Any, feeds: Arrays, single: bool) -> Any:
    if single:
        yield runner.once(feeds)
        return
    size = runner.own_batch()
    count = min(MAX_EXAMPLES, len(next(iter(feeds.values()))))
    for start in range(0, count - size + 1, size):
        yield runner.once({name: value[start : start + size] for name, value in feeds.items()})


def _real(values: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if spec.scale is not None and spec.zero_point is not None:
        return dequantize(values, spec.scale, spec.zero_point)
    return values


class _Sums:
    """Sums over examples, so that no tensor is kept."""

    def __init__(self) -> None:
        self.signal = self.noise = self.largest = 0.0

    def add(self, expected: np.ndarray, measured: np.ndarray) -> None:
        reference = np.asarray(expected, np.float64)
        error = np.abs(reference - np.asarray(measured, np.float64))
        self.signal += float(np.sum(reference**2))
        self.noise += float(np.sum(error**2))
        self.largest = max(self.largest, float(error.max(initial=0.0)))

    def sqnr_db(self) -> float | None:
        return 10 * float(np.log10(self.signal / self.noise)) if self.noise > 0 and self.signal > 0 else None


def _rows(model: Model, outputs: tuple[TensorSpec, ...], sums: dict[str, _Sums]) -> tuple[LayerError, ...]:
    """One row per compared tensor; what a layer lost is told from the tensors that lead to it."""
    graph = model.subgraphs[0]
    named = {number: spec.name for number, spec in zip(_written(graph.operators), outputs)}
    reached: dict[int, float | None] = {}  # SQNR of a tensor, or of the worst compared tensor before it
    rows = []
    for operator in graph.operators:
        before = [reached[number] for number in operator.inputs if number in reached]
        known = [value for value in before if value is not None]
        worst = min(known) if known else None
        for number in operator.outputs:
            name = named.get(number)
            if name is None or name not in sums:
                if before:
                    reached[number] = worst
                continue
            total = sums[name]
            now = total.sqnr_db()
            reached[number] = now
            rows.append(
                LayerError(
                    name=graph.tensors[number].name,
                    operator=operator.name,
                    sqnr_db=now,
                    max_error=total.largest,
                    relative_error=(total.noise / total.signal) ** 0.5 if total.signal > 0 else None,
                    lost_db=None if worst is None or now is None else worst - now,
                )
            )
    return tuple(rows)


def _written(operators: tuple[Operator, ...]) -> list[int]:
    return [number for operator in operators for number in operator.outputs]


def plot_layer_errors(rows: tuple[LayerError, ...], path: str | os.PathLike[str]) -> pathlib.Path:
    """Draws SQNR layer by layer; the layer that lost most is marked.

    Args:
      rows: from `layer_errors`.
      path: .png, .svg or .pdf.

    Raises:
      ModuleNotFoundError: matplotlib is missing; the message says how to install it.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: pip install 'keras-kd[report]'.") from error
    figure = Figure(figsize=(8, max(2.5, 0.28 * len(rows) + 1)), layout="constrained")
    axes = figure.subplots()
    worst = worst_layer(rows)
    # Blue and orange of the Okabe-Ito palette, which color-blind people can tell apart.
    colors = ["#D55E00" if row is worst else "#0072B2" for row in rows]
    axes.barh(range(len(rows)), [row.sqnr_db or 0.0 for row in rows], color=colors)
    axes.set_yticks(range(len(rows)), [f"{short_name(row.name)}  {row.operator}" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("SQNR in dB (higher is better)")
    if worst is not None and worst.lost_db is not None:
        axes.set_title(
            f"{short_name(worst.name)} loses most: {worst.lost_db:.1f} dB", fontsize=10, loc="left"
        )
    target = pathlib.Path(path)
    figure.savefig(target)
    return target


def worst_layer(rows: tuple[LayerError, ...]) -> LayerError | None:
    """The layer that itself lost most, or None."""
    losers = [row for row in rows if row.lost_db is not None and row.lost_db > 0]
    return max(losers, key=lambda row: row.lost_db or 0.0, default=None)


def short_name(name: str) -> str:
    """The layer's part of a tensor's name.

    Example:
      >>> short_name("net_1/relu_1/Relu;net_1/conv_1/convolution")
      'relu_1'
      >>> short_name("StatefulPartitionedCall:0")
      'StatefulPartitionedCall:0'
    """
    parts = name.split(";")[0].split("/")
    # BatchNormalization opens a scope of its own inside the layer's.
    scopes = [part for part in parts[:-1] if part != "batchnorm"]
    return scopes[-1] if scopes else parts[0]
