"""Draws docs/images/accuracy_vs_bytes.svg from the results of quality_fashion.py: teacher to `.tflite`.

    python benchmarks/picture.py
    python benchmarks/picture.py --check_picture    # fail if the picture differs from the results

Plain SVG with its own colors for light and dark pages; every mark is a mean over seeds of an accuracy in the JSON file,
the bar through it one standard deviation to either side.
"""

import dataclasses
import math
import pathlib
import sys
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app, flags

from benchmarks import tables
from benchmarks.common import mean_std

PICTURE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "images" / "accuracy_vs_bytes.svg"
_CHECK = flags.DEFINE_bool("check_picture", False, "Change nothing; fail where the picture is out of date.")

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 62, 24, 56, 58
STYLE = """
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328 }
  .quiet { fill: #59636e } .title { font-size: 16px; font-weight: 600 }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .ours { stroke: #0969da; fill: #0969da } .plain { stroke: #bc4c00; fill: #bc4c00 } .teacher { fill: #1a7f37 }
  .hollow { fill: #ffffff } .way { stroke-width: 1.5; fill: none; stroke-dasharray: 4 3 } .back { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #9198a1 } .grid { stroke: #3d444d }
    .ours { stroke: #58a6ff; fill: #58a6ff } .plain { stroke: #f0883e; fill: #f0883e } .teacher { fill: #3fb950 }
    .hollow, .back { fill: #0d1117 } .way { fill: none }
  }
"""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A mean accuracy in percent with its spread, at a number of bytes."""

    size_bytes: float
    accuracy: float
    spread: float
    kind: str  # "plain" or "ours"
    is_int8: bool


def marks(data: dict[str, Any]) -> list[list[Mark]]:
    """For each size and way of training: the float student and its int8 file."""
    entries, ways = data["entries"], []
    for size in ("2k", "12k", "60k"):
        for method, kind, compression in (
            ("alone", "plain", "labels_alone"),
            (tables.best_of_ours(entries, size), "ours", "with_teacher"),
        ):
            floats = tables.by_seed(entries, f"{size}/{method}")
            files = tables.by_seed(entries, f"{size}/{method}", f"/{compression}")
            if not floats or f"{size}/float_file" not in entries:
                continue
            way = [_mark(floats, entries[f"{size}/float_file"]["size_bytes"], kind, False)]
            if files:
                way.append(_mark(files, mean_std(tables.column(files, "gzip_bytes"))[0], kind, True))
            ways.append(way)
    return ways


def _mark(runs: dict[int, dict[str, Any]], size_bytes: float, kind: str, is_int8: bool) -> Mark:
    mean, std = mean_std(tables.column(runs, "accuracy"))
    return Mark(size_bytes, 100 * mean, 100 * (std or 0.0), kind, is_int8)


class Axes:
    """Bytes on a logarithmic axis, accuracy on a linear one."""

    def __init__(self, sizes: list[float], accuracies: list[float]):
        self.left, self.right = math.log10(min(sizes) * 0.6), math.log10(max(sizes) * 1.8)
        self.low, self.high = math.floor(min(accuracies)), math.ceil(max(accuracies))

    def x(self, size_bytes: float) -> float:
        """Pixels from the left."""
        share = (math.log10(size_bytes) - self.left) / (self.right - self.left)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, accuracy: float) -> float:
        """Pixels from the top."""
        return TOP + (self.high - accuracy) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _grid(axes: Axes) -> list[str]:
    lines = []
    for accuracy in range(axes.low, axes.high + 1):
        y = axes.y(accuracy)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(
            f'<text class="quiet" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{accuracy} %</text>'
        )
    names = {1e3: "1 kB", 1e4: "10 kB", 1e5: "100 kB", 1e6: "1 MB", 1e7: "10 MB"}
    for size, name in names.items():
        if axes.left <= math.log10(size) <= axes.right:
            x = axes.x(size)
            lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            lines.append(
                f'<text class="quiet" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{name}</text>'
            )
    return lines


def _shape(mark: Mark, axes: Axes) -> list[str]:
    x, y = axes.x(mark.size_bytes), axes.y(mark.accuracy)
    reach = abs(axes.y(0) - axes.y(mark.spread))
    title = f"<title>{mark.accuracy:.2f} %, {mark.size_bytes:,.0f} bytes</title>"
    bar = f'<line class="{mark.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y - reach:.1f}" y2="{y + reach:.1f}"/>'
    filled = mark.kind if mark.is_int8 else f"{mark.kind} hollow"
    return [
        bar,
        f'<circle class="{filled}" cx="{x:.1f}" cy="{y:.1f}" r="5" stroke-width="2">{title}</circle>',
    ]


def drawn(data: dict[str, Any]) -> str:
    """The picture as SVG."""
    ways, teacher = marks(data), data["entries"]["teacher"]
    every = [mark for way in ways for mark in way]
    axes = Axes(
        [teacher["float_bytes"], *(mark.size_bytes for mark in every)],
        [100 * teacher["accuracy"], *(mark.accuracy for mark in every)],
    )
    parts = [f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>', *_grid(axes)]
    for way in ways:
        if len(way) == 2:
            (x1, y1), (x2, y2) = [(axes.x(mark.size_bytes), axes.y(mark.accuracy)) for mark in way]
            parts.append(
                f'<line class="{way[0].kind} way" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
            )
        parts += [line for mark in way for line in _shape(mark, axes)]
    x, y = axes.x(teacher["float_bytes"]), axes.y(100 * teacher["accuracy"])
    parts.append(f'<circle class="teacher" cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    parts.append(f'<text x="{x - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">teacher, float32</text>')
    parts.append(f'<text class="title" x="{LEFT}" y="22">Fashion-MNIST: accuracy against bytes</text>')
    parts += _legend()
    parts.append(
        f'<text class="quiet" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        "bytes of the .tflite (logarithmic; pruned int8 files gzipped)</text>"
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Accuracy against bytes, teacher to .tflite">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def _legend() -> list[str]:
    entries = (
        ("plain", True, "labels alone, float"),
        ("plain", False, "TF-MOT, pruned int8"),
        ("ours", True, "keras_kd, float"),
        ("ours", False, "keras_kd, pruned int8"),
    )
    parts, column = [], (WIDTH - LEFT - RIGHT) // len(entries)  # whatever the font, texts do not meet
    for number, (kind, is_float, text) in enumerate(entries):
        x = LEFT + number * column
        parts.append(
            f'<circle class="{kind}{" hollow" if is_float else ""}" cx="{x + 6}" cy="40" r="5" stroke-width="2"/>'
        )
        parts.append(f'<text class="quiet" x="{x + 16}" y="44">{text}</text>')
    return parts


def main(argv: list[str]) -> None:
    """Draws or checks."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    data = tables.read("quality_fashion")
    if "teacher" not in data["entries"]:
        if _CHECK.value and not PICTURE.exists():
            return
        raise SystemExit("There are no results of quality_fashion.py to draw.")
    picture = drawn(data)
    if not _CHECK.value:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        PICTURE.write_text(picture)
    elif PICTURE.read_text() != picture:
        raise SystemExit(f"{PICTURE} is out of date: run python benchmarks/picture.py")


if __name__ == "__main__":
    app.run(main)
