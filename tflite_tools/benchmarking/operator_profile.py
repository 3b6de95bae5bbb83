"""Time per operator on this machine, from LiteRT's own profiler."""

from __future__ import annotations

import importlib.metadata
import re

from tflite_tools.benchmarking.result import OperatorTime
from tflite_tools.errors import ModelCrashError
from tflite_tools.flatbuffer import model_table

# Versions of ai-edge-litert whose C interface was tried. The interface is not declared stable, and a wrong
# guess about it crashes, so other versions get no profile and a reason.
TESTED_VERSIONS = ("2.3.0",)

_TIME_LIMIT_S = 60.0
_ROW = re.compile(
    r"^\s*(?P<type>\S.*?)\s+[\d.]+\s+[\d.]+\s+(?P<average>[\d.]+)\s+(?P<percent>[\d.]+)%\s+[\d.]+%\s+[\d.]+\s+(?P<calls>\d+)"
    r"\s+(?P<name>\S.*)$"
)


def operator_profile(
    content: bytes, *, num_runs: int, num_threads: int, use_xnnpack: bool
) -> tuple[tuple[OperatorTime, ...] | None, tuple[str, ...]]:
    """Profiles a file in a child process.

    Args:
      content: the file's bytes.
      num_runs: profiled runs.
      num_threads: of the benchmark beside it; the profiler knows one thread only, and a remark says so.
      use_xnnpack: of the benchmark beside it; the profiler knows no other way, and a remark says so.

    Returns:
      The operators, slowest first, and remarks about them. None instead of the operators when there is no
      profile; the remark is the reason.
    """
    from tflite_tools.benchmarking.host import run_child

    version = importlib.metadata.version("ai-edge-litert")
    if version not in TESTED_VERSIONS:
        return None, (
            f"No operator profile: it is known to work with ai-edge-litert {', '.join(TESTED_VERSIONS)}, and {version} "
            "is installed.",
        )
    request = {"num_runs": num_runs, "warmup_runs": 3}
    content, closed = with_closed_sizes(content)
    try:
        answer = run_child(
            "tflite_tools.benchmarking.operator_profile_worker", content, request, _TIME_LIMIT_S
        )
    except ModelCrashError as error:
        return None, (f"No operator profile: {error}",)
    if "unavailable" in answer:
        return None, (
            f"No operator profile: LiteRT's profiler does not take this file ({answer['unavailable']}).",
        )
    ops = parse_summary(answer["summary"], num_runs)
    if not ops:
        return None, ("No operator profile: LiteRT's profiler reported no operators.",)
    remarks = []
    if closed:
        remarks.append(
            "The operator profile was measured with every size that the file leaves open taken as 1."
        )
    if num_threads > 1:
        remarks.append("The operator profile was measured with one thread.")
    if not use_xnnpack:
        remarks.append(
            "The operator profile was measured with XNNPACK, which the profiler cannot switch off."
        )
    if any(op.mean_us < 1 for op in ops):
        remarks.append(
            "LiteRT's profiler counts whole microseconds: operators shorter than that appear as 0 or nearly."
        )
    return ops, tuple(remarks)


def with_closed_sizes(content: bytes) -> tuple[bytes, bool]:
    """The file with 1 in the place of open sizes, which the profiler refuses, and whether there were any.

    The sizes stand in shape_signature; `shape` beside it has 1 there already.
    """
    data = bytearray(content)
    found = False
    for graph in model_table(data).tables(2, "subgraph"):
        for tensor in graph.tables(0, "tensor"):
            sizes = tensor.vector(7, "int32", "shape signature")  # a view into `data`
            if sizes.size and int(sizes.min()) < 0:
                sizes[sizes < 0] = 1
                found = True
    return bytes(data), found


def parse_summary(summary: str, num_runs: int) -> tuple[OperatorTime, ...]:
    """Reads the table in run order of LiteRT's profile summary.

    Args:
      summary: the text of `LiteRtGetProfileSummary`.
      num_runs: how many runs it covers.

    Returns:
      One entry per operator, slowest first. Times come from the percentages and the total, which are finer
      than the printed averages in milliseconds.
    """
    start = summary.find("Run Order")
    end = summary.find("Top by Computation Time")
    rows = [found for line in summary[start:end].splitlines() if (found := _ROW.match(line))]
    total = re.search(r"Timings \(microseconds\): count=\d+.*?\bcurr=(\d+)", summary)
    if start < 0 or not rows:
        return ()
    if total:
        total_us = int(total.group(1)) / num_runs
    else:
        total_us = 1e3 * sum(float(row["average"]) for row in rows)
    ops = [
        OperatorTime(
            name=f"{row['type'].removeprefix('Delegate/')} #{position}",
            mean_us=float(row["percent"]) / 100 * total_us,
            share=float(row["percent"]) / 100,
            calls=int(row["calls"]) / num_runs,
        )
        for position, row in enumerate(rows)
    ]
    return tuple(sorted(ops, key=lambda op: -op.mean_us))
