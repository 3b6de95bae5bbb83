"""Makes the tables of docs/distributed.md out of what `ray_labelling.py` and `at_scale.py` have stored.

    python benchmarks/distributed_tables.py            # rewrite the tables of the page
    python benchmarks/distributed_tables.py --check    # fail where the page differs from the results
    python benchmarks/distributed_tables.py --print

The flags are those of tables.py. Hours and bandwidth are worked out from the measured rates and the assumption below.
"""

import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app

from benchmarks.common import markdown
from benchmarks.tables import read, run

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "distributed.md"
# Assumed: what one machine with eight GPUs trains of a small student.
STUDENT_EXAMPLES_PER_S = 10_000
PAGE_BYTES = 4096


def ray() -> str:
    """Rates of the three kinds of run, and the ratios."""
    entries = read("ray_labelling")["entries"]
    rows = []
    for kind, name in (("local", "local engine"), ("ray1", "Ray, one node"), ("ray2", "Ray, two nodes")):
        runs = [value for key, value in entries.items() if key.startswith(f"{kind}/")]
        if runs:
            rates = [run["examples per second"] for run in runs]
            row = {"": name, "examples per second": f"{statistics.median(rates):,.0f}"}
            row |= {"lowest": f"{min(rates):,.0f}", "highest": f"{max(rates):,.0f}"}
            rows.append(row | {"whole, s": f"{statistics.median(run['whole seconds'] for run in runs):.1f}"})
    ratios = [{"": name, "ratio": f"{value:.2f}"} for name, value in entries.get("ratios", {}).items()]
    return f"{markdown(rows)}\n\n{markdown(ratios)}"


def rates() -> str:
    """What one core does."""
    measured = read("at_scale")["entries"].get("rates/0", {})
    return markdown([{"of one core": name, "per second": _short(value)} for name, value in measured.items()])


def paper() -> str:
    """Bytes, hours and bandwidth."""
    entries = read("at_scale")["entries"]
    rate = entries.get("rates/0")
    rows = []
    for plan in entries.get("plan/0", []) if rate else []:
        own_s = 1 / rate[f"keep {plan['top_k']} of {plan['classes']}"]
        own_s += plan["record_bytes"] / rate["checksum and write, bytes"]
        decoding_s = 1 / rate["decode and resize a JPEG of 500x375"]
        hours = plan["examples"] * plan["views"] / 3600
        rows.append(
            {
                "data": plan["data"],
                "views": str(plan["views"]),
                "top-k": str(plan["top_k"]),
                "bytes a record": str(plan["record_bytes"]),
                "GB": f"{plan['payload_bytes'] / 1e9:,.1f}",
                "shards": f"{plan['shards']:,}",
                "MB a shard": f"{plan['shard_bytes'] / 1e6:,.1f}",
                "core h, teacher": f"{hours / rate['teacher (ResNet50, 224x224)']:,.0f}",
                "core h, decoding": f"{hours * decoding_s:,.0f}",
                "core h, cache": f"{hours * own_s:,.1f}",
                "targets MB/s": _short(STUDENT_EXAMPLES_PER_S * plan["record_bytes"] / 1e6),
                "cold MB/s": _short(STUDENT_EXAMPLES_PER_S * max(PAGE_BYTES, plan["record_bytes"]) / 1e6),
            }
        )
    return markdown(rows)


def part(name: str, first: str) -> str:
    """The rows of one part of at_scale.py, by their number."""
    entries = read("at_scale")["entries"]
    found = sorted(
        (int(key.split("/")[1]), value) for key, value in entries.items() if key.startswith(f"{name}/")
    )
    return markdown([{first: f"{number:,}", **_texts(values)} for number, values in found])


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: _short(value) for name, value in values.items()}


def _short(value: float) -> str:
    """Three digits are enough.

    Example:
      >>> _short(12345.6), _short(0.012345), _short(512)
      ('12,346', '0.0123', '512')
    """
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"


TABLES: dict[str, Callable[[], str]] = {
    "ray": ray,
    "rates": rates,
    "paper": paper,
    "reading": lambda: part("reading", "examples"),
    "shuffle": lambda: part("shuffle", "examples"),
    "manifest": lambda: part("manifest", "shards"),
}


def main(argv: list[str]) -> None:
    """Writes, checks or prints."""
    run(argv, PAGE, TABLES)


if __name__ == "__main__":
    app.run(main)
