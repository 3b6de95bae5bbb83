"""What the benchmark scripts share: folders, means with their spread, tables."""

import importlib.metadata
import pathlib
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

_PACKAGES = ("tensorflow", "keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")


def cache_dir(given: str | None) -> pathlib.Path:
    """The folder for what is made once and used by many runs: a teacher's answers, unpacked images."""
    folder = pathlib.Path(given) if given else pathlib.Path(tempfile.gettempdir(), "keras_kd_benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def environment() -> dict[str, Any]:
    """Versions and machine, which stand in every file of results."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions}


class Clock:
    """Says when no further run should begin.

    Args:
      minutes: how long new runs may begin; 0 is without end.
    """

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60.0 * minutes if minutes else None

    def is_over(self) -> bool:
        """Whether the time is used up."""
        return self._end is not None and time.monotonic() > self._end


def mean_std(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample: n - 1); None where one value has no spread.

    Example:
      >>> mean_std([1.0, 3.0])
      (2.0, 1.4142135623730951)
      >>> mean_std([1.0])
      (1.0, None)
    """
    found = list(values)
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def percent(values: Sequence[float]) -> str:
    """Fractions as a mean in percent with its spread, and how many there were.

    Example:
      >>> percent([0.88, 0.89]), percent([0.88]), percent([])
      ('88.50 ± 0.71', '88.00', '-')
    """
    if not values:
        return "-"
    mean, std = mean_std(values)
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def points(values: Sequence[float]) -> str:
    """Differences of fractions in percentage points, with their sign.

    Example:
      >>> points([0.012, 0.016]), points([-0.001])
      ('+1.40 ± 0.28', '-0.10')
    """
    if not values:
        return "-"
    mean, std = mean_std(values)
    return f"{100 * mean:+.2f}" if std is None else f"{100 * mean:+.2f} ± {100 * std:.2f}"


_FIGURE = re.compile(r"\W*[\d.]|-?$")


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Rows of texts as a Markdown table; columns of figures are flushed right, the others and the first left.

    Example:
      >>> print(markdown([{"loss": "soft targets", "accuracy": "89.1"}]))
      | loss         | accuracy |
      |:-------------|---------:|
      | soft targets |     89.1 |
    """
    if not rows:
        return "(no runs yet)"
    names = list(rows[0])
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    right = [
        number > 0 and all(_FIGURE.match(row[name]) for row in rows) for number, name in enumerate(names)
    ]

    def line(cells: Iterable[str]) -> str:
        aligned = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right)
        )
        return "| " + " | ".join(aligned) + " |"

    rule = "|".join(
        "-" * (width + 1) + ":" if is_right else ":" + "-" * (width + 1)
        for width, is_right in zip(widths, right)
    )
    return "\n".join([line(names), f"|{rule}|", *(line(row[name] for name in names) for row in rows)])


def filled(page: str, make: Callable[[str], str]) -> str:
    """A page with what stands between `<!-- table: NAME -->` and `<!-- end -->` made anew by `make(NAME)`.

    Example:
      >>> print(filled("<!-- table: one -->old<!-- end -->", str.upper))
      <!-- table: one -->
      <BLANKLINE>
      ONE
      <BLANKLINE>
      <!-- end -->
    """

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n\n{make(name)}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)
