"""Plain-text and Markdown tables, and numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Controls other than the end of a line, and those that turn the direction of writing.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

DASH = "–"  # what stands where nothing was measured


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns aligned with spaces; the first `left` to the left, the others to the right.

    Example:
      >>> print(text_table(["op", "count"], [["ADD", "12"], ["CONV_2D", "3"]]))
      op       count
      -------  -----
      ADD         12
      CONV_2D      3
    """
    lines = [list(header), ["-" * 0 for _ in header], *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines[1] = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A GitHub-flavored table; the first `left` columns to the left, the others to the right."""
    rule = ["---" if i < left else "---:" for i in range(len(header))]
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def printable(text: str) -> str:
    """Text from a foreign file without control characters, which could steer a terminal or break a page.

    Example:
      >>> len(printable(chr(27) + "[2J")), printable(chr(27)) == chr(0xFFFD)
      (4, True)
    """
    return _CONTROL.sub("\ufffd", text)


def count(value: int | None) -> str:
    """An exact count with separators, or a dash."""
    return DASH if value is None else f"{value:,}"


def short_count(value: int | None) -> str:
    """A count in three digits: 41.2 M.

    Example:
      >>> short_count(41_234_567), short_count(950), short_count(None)
      ('41.2 M', '950', '–')
    """
    if value is None:
        return DASH
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}" if value < 999.5 * size else f"{value / size:.0f} {unit}"
    return str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent, or a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def microseconds(value: float | None) -> str:
    """A time in the unit that suits it.

    Example:
      >>> microseconds(12.34), microseconds(1234.5), microseconds(2.5e6)
      ('12.3 µs', '1.23 ms', '2.50 s')
    """
    if value is None:
        return DASH
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size:
            return f"{value / size:.{_digits(value / size)}f} {unit}"
    return f"{value:.{_digits(value)}f} µs"


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0


def shape(sizes: Sequence[int]) -> str:
    """1x224x224x3, with ? for an open size; 'scalar' without dimensions."""
    return "x".join("?" if size < 0 else str(size) for size in sizes) or "scalar"
