"""The parts of a report that are worked out: what each class lost, and which stages are worth having."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tflite_tools.benchmarking.result import OperatorTime
from tflite_tools.report import Report, Stage
from tflite_tools.text_table import DASH, microseconds, percent

_MOST_OPERATORS = 30


def class_labels(report: Report) -> tuple[str, ...]:
    """Names of the classes; numbers where none were given."""
    if report.class_names is not None:
        return report.class_names
    sizes = [len(values) for values in (report.per_class or {}).values()]
    return tuple(str(i) for i in range(sizes[0])) if sizes else ()


def changes_table(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """Accuracy per class at every stage; with two or more, the change from first to last and what it became.

    Returns:
      (header, rows), the class that lost most first; None when nothing is known per class.
    """
    if not report.per_class:
        return None
    names = list(report.per_class)
    labels = class_labels(report)
    header = ["class", *names]
    several = len(names) > 1
    if several:
        header += ["change", "became"]
    ordered = sorted(range(len(labels)), key=lambda i: _change(report, i) if several else i)
    rows = []
    for i in ordered:
        row = [labels[i], *(percent(report.per_class[name][i]) for name in names)]
        if several:
            first, last = report.per_class[names[0]][i], report.per_class[names[-1]][i]
            row.append(DASH if first is None or last is None else f"{100 * (last - first):+.1f}")
            row.append(_became(report, names[0], names[-1], i, labels))
        rows.append(row)
    return header, rows


def _change(report: Report, i: int) -> float:
    values = list((report.per_class or {}).values())
    first, last = values[0][i], values[-1][i]
    return 0.0 if first is None or last is None else last - first


def _became(report: Report, first: str, last: str, i: int, labels: Sequence[str]) -> str:
    """The wrong answers that grew between two stages, at most two, with how many examples."""
    matrices = report.confusion or {}
    if first not in matrices or last not in matrices:
        return DASH
    growth = [
        (after - before, j) for j, (before, after) in enumerate(zip(matrices[first][i], matrices[last][i]))
    ]
    wrong = sorted(((-more, j) for more, j in growth if more > 0 and j != i))[:2]
    return ", ".join(f"{labels[j]} (+{-more})" for more, j in wrong) or "no other class"


def layer_table(layers: Mapping[str, Mapping[str, float]] | None) -> tuple[list[str], list[list[str]]] | None:
    """(header, rows) of a figure per layer and stage, in percent; None when there is none."""
    names = list(dict.fromkeys(layer for part in (layers or {}).values() for layer in part))
    if not layers or not names:
        return None
    return ["layer", *layers], [[n, *(percent(part.get(n), 2) for part in layers.values())] for n in names]


def operator_time_table(ops: Iterable[OperatorTime]) -> tuple[list[str], list[list[str]]] | None:
    """(header, rows) of operator times, the slowest first; the rest is summed in one row."""
    ordered = sorted(ops, key=lambda op: -op.mean_us)
    if not ordered:
        return None
    shown, rest = ordered[:_MOST_OPERATORS], ordered[_MOST_OPERATORS:]
    rows = [[op.name, f"{op.calls:g}", microseconds(op.mean_us), percent(op.share)] for op in shown]
    if rest:
        total, share = sum(op.mean_us for op in rest), sum(op.share for op in rest)
        rows.append(
            [f"{len(rest)} others", f"{sum(op.calls for op in rest):g}", microseconds(total), percent(share)]
        )
    return ["operator", "calls", "time", "share"], rows


def pareto_front(stages: Iterable[Stage], cost: str) -> list[Stage]:
    """Stages that no other stage beats: at least as accurate and no more costly, and better in one of the two.

    Args:
      stages: those without accuracy or cost are left out.
      cost: name of a figure of which less is better: "size_bytes" or "latency_us".

    Returns:
      The front, cheapest first.

    Example:
      >>> points = [Stage("a", 0.9, size_bytes=10), Stage("b", 0.8, size_bytes=20), Stage("c", 0.95, size_bytes=30)]
      >>> [stage.name for stage in pareto_front(points, "size_bytes")]
      ['a', 'c']
    """
    known = [stage for stage in stages if stage.accuracy is not None and getattr(stage, cost) is not None]
    known.sort(key=lambda stage: (getattr(stage, cost), -(stage.accuracy or 0)))
    front: list[Stage] = []
    for stage in known:
        if not front or (stage.accuracy or 0) > (front[-1].accuracy or 0):
            front.append(stage)
    return front
