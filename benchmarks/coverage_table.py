"""The rows of benchmarks/coverage.py as a table, and the table in its page."""

import re
from typing import Any

FAMILIES = (
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "NASNetMobile",
    "Xception",
    "InceptionV3",
    "VGG16",
    "ConvNeXtTiny",
    "RegNetX002",
    "ResNetRS50",
)
SPARSITY = 0.5
PARITY = 1e-4
SQNR_GOAL_DB = 15.0


def _float_lines(row: dict[str, Any]) -> list[str]:
    """What is float in a family's file, and whether the report names it."""
    if not row.get("float_operators"):
        return []

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))

    lines = []
    if row["islands"]:
        some = list(row["islands"])
        kinds = sorted({reason.split(": ")[1].split(" (")[0] for reason in row["islands"].values()})
        lines.append(f"    islands: {len(some)} layers ({'; '.join(kinds)}), such as {some[0]}")
    lines.append(f"    float in the file ({row['float_bytes']} bytes): {listed(row['float_operators'])}")
    if row["float_outside_islands"]:
        lines.append(f"    of these in no named island: {listed(row['float_outside_islands'])}")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text, and how many families pass each column."""

    def mark(value: Any) -> str:
        return "-" if value is None else ("yes" if value else "no")

    header = (
        f"{'family':18}{'parity':>9}{'pruned':>8}{'QAT':>5}{'int8':>6}{'runs':>6}{'SQNR dB':>9}{'KiB':>8}"
    )
    lines = [header + "  TF-MOT prunes/quantizes"]
    for row in rows:
        parity = "-" if row.get("parity") is None else f"{row['parity']:.0e}"
        sparsity = "-" if row.get("sparsity") is None else f"{100 * row['sparsity']:.0f}%"
        sqnr = "-" if row.get("sqnr_db") is None else f"{row['sqnr_db']:.1f}"
        size = "-" if row.get("bytes") is None else f"{row['bytes'] / 1024:.0f}"
        lines.append(
            f"{row['family']:18}{parity:>9}{sparsity:>8}{mark(row.get('qat')):>5}{mark(row.get('int8')):>6}"
            f"{mark(row.get('runs')):>6}{sqnr:>9}{size:>8}"
            f"  {mark(row.get('tfmot_prunes'))}/{mark(row.get('tfmot_quantizes'))}"
        )
        if row["failed_at"]:
            lines.append(f"    stopped at {row['failed_at']}: {row['reason']}")
        lines += _float_lines(row)
    passed = {
        "parity": sum(row.get("parity", 1.0) <= PARITY for row in rows),
        "pruned": sum((row.get("sparsity") or 0) >= SPARSITY - 0.01 for row in rows),
        "QAT": sum(bool(row.get("qat")) for row in rows),
        "int8": sum(bool(row.get("int8")) and bool(row.get("int8_ends")) for row in rows),
        "runs": sum(bool(row.get("runs")) for row in rows),
        f"SQNR >= {SQNR_GOAL_DB:.0f} dB": sum((row.get("sqnr_db") or 0) >= SQNR_GOAL_DB for row in rows),
        "TF-MOT prunes": sum(bool(row.get("tfmot_prunes")) for row in rows),
        "TF-MOT quantizes": sum(bool(row.get("tfmot_quantizes")) for row in rows),
    }
    missing = [family for family in FAMILIES if all(row["family"] != family for row in rows)]
    if missing:
        lines.append(f"not run: {', '.join(missing)}")
    lines.append(f"of {len(rows)}: " + ", ".join(f"{name} {count}" for name, count in passed.items()))
    return "\n".join(lines)


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """The page with this table between its marks.

    Raises:
      ValueError: the page has no such marks.
    """
    marked = re.compile(r"(<!-- table -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marked.search(text):
        raise ValueError("the page has no <!-- table --> ... <!-- end -->")
    return marked.sub(lambda found: f"{found[1]}```text\n{table(rows)}\n```\n{found[2]}", text)
