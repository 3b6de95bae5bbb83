"""Models x threads x delegates in one call: one table, one plot, and a comparison of two such runs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tflite_tools.benchmarking.adb import DeviceError, DeviceLostError
from tflite_tools.benchmarking.dispatch import benchmark
from tflite_tools.benchmarking.result import BenchmarkResult
from tflite_tools.errors import ModelCrashError, UnsupportedModelError, nearest, sentence
from tflite_tools.model_source import content_of
from tflite_tools.records import Record
from tflite_tools.text_table import DASH, count, microseconds, text_table

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact
    from tflite_tools.report import Report

# Delegate -> the options of the target that turn it on.
_DELEGATES: dict[str, dict[str, bool]] = {
    "none": {"use_xnnpack": False},
    "xnnpack": {"use_xnnpack": True},
    "gpu": {"use_xnnpack": True, "use_gpu": True},
    "nnapi": {"use_xnnpack": True, "use_nnapi": True},
}
_TARGETS = {"host": ("none", "xnnpack"), "android": tuple(_DELEGATES)}
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito


@dataclass(frozen=True)
class MatrixCell(Record):
    """One model with one number of threads and one delegate; `result` is None where `error` says why."""

    model: str
    size_bytes: int
    num_threads: int
    delegate: str
    result: BenchmarkResult | None
    error: str | None = None

    @property
    def latency_us(self) -> float | None:
        """The median, or the mean where the program prints no median."""
        found = self.result.latency_us if self.result is not None else None
        if found is None:
            return None
        return found.median if found.median is not None else found.mean

    @property
    def key(self) -> str:
        """What tells this cell from the others."""
        return (
            f"{self.model}, {self.num_threads} thread{'' if self.num_threads == 1 else 's'}, {self.delegate}"
        )


@dataclass(frozen=True)
class Matrix(Record):
    """All cells, in the order in which they ran. `str()` prints a table."""

    target: str
    cells: tuple[MatrixCell, ...]

    def __str__(self) -> str:
        device = next((cell.result.device for cell in self.cells if cell.result is not None), DASH)
        columns = list(dict.fromkeys((cell.num_threads, cell.delegate) for cell in self.cells))
        found = {(cell.model, cell.num_threads, cell.delegate): cell for cell in self.cells}
        rows = []
        for model in dict.fromkeys(cell.model for cell in self.cells):
            cells = [found.get((model, *column)) for column in columns]
            size = next(cell.size_bytes for cell in self.cells if cell.model == model)
            times = ["failed" if c and c.error else microseconds(c.latency_us if c else None) for c in cells]
            rows.append([model, count(size), *times])
        header = ["model", "bytes", *(f"{delegate} x{threads}" for threads, delegate in columns)]
        lines = [f"{self.target}: {device}", "", text_table(header, rows)]
        lines += [f"{cell.key}: {cell.error}" for cell in self.cells if cell.error]
        lines += [
            f"{cell.key}: {warning}"
            for cell in self.cells
            if cell.result is not None
            for warning in cell.result.warnings
        ]
        return "\n".join(lines)

    def to_report(self, title: str = "Benchmark matrix") -> Report:
        """A report with one stage per cell, which `report` reads, merges and draws."""
        from tflite_tools.report import Report, Stage

        stages = tuple(
            Stage(
                cell.key,
                size_bytes=cell.size_bytes,
                latency_us=cell.latency_us,
                notes=(cell.error,) if cell.error else cell.result.warnings if cell.result else (),
            )
            for cell in self.cells
        )
        ops = {
            cell.key: cell.result.ops for cell in self.cells if cell.result is not None and cell.result.ops
        }
        return Report(title, stages, op_times=ops or None)

    def write_plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws all latencies as bars, by model.

        Raises:
          ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("The plot needs matplotlib: pip install 'keras-kd[report]'") from None
        models = list(dict.fromkeys(cell.model for cell in self.cells))
        columns = list(dict.fromkeys((cell.num_threads, cell.delegate) for cell in self.cells))
        figure: Any = Figure(figsize=(8.0, 1.7 + 0.25 * len(self.cells)), constrained_layout=True)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        height = 0.8 / len(columns)
        longest = max((cell.latency_us or 0.0 for cell in self.cells), default=0.0) / 1e3
        for number, (threads, delegate) in enumerate(columns):
            found = {c.model: c for c in self.cells if (c.num_threads, c.delegate) == (threads, delegate)}
            cells = [(i, found[model]) for i, model in enumerate(models) if model in found]
            places = [i + (number - (len(columns) - 1) / 2) * height for i, _ in cells]
            axes.barh(
                places,
                [(cell.latency_us or 0.0) / 1e3 for _, cell in cells],
                height=0.9 * height,
                color=_COLORS[number % len(_COLORS)],
                label=f"{delegate}, {threads} thread{'' if threads == 1 else 's'}",
            )
            # Models differ by factors of hundreds: the bar of a fast one is not seen beside that of a slow one.
            for place, (_, cell) in zip(places, cells):
                text = "failed" if cell.error else microseconds(cell.latency_us)
                start = (cell.latency_us or 0.0) / 1e3 + 0.01 * longest
                axes.text(start, place, text, va="center", fontsize=8)
        axes.set_yticks(range(len(models)), models)
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per inference")
        axes.margins(x=0.12)  # room for the figures
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=min(4, len(columns)), frameon=False, fontsize=8)
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=120)
        return target


def benchmark_matrix(
    models: Mapping[str, TFLiteArtifact | bytes | str | os.PathLike[str]],
    target: str = "host",
    *,
    threads: Sequence[int] = (1,),
    delegates: Sequence[str] = ("xnnpack",),
    on_cell: Callable[[MatrixCell], None] | None = None,
    **options: Any,
) -> Matrix:
    """Benchmarks every model with every number of threads and every delegate.

    What fails is noted in its cell, and the others go on; when the device goes away, the rest is noted as not run.

    Args:
      models: {name: artifact, bytes or path}.
      target: "host" or "android".
      threads: numbers of threads.
      delegates: of "none", "xnnpack", and on Android "gpu" and "nnapi".
      on_cell: called after each cell.
      **options: of the target, the same for all.

    Returns:
      A `Matrix`.

    Raises:
      ValueError: nothing to run, or an unknown target or delegate; all problems at once.
    """
    problems = [
        f"{name} is empty"
        for name, values in (("models", models), ("threads", threads), ("delegates", delegates))
        if not values
    ]
    if target not in _TARGETS:
        problems.append(
            f"target must be one of {', '.join(_TARGETS)}, got {target!r}{nearest(target, _TARGETS)}"
        )
    known = _TARGETS.get(target, tuple(_DELEGATES))
    problems += [
        f"delegates on {target}: one of {', '.join(known)}, got {name!r}{nearest(name, known)}"
        for name in delegates
        if name not in known
    ]
    if problems:
        raise ValueError(sentence(problems))
    contents = {name: content_of(model) for name, model in models.items()}
    cells: list[MatrixCell] = []
    lost: str | None = None
    for name, content in contents.items():
        for number in threads:
            for delegate in delegates:
                result, error = None, lost
                if lost is None:
                    try:
                        chosen = {**options, **_DELEGATES[delegate], "num_threads": number}
                        result = benchmark(content, target, **chosen)
                    except DeviceLostError as failure:
                        error, lost = str(failure), "not run: the device went away before"
                    except (DeviceError, ModelCrashError, UnsupportedModelError) as failure:
                        error = str(failure)
                cells.append(MatrixCell(name, len(content), number, delegate, result, error))
                if on_cell is not None:
                    on_cell(cells[-1])
    return Matrix(target, tuple(cells))


@dataclass(frozen=True)
class Change(Record):
    """One cell in two runs; None where a run lacks it or it failed there.

    Attributes:
      cell: model, threads and delegate.
      before_us, after_us: the latencies.
      percent: how much more the second takes.
      same_file: whether both measured the same bytes.
    """

    cell: str
    before_us: float | None
    after_us: float | None
    percent: float | None
    same_file: bool | None


def changes(before: Matrix, after: Matrix) -> tuple[Change, ...]:
    """Every cell that is in either of two runs, with both latencies."""
    old, new = ({cell.key: cell for cell in matrix.cells} for matrix in (before, after))
    found = []
    for key in dict.fromkeys([*old, *new]):
        first, second = old.get(key), new.get(key)
        times = [None if cell is None else cell.latency_us for cell in (first, second)]
        percent = None if not times[0] or times[1] is None else 100 * (times[1] / times[0] - 1)
        results = [cell.result for cell in (first, second) if cell is not None and cell.result is not None]
        same = None if len(results) < 2 else results[0].artifact_sha256 == results[1].artifact_sha256
        found.append(Change(key, times[0], times[1], percent, same))
    return tuple(found)


def compare_matrices(before: Matrix, after: Matrix) -> str:
    """A table of two runs: every cell that is in either, with the change in percent, and what differs besides."""
    found = changes(before, after)
    rows = [
        [
            change.cell,
            microseconds(change.before_us),
            microseconds(change.after_us),
            DASH if change.percent is None else f"{change.percent:+.1f} %",
        ]
        for change in found
    ]
    lines = [text_table(["model, threads, delegate", "before", "after", "change"], rows)]
    devices = [
        dict.fromkeys(cell.result.device for cell in matrix.cells if cell.result is not None)
        for matrix in (before, after)
    ]
    if all(devices) and list(devices[0]) != list(devices[1]):
        lines.append(f"Not the same device: {', '.join(devices[0])} before, {', '.join(devices[1])} after.")
    lines += [f"{change.cell}: not the same file" for change in found if change.same_file is False]
    return "\n".join(lines)
