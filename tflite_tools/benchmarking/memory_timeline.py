"""Which layer sets the arena: activations over time, as figures and as a picture."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from tflite_tools.activations import lifetimes
from tflite_tools.benchmarking.micro_result import LayerCost
from tflite_tools.inspection import inspect
from tflite_tools.schema import Model, Operator, Subgraph, parse
from tflite_tools.text_table import shape as shape_text

_MOST_LABELS = 40
_PEAK, _OTHER = "#d55e00", "#0072b2"  # told apart with any common color blindness (Okabe and Ito)


def layer_costs(content: bytes) -> tuple[LayerCost, ...]:
    """MACs, weight bytes and living activations of every operator of the main graph, in run order.

    Args:
      content: the file's bytes.

    Returns:
      One `LayerCost` per operator. The activations are those of the file: an arena also holds what the kernels
      need for themselves.

    Raises:
      InvalidModelError: no .tflite file, or a broken one.
    """
    model = parse(content)
    graph = model.subgraphs[0]
    alive = _alive(model, graph)
    peak = max(alive, default=0) if alive is not None else None
    infos = [info for info in inspect(content).operators if info.subgraph == 0]
    return tuple(
        LayerCost(
            index=operator.index,
            name=_name(graph, operator),
            macs=info.macs,
            parameter_bytes=info.parameter_bytes,
            alive_bytes=None if alive is None else alive[operator.index],
            sets_peak=alive is not None and alive[operator.index] == peak,
        )
        for operator, info in zip(graph.operators, infos)
    )


def _alive(model: Model, graph: Subgraph) -> list[int] | None:
    found = lifetimes(model, graph)
    if found is None:
        return None
    steps = [0] * len(graph.operators)
    for start, stop, size in found.values():
        for position in range(start, min(stop, len(steps) - 1) + 1):
            steps[position] += size
    return steps


def _name(graph: Subgraph, operator: Operator) -> str:
    if not operator.outputs:
        return operator.name
    return f"{operator.name} {shape_text(graph.tensors[operator.outputs[0]].shape)}"


def write_memory_picture(
    content: bytes, path: str | os.PathLike[str], *, title: str = "Activations in memory"
) -> pathlib.Path:
    """Draws the memory of the activations, operator by operator, with the peak marked.

    Args:
      content: the file's bytes.
      path: a .png, .svg or .pdf file; folders above it are created.
      title: above the picture.

    Returns:
      The path.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: the file has no operators, or tensors without a fixed size.
    """
    layers = layer_costs(content)
    if not layers or layers[0].alive_bytes is None:
        raise ValueError("The file has no activations of a fixed size, so that there is nothing to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("The picture needs matplotlib: pip install 'keras-kd[report]'") from None
    figure: Any = Figure(figsize=(8.0, 1.2 + 0.24 * min(len(layers), _MOST_LABELS)), constrained_layout=True)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(layers))
    axes.barh(
        places,
        [layer.alive_bytes for layer in layers],
        height=0.9,
        color=[_PEAK if layer.sets_peak else _OTHER for layer in layers],
    )
    if len(layers) <= _MOST_LABELS:
        axes.set_yticks(places, [f"{layer.index} {layer.name}" for layer in layers], fontsize=8)
    else:
        axes.set_ylabel("operator, in run order")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    peak = next(layer for layer in layers if layer.sets_peak)
    axes.set_xlabel(f"bytes; the peak of {peak.alive_bytes:,} is at operator {peak.index}, {peak.name}")
    axes.set_title(title, fontsize=11)
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120)
    return target
