"""Makes the tables of docs/compression.md out of the JSON files under benchmarks/results.

    python benchmarks/compression_tables.py            # rewrite docs/compression.md
    python benchmarks/compression_tables.py --check    # fail if the page differs from the results

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is outside the marks is written by hand.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app

from benchmarks.common import markdown, percent, points
from benchmarks.tables import by_seed, column, paired, read, run

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "compression.md"
KINDS = ("float32", "float16", "dynamic", "int8")
WAYS = {
    "student": "the student before, float32",
    "labels": "int8 file, on the labels alone",
    "defaults": "int8 file, with the teacher, the defaults of `compress` (T = 1, share of the labels 0.5)",
    "chosen": "int8 file, with the teacher, `CorrelationDistillation(2, 2)`, share of the labels 0.5",
}
Entries = dict[str, Any]


def with_teacher(entries: Entries) -> str:
    """A row for each start and each way of teaching, with what the teacher adds seed by seed."""
    rows = []
    for start, text in (("labels", "the labels"), ("teacher", "its teacher")):
        base = by_seed(entries, f"{start}/labels")
        for way, title in WAYS.items():
            runs = by_seed(entries, f"{start}/{way}")
            if not runs:
                continue
            taught = way not in ("student", "labels")
            agreement = column(runs, "agreement")
            rows.append(
                {
                    "student trained by": text,
                    "file": title,
                    "accuracy %": percent(column(runs, "accuracy")),
                    "over the labels alone": points(paired(runs, base)) if taught else "",
                    "file and Keras model agree %": percent(agreement) if agreement else "",
                    "seeds": str(len(runs)),
                }
            )
    return markdown(rows)


def sparse_encoding(entries: Entries) -> str:
    """A row for each sparsity and kind of file."""
    rows = []
    for found in sorted(entries.values(), key=lambda row: (row["sparsity"], KINDS.index(row["kind"]))):
        runs = "no" if not found["runs"] else "yes, same outputs" if found["equal_outputs"] else "yes, others"
        rows.append(
            {
                "zeros": f"{100 * found['sparsity']:g} %",
                "weights": found["kind"],
                "bytes": f"{found['dense_bytes']:,}",
                "gzip": f"{found['dense_gzip_bytes']:,}",
                "sparse bytes": f"{found['sparse_bytes']:,}",
                "sparse gzip": f"{found['sparse_gzip_bytes']:,}",
                "sparse file runs": runs,
            }
        )
    return markdown(rows)


def memory(entries: Entries) -> str:
    """The peak, and what is held after each of the calls."""
    rows = [
        {
            "measured": "MobileNetV2 at {side}x{side}, batch {batch_size}: peak of the process".format(
                **found
            ),
            "MiB": f"{found['peak_with_mobilenet_mib']:,.0f}",
        }
        for found in entries.values()
        if "peak_with_mobilenet_mib" in found
    ]
    for found in entries.values():
        held = found.get("held_after_each_call_mib")
        if held:
            rows += [
                {"measured": "a small network: held after the 1st call", "MiB": f"{held[0]:,.0f}"},
                {"measured": f"held after the {len(held)}th call", "MiB": f"{held[-1]:,.0f}"},
            ]
            if found["growth_per_call_mib"] is not None:
                rows.append(
                    {
                        "measured": "growth per call after the 3rd",
                        "MiB": f"{found['growth_per_call_mib']:.1f}",
                    }
                )
    return markdown(rows)


TABLES: dict[str, Callable[[], str]] = {
    "compress_with_teacher": lambda: with_teacher(read("compress_with_teacher")["entries"]),
    "sparse_encoding": lambda: sparse_encoding(read("sparse_encoding")["entries"]),
    "compress_memory": lambda: memory(read("compress_memory")["entries"]),
}


def main(argv: list[str]) -> None:
    """Writes, checks or prints."""
    run(argv, PAGE, TABLES)


if __name__ == "__main__":
    app.run(main)
