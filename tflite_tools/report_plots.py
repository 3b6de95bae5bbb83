"""The charts of a report, drawn by matplotlib: as SVG in the page's own colors, or as PNG files.

Colors are those of Okabe and Ito, which people with any common color blindness tell apart
(https://jfly.uni-koeln.de/color/); stages also differ in marker and line, so that color is never the only sign.
"""

from __future__ import annotations

import functools
import io
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tflite_tools.report import Report, Stage
from tflite_tools.report_sections import pareto_front
from tflite_tools.text_table import microseconds

# The page replaces these by variables of its style sheet, which are others in the dark.
FOREGROUND, GRID = "#1b1b1f", "#d4d4dc"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5fc4", "#6b6b6b")
_MARKERS = "osD^vPX*"
_WIDTH, _HEIGHT = 4.4, 3.1  # inches; a phone's width at the font size below
_MOST_LAYERS, _MOST_METRICS = 40, 6

Chart = tuple[str, str, Callable[[Any], None], float]  # file name, title, drawing on axes, height in inches


def charts(report: Report) -> Iterator[Chart]:
    """Every chart that the report has data for. A stage has the same color and marker in all of them."""
    order = list(dict.fromkeys([*(stage.name for stage in report.stages), *(report.curves or {})]))
    for cost, name, title in (
        ("size_bytes", "accuracy_bytes", "Accuracy against bytes"),
        ("latency_us", "accuracy_latency", "Accuracy against latency"),
    ):
        if sum(s.accuracy is not None and getattr(s, cost) is not None for s in report.stages) >= 2:
            yield name, title, functools.partial(_pareto, stages=report.stages, cost=cost), _HEIGHT
    for number, (metric, lines) in enumerate(_metrics(report.curves or {})):
        if number < _MOST_METRICS:
            yield (
                f"curve_{_slug(metric)}",
                f"Training: {metric}",
                functools.partial(_curves, lines=lines, order=order),
                _HEIGHT,
            )
    for name, title, data in (
        ("layer_sparsity", "Sparsity per layer", report.layer_sparsity),
        ("layer_error", "Error per layer against float", report.layer_error),
    ):
        if data and any(data.values()):
            rows = min(_MOST_LAYERS, max(len(layers) for layers in data.values()))
            height = 1.0 + 0.24 * rows * max(1, 0.55 * len(data))
            yield name, title, functools.partial(_layers, data=data, order=order), height


def svg(draw: Callable[[Any], None], height: float, prefix: str) -> str:
    """One chart as an SVG element whose colors are the page's, and whose ids start with a prefix."""
    buffer = io.StringIO()
    with _style():
        figure = _figure(draw, height)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several charts share one page, so ids must differ between them.
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", text)
    variables = {FOREGROUND: "var(--ink)", GRID: "var(--rule)"}
    variables |= {color: f"var(--series-{i})" for i, color in enumerate(SERIES)}
    for color, variable in variables.items():
        text = text.replace(color, variable)
    # The width is the page's business.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1),
        count=1,
    )


def write_pngs(report: Report, directory: pathlib.Path) -> list[pathlib.Path]:
    """Every chart as a PNG file, on white."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, title, draw, height in charts(report):
        with _style():
            figure = _figure(draw, height + 0.3)
            figure.axes[0].set_title(title, fontsize=11)
            path = directory / f"{name}.png"
            figure.savefig(path, dpi=160, facecolor="white")
        paths.append(path)
    return paths


def _style() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ImportError(
            "Charts need matplotlib, which is not installed. Install it with: pip install 'keras-kd[report]'"
        ) from None
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
            "svg.hashsalt": "tflite_tools",  # the same report gives the same bytes
            "font.size": 10,
            "font.family": "sans-serif",
            "text.color": FOREGROUND,
            "axes.edgecolor": FOREGROUND,
            "axes.labelcolor": FOREGROUND,
            "xtick.color": FOREGROUND,
            "ytick.color": FOREGROUND,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )


def _figure(draw: Callable[[Any], None], height: float) -> Any:
    # Figure without pyplot: no window system, no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(_WIDTH, height))
    # Room at the sides: the browser's font may be wider than the one that matplotlib measured with.
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    draw(axes)
    return figure


def _pareto(axes: Any, stages: tuple[Stage, ...], cost: str) -> None:
    front = pareto_front(stages, cost)
    axes.plot(
        [getattr(s, cost) for s in front],
        [100 * (s.accuracy or 0) for s in front],
        color=GRID,
        linewidth=2,
        zorder=1,
    )
    for number, stage in enumerate(stages):
        value = getattr(stage, cost)
        if value is None or stage.accuracy is None:
            continue
        axes.plot(
            value,
            100 * stage.accuracy,
            _MARKERS[number % len(_MARKERS)],
            color=SERIES[number % len(SERIES)],
            markersize=8,
            label=stage.name,
            linestyle="none",
        )
    axes.set_xscale("log")
    if cost == "latency_us":
        axes.set_xlabel("latency, median (logarithmic)")
        write: Callable[[float], str] = microseconds
    else:
        axes.set_xlabel("bytes (logarithmic)")
        write = _bytes
    _plain_log_ticks(
        axes, [getattr(s, cost) for s in stages if getattr(s, cost) and s.accuracy is not None], write
    )
    axes.set_ylabel("accuracy, %")
    axes.margins(0.12)
    _legend(axes, sum(s.accuracy is not None and getattr(s, cost) is not None for s in stages))


def _legend(axes: Any, entries: int) -> None:
    """Below the axes, so that it hides no point; in one column, because names are long and phones narrow."""
    if entries:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.1, -0.24),
            ncols=1 if entries < 4 else 2,
            fontsize=9,
            borderpad=0,
        )


def _plain_log_ticks(axes: Any, values: list[float], write: Callable[[float], str]) -> None:
    if not values:
        return
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1, 2, 5) if high - low < 1.6 else (1, 3) if high - low < 3 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(math.floor(low) - 1, math.ceil(high) + 2)
        for step in steps
        if low - 0.5 <= math.log10(step * 10.0**power) <= high + 0.5
    ]
    axes.set_xticks(ticks, [write(tick) for tick in ticks])
    axes.minorticks_off()


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def _metrics(
    curves: Mapping[str, Mapping[str, list[float | None]]],
) -> list[tuple[str, dict[str, list[float | None]]]]:
    """(metric, {line: values}), accuracies first, then total losses, then the rest."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for stage, metrics in curves.items():
        for name, values in metrics.items():
            base = name.removeprefix("val_")
            found.setdefault(base, {})[stage if name == base else f"{stage}, validation"] = values
    # Frameworks log the same figures under two names ("loss" and "total_loss"); one chart of them is enough.
    for name, lines in list(found.items()):
        others = (found[other] for other in found if other != name)
        if any(lines.items() <= other.items() for other in others):
            del found[name]

    def rank(item: tuple[str, Any]) -> tuple[int, str]:
        name = item[0]
        return (0 if "acc" in name else 1 if name in ("loss", "total_loss") else 2), name

    return sorted(found.items(), key=rank)


def _curves(axes: Any, lines: Mapping[str, list[float | None]], order: list[str]) -> None:
    for name, values in lines.items():
        stage = name.removesuffix(", validation")
        number = order.index(stage)
        axes.plot(
            range(1, len(values) + 1),
            [math.nan if value is None else value for value in values],
            linestyle="--" if name != stage else "-",
            marker=_MARKERS[number % len(_MARKERS)] if len(values) <= 12 else None,
            markersize=4,
            linewidth=1.5,
            color=SERIES[number % len(SERIES)],
            label=name,
        )
    axes.set_xlabel("epoch")
    if max(len(values) for values in lines.values()) <= 8:
        axes.set_xticks(range(1, max(len(values) for values in lines.values()) + 1))
    _legend(axes, len(lines))


def _layers(axes: Any, data: Mapping[str, Mapping[str, float]], order: list[str]) -> None:
    layers = list(dict.fromkeys(layer for part in data.values() for layer in part))
    hidden = len(layers) - _MOST_LAYERS
    layers = layers[:_MOST_LAYERS]
    thickness = 0.8 / len(data)
    for number, (stage, part) in enumerate(data.items()):
        axes.barh(
            [i + (number - (len(data) - 1) / 2) * thickness for i in range(len(layers))],
            [100 * part.get(layer, 0.0) for layer in layers],
            height=thickness,
            color=SERIES[(order.index(stage) if stage in order else number) % len(SERIES)],
            label=stage,
        )
    axes.set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("%" + (f" ({hidden} more layers are in the JSON)" if hidden > 0 else ""))
    if len(data) > 1:
        _legend(axes, len(data))


def _short(name: str, width: int = 24) -> str:
    return name if len(name) <= width else f"...{name[3 - width :]}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)
