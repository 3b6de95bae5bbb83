"""Stage and Report: accuracy, bytes and latency of a model at every step of its way to the device."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tflite_tools.benchmarking.result import OperatorTime
from tflite_tools.records import Record
from tflite_tools.text_table import count, markdown_table, microseconds, percent, short_count, text_table


@dataclass(frozen=True)
class Stage(Record):
    """One step on the way: a teacher, a student, a compressed file. A figure that was not measured is None.

    Attributes:
      name: unique within a report.
      accuracy: fraction of right answers on the test set, 0 to 1.
      parameters: number of weights.
      sparsity: fraction of zeros among them, 0 to 1.
      size_bytes, gzip_bytes: of the file as saved.
      latency_us: median microseconds per inference.
      macs: multiply-accumulates per inference.
      notes: what the reader has to know about these figures; printed below the table.

    Example:
      >>> Stage.from_dict(Stage("int8", accuracy=0.91, size_bytes=20_000).to_dict()).accuracy
      0.91
    """

    name: str
    accuracy: float | None = None
    parameters: int | None = None
    sparsity: float | None = None
    size_bytes: int | None = None
    gzip_bytes: int | None = None
    latency_us: float | None = None
    macs: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        for name in ("accuracy", "sparsity"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                problems.append(f"{name} must be a fraction from 0 to 1 or None, got {value!r}")
        for name in ("parameters", "size_bytes", "gzip_bytes", "latency_us", "macs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                problems.append(f"{name} must be 0 or more, or None, got {value!r}")
        if problems:
            raise ValueError(f"Stage {self.name!r}: {'; '.join(problems)}.")
        # NumPy scalars come in from metrics; JSON takes Python numbers only.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "item"):
                object.__setattr__(self, field.name, value.item())
        notes = (self.notes,) if isinstance(self.notes, str) else tuple(self.notes)
        object.__setattr__(self, "notes", notes)


@dataclass(frozen=True)
class Report(Record):
    """A table of stages, and whatever is known beyond it. `str()` prints the table.

    Attributes:
      title: of the page.
      stages: in the order of the way, the reference (a teacher) first.
      curves: {stage: {metric: [value per epoch]}}; "val_" metrics are drawn with their training twin.
      layer_sparsity: {layer: fraction of zeros}, or {stage: {layer: fraction}}.
      layer_error: {layer: root mean square error over that of the float values}, or {stage: {...}}.
      confusion: counts [true class][predicted class] of the last stage, or {stage: counts}. With several
        stages, the page shows which classes lost against the first, and what they became.
      class_names: in the order of the classes.
      per_class: {stage: [accuracy per class]}; worked out from `confusion` where that is given.
      op_times: the `ops` of a BenchmarkResult, or {stage: ops}.
      notes: remarks for the end of the page.

    Raises:
      ValueError: parts that do not fit together; all are named.
    """

    title: str
    stages: tuple[Stage, ...]
    curves: dict[str, dict[str, list[float | None]]] | None = dataclasses.field(default=None, kw_only=True)
    layer_sparsity: dict[str, dict[str, float]] | None = dataclasses.field(default=None, kw_only=True)
    layer_error: dict[str, dict[str, float]] | None = dataclasses.field(default=None, kw_only=True)
    confusion: dict[str, list[list[int]]] | None = dataclasses.field(default=None, kw_only=True)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, kw_only=True)
    per_class: dict[str, list[float | None]] | None = dataclasses.field(default=None, kw_only=True)
    op_times: dict[str, tuple[OperatorTime, ...]] | None = dataclasses.field(default=None, kw_only=True)
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        stages = tuple(self.stages)
        last = stages[-1].name if stages else ""
        confusion = _by_stage(self.confusion, last, _counts)
        per_class = _by_stage(self.per_class, last, lambda values: [_number(value) for value in values])
        if confusion:
            per_class = {
                **{stage: _recalls(matrix) for stage, matrix in confusion.items()},
                **(per_class or {}),
            }
        values = {
            "stages": stages,
            "curves": None
            if self.curves is None
            else {
                stage: {name: [_number(v) for v in history] for name, history in metrics.items()}
                for stage, metrics in self.curves.items()
            },
            "layer_sparsity": _by_stage(self.layer_sparsity, last, _layers),
            "layer_error": _by_stage(self.layer_error, last, _layers),
            "confusion": confusion,
            "class_names": None
            if self.class_names is None
            else tuple(str(name) for name in self.class_names),
            "per_class": per_class,
            "op_times": _by_stage(self.op_times, last, _operator_times),
            "notes": (self.notes,) if isinstance(self.notes, str) else tuple(self.notes),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        problems = self._problems()
        if problems:
            raise ValueError(f"The report does not fit together: {'; '.join(problems)}.")

    def _problems(self) -> list[str]:
        names = [stage.name for stage in self.stages]
        problems = [] if names else ["there are no stages"]
        problems += [
            f"two stages are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})
        ]
        sizes: set[int] = set()
        for stage, matrix in (self.confusion or {}).items():
            if any(len(row) != len(matrix) for row in matrix):
                problems.append(f"the confusion matrix of {stage!r} is not square")
            sizes.add(len(matrix))
        sizes |= {len(values) for values in (self.per_class or {}).values()}
        if self.class_names is not None and (self.confusion or self.per_class):
            sizes.add(len(self.class_names))
        if len(sizes) > 1:
            problems.append(
                f"class_names, confusion and per_class disagree on the number of classes: {sorted(sizes)}"
            )
        return problems

    def __str__(self) -> str:
        header, rows = stage_table(self.stages)
        return "\n".join([self.title, "", text_table(header, rows), *self._footnotes()])

    def to_markdown(self) -> str:
        """The report as GitHub-flavored Markdown: its tables and remarks. Charts are `write_plots`' part."""
        from tflite_tools.report_sections import changes_table, layer_table, operator_time_table

        parts = [f"# {self.title}", markdown_table(*stage_table(self.stages))]
        parts += ["\n".join(f"- {note}" for note in self._footnotes())] if self._footnotes() else []
        for title, table in (
            ("Accuracy per class", changes_table(self)),
            ("Sparsity per layer", layer_table(self.layer_sparsity)),
            ("Error per layer against float", layer_table(self.layer_error)),
            *(
                (f"Operator times: {stage}", operator_time_table(ops))
                for stage, ops in (self.op_times or {}).items()
            ),
        ):
            if table:
                parts += [f"## {title}", markdown_table(*table)]
        return "\n\n".join(parts) + "\n"

    def _footnotes(self) -> list[str]:
        return [f"{stage.name}: {note}" for stage in self.stages for note in stage.notes] + list(self.notes)

    def write_html(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes one self-contained page: no scripts, nothing loaded from anywhere.

        Raises:
          ImportError: Jinja2 or matplotlib is missing; the message says how to install them.
        """
        from tflite_tools.report_page import report_page

        return _write(path, report_page(self))

    def write_json(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes what `from_dict` reads back."""
        return _write(path, self.to_json() + "\n")

    def write_plots(self, directory: str | os.PathLike[str]) -> list[pathlib.Path]:
        """Writes every chart of the page as a PNG file into a folder, and returns their paths.

        Raises:
          ImportError: matplotlib is missing; the message says how to install it.
        """
        from tflite_tools.report_plots import write_pngs

        return write_pngs(self, pathlib.Path(directory))


def stage_table(stages: Iterable[Stage]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of stages, as text."""
    header = ["stage", "accuracy", "parameters", "sparsity", "bytes", "gzipped", "latency", "MACs"]
    rows = [
        [
            stage.name,
            percent(stage.accuracy, 2),
            count(stage.parameters),
            percent(stage.sparsity),
            count(stage.size_bytes),
            count(stage.gzip_bytes),
            microseconds(stage.latency_us),
            short_count(stage.macs),
        ]
        for stage in stages
    ]
    return header, rows


def read_report(path: str | os.PathLike[str]) -> Report:
    """Reads what `Report.write_json` wrote.

    Raises:
      ValueError: the file is no report; the message says what is wrong with it.
    """
    try:
        return Report.from_dict(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no report: {error}") from None


def _write(path: str | os.PathLike[str], text: str) -> pathlib.Path:
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


def _by_stage(value: Any, last: str, convert: Any) -> Any:
    """{stage: part} of what was given for the last stage alone, or for several."""
    if value is None:
        return None
    if isinstance(value, Mapping) and all(not _is_number(item) for item in value.values()):
        return {str(stage): convert(part) for stage, part in value.items()}
    return {last: convert(value)}


def _is_number(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (int, float))
        or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0)
    )


def _number(value: Any) -> float | None:
    """A float; a diverged loss (NaN) is None, because JSON has no NaN."""
    if value is None or not math.isfinite(float(value)):
        return None
    return float(value)


def _counts(matrix: Any) -> list[list[int]]:
    return [[int(value) for value in row] for row in matrix]


def _layers(layers: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in layers.items() if _number(value) is not None}


def _operator_times(ops: Any) -> tuple[OperatorTime, ...]:
    return tuple(op if isinstance(op, OperatorTime) else OperatorTime.from_dict(op) for op in ops)


def _recalls(matrix: list[list[int]]) -> list[float | None]:
    totals = [float(sum(row)) for row in matrix]
    return [
        row[i] / total if i < len(row) and total else None
        for i, (row, total) in enumerate(zip(matrix, totals))
    ]
