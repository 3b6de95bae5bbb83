r"""Reads what TFLite's `benchmark_model` and LiteRT's `benchmark_litert_model` print, old and new.

Lines are found by their words, and columns of operator tables by their header, so that figures which a version does
not print stay None and figures which it adds do no harm. Any prefix (`INFO: `, logcat's) may stand in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tflite_tools.benchmarking.result import Latency, OperatorTime

_MIB = 1024 * 1024
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class BenchmarkLog:
    """What a log says; None for what it does not.

    Attributes:
      tool: "benchmark_model" or "benchmark_litert_model", by the lines found.
      peak_memory_bytes: the peak where the tool watched it, otherwise what it added since its start.
      delegates: one line per delegate: its name and "completely", "partially" or "not".
      replaced_nodes: (delegate, nodes that it took, nodes in all, partitions), where the log counts them.
      ops: slowest first.
      unknown_flags: what the tool was called with and does not know; it warns and goes on without.
    """

    tool: str | None = None
    latency: Latency | None = None
    init_us: float | None = None
    first_us: float | None = None
    peak_memory_bytes: int | None = None
    delegates: tuple[tuple[str, str], ...] = ()
    replaced_nodes: tuple[tuple[str, int, int | None, int | None], ...] = ()
    ops: tuple[OperatorTime, ...] | None = None
    unknown_flags: tuple[str, ...] = ()


def parse_log(text: str) -> BenchmarkLog:
    """Reads a whole log of either tool.

    Args:
      text: what the tool printed, on both streams.

    Returns:
      A `BenchmarkLog`; `latency` is None where the log holds no result.

    Example:
      >>> log = parse_log("INFO: count=50 first=900 curr=870 min=860 max=990 avg=880.5 std=12")
      >>> log.latency.mean, log.latency.runs, log.latency.median
      (880.5, 50, None)
    """
    classic, first = _classic(text)
    modern = _modern(text)
    latency = classic or modern.get("latency")
    timings = re.search(
        rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), Warmup \(avg\): ({_NUMBER}), "
        rf"Inference \(avg\): ({_NUMBER})",
        text,
    )
    init_us = modern.get("init_us")
    if timings:
        init_us, first = float(timings[1]), float(timings[2])
        if latency is None:
            latency = Latency(mean=float(timings[4]))
    # LiteRT's tool prints TFLite's `count=` lines too, and its own besides.
    tool = "benchmark_litert_model" if modern else "benchmark_model" if classic or timings else None
    return BenchmarkLog(
        tool=tool,
        latency=latency,
        init_us=init_us,
        first_us=first if first is not None else modern.get("first_us"),
        peak_memory_bytes=_memory(text),
        delegates=_delegates(text),
        replaced_nodes=_replaced(text),
        ops=parse_operator_table(text),
        unknown_flags=_unknown_flags(text),
    )


def _classic(text: str) -> tuple[Latency | None, float | None]:
    """The last `count=` line is the benchmark; the one before it, the warm-up."""
    found = []
    for match in re.finditer(r"^(.*)\bcount=(\d+)\b(.*)", text, re.MULTILINE):
        if "(microseconds)" in match[1] or "(bytes)" in match[1]:
            continue  # the operator profile's own sums over all runs, warm-up among them
        count, rest = int(match[2]), match[3]
        fields = {name: float(value) for name, value in re.findall(rf"(\w+)=({_NUMBER})", rest)}
        if "(all same)" in rest or (count and set(fields) == {"curr"}):
            # One run, or runs of one length: the tool prints that length alone.
            value = fields["curr"]
            fields |= dict.fromkeys(("first", "min", "max", "avg", "median", "p95"), value)
            fields["std"] = 0.0 if count > 1 else float("nan")
        found.append((count, fields))
    if not found or not found[-1][0]:
        return None, None
    count, fields = found[-1]
    deviation = fields.get("std")
    latency = Latency(
        min=fields.get("min"),
        mean=fields.get("avg"),
        median=fields.get("median"),
        p95=fields.get("p95"),
        std=None if deviation is None or deviation != deviation else deviation,
        max=fields.get("max"),
        runs=count,
    )
    return latency, found[0][1].get("first") if len(found) > 1 else None


# Names of LiteRT's lines -> ours.
_MODERN = {
    "model initialization": "init",
    "warmup (first)": "first",
    "inference (avg)": "mean",
    "inference (min)": "min",
    "inference (max)": "max",
    "inference (std)": "std",
    "inference (median)": "median",
    "inference (p50)": "median",
    "inference (p95)": "p95",
}
_UNITS = {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}


def _modern(text: str) -> dict[str, Any]:
    values: dict[str, float] = {}
    runs = None
    pattern = (
        rf"(Model initialization|Warmup \(first\)|Inference \(\w+\)):\s*({_NUMBER})\s*(us|µs|ms|s)\b"
        r"(?:\s*\((\d+) runs?\))?"
    )
    for name, value, unit, counted in re.findall(pattern, text):
        key = _MODERN.get(name.lower())
        if key is None:
            continue
        values[key] = float(value) * _UNITS[unit]
        if key == "mean" and counted:
            runs = int(counted)
    deviation = re.search(rf"Inference \(std\):\s*({_NUMBER})\s*$", text, re.MULTILINE)
    if deviation:  # printed without its unit
        values["std"] = float(deviation[1]) * _UNITS["ms"]
    found: dict[str, Any] = {}
    if "mean" in values:
        names = ("min", "mean", "median", "p95", "std", "max")
        found["latency"] = Latency(runs=runs, **{name: values.get(name) for name in names})  # type: ignore[arg-type]
    if "init" in values:
        found["init_us"] = values["init"]
    if "first" in values:
        found["first_us"] = values["first"]
    return found


def _memory(text: str) -> int | None:
    for pattern in (
        rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})",
        rf"Peak memory:\s*({_NUMBER}) MB",
        rf"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): init={_NUMBER} "
        rf"overall=({_NUMBER})",
        rf"Overall footprint:\s*({_NUMBER}) MB",
    ):
        found = re.findall(pattern, text)
        # The tools print 0 or -1 where the system does not tell.
        if found and float(found[-1]) > 0:
            return round(float(found[-1]) * _MIB)
    return None


def _unknown_flags(text: str) -> tuple[str, ...]:
    lines = re.findall(r"Unconsumed cmdline flags:(.*)", text)
    return tuple(dict.fromkeys(name for line in lines for name in re.findall(r"(?<!\S)--?(\w+)", line)))


def _delegates(text: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for name, how in re.findall(
        r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially) executed",
        text,
    ):
        found[name] = how
    for name in re.findall(r"Though (\S+) delegate is explicitly applied, the model graph will not be", text):
        found[name] = "not"
    return tuple(found.items())


def _replaced(text: str) -> tuple[tuple[str, int, int | None, int | None], ...]:
    """(delegate, nodes that it took, nodes in all, partitions) of every line that says so."""
    found = []
    pattern = (
        r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\) node"
        r"(?:, yielding (\d+) partitions)?"
    )
    for taken, total, name, partitions in re.findall(pattern, text):
        found.append(
            (name, int(taken), int(total) if total else None, int(partitions) if partitions else None)
        )
    return tuple(found)


# How the columns that we read are headed, in the versions that we know.
_COLUMNS = {
    "type": ("node type",),
    "mean": ("avg ms", "avg_ms"),
    "calls": ("times called",),
    "name": ("name",),
}


def parse_operator_table(text: str) -> tuple[OperatorTime, ...] | None:
    """Operator times from a profile in run order, as CSV or as the tool prints it on the screen.

    Columns are found by the header, which has a `start` column in some versions and not in others. The first column
    may hold commas of its own ("Convolution (NHWC, F32) GEMM"): what a line has too much belongs to it.

    Returns:
      One entry per operator type, slowest first; None where there is no table with rows.
    """
    lines = [re.sub(r"^(?:INFO: |.*?\btflite\s*: )", "", line).strip() for line in text.splitlines()]
    tables: list[list[tuple[str, float, float]]] = []
    for number, line in enumerate(lines):
        header = _cells(line)
        if header is None:
            continue
        separator, names = header
        places = {
            key: next((i for i, name in enumerate(names) if name in options), None)
            for key, options in _COLUMNS.items()
        }
        # A summary by type counts nodes in a column of its own; the table of the single nodes says the same and more.
        if places["type"] != 0 or places["mean"] is None or "count" in names:
            continue
        rows = _rows(lines[number + 1 :], separator, len(names), places)
        if rows:
            tables.append(rows)
    if not tables:
        return None
    # Tables sorted by time repeat the run order, and warm-up comes before the regular runs; a tool prints
    # "Run Order" first in each group, so the last table with the most rows is the regular one's.
    most = max(len(rows) for rows in tables)
    return _summed([rows for rows in tables if len(rows) == most][-1])


def _cells(line: str) -> tuple[str, list[str]] | None:
    for separator in (",", "\t"):
        names = [re.sub(r"[\[\]]", "", cell).strip().lower() for cell in line.split(separator)]
        if names[0] == "node type" and len(names) > 3:
            return separator, names
    return None


def _rows(
    lines: Iterable[str], separator: str, width: int, places: dict[str, int | None]
) -> list[tuple[str, float, float]]:
    rows = []
    for line in lines:
        cells = [cell.strip() for cell in line.split(separator)]
        extra = len(cells) - width
        if extra < 0 or not line.strip():
            break
        cells = [
            separator.join(cells[: extra + 1]).replace(",", ", ").replace(",  ", ", "),
            *cells[extra + 1 :],
        ]
        try:
            mean = 1e3 * float(cells[places["mean"] or 0])
            calls = float(cells[places["calls"]]) if places["calls"] is not None else 1.0
        except ValueError:
            break
        if calls:  # preparing tensors stands in the table of some versions and is no part of an inference
            rows.append((cells[0], mean, calls))
    return rows


def _summed(rows: list[tuple[str, float, float]]) -> tuple[OperatorTime, ...]:
    times: dict[str, float] = {}
    calls: dict[str, float] = {}
    for name, mean, count in rows:
        times[name] = times.get(name, 0.0) + mean
        calls[name] = calls.get(name, 0.0) + count
    total = sum(times.values())
    return tuple(
        OperatorTime(name, mean, mean / total if total else 0.0, calls[name])
        for name, mean in sorted(times.items(), key=lambda item: -item[1])
    )
