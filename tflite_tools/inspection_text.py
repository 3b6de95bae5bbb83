"""An Inspection as text for a terminal."""

from __future__ import annotations

from tflite_tools.inspection import Inspection
from tflite_tools.inspection_tables import facts, remarks, tables
from tflite_tools.text_table import printable, text_table


def inspection_text(found: Inspection) -> str:
    """The whole inspection as text tables, about one screen for a small model."""
    parts = ["\n".join(f"{name:<13} {value}" for name, value in facts(found))]
    parts += [f"{t.title}\n{text_table(t.header, t.rows, t.left)}" for t in tables(found)]
    lines = remarks(found)
    if lines:
        parts.append("Remarks\n" + "\n".join(f"  {line}" for line in lines))
    return printable("\n\n".join(parts))
