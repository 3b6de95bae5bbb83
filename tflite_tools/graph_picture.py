"""A picture of a graph as SVG: operators in layers, from the inputs at the top to the outputs at the bottom.

The drawing follows Sugiyama's scheme in its simplest form (layers by longest path, order by the mean place of
the neighbors, long edges in lanes of their own). Source: Sugiyama, Tagawa, Toda 1981, IEEE Trans. SMC 11(2).
"""

from __future__ import annotations

import html
import itertools
from collections import defaultdict
from dataclasses import dataclass

from tflite_tools.inspection import Inspection, OperatorInfo, TensorInfo
from tflite_tools.text_table import count, shape

# A browser draws some thousand boxes smoothly; Model Explorer is the tool for more.
MOST_OPERATORS = 1200
_MOST_LANES = 2_000
_BOX, _LANE, _ROW, _HEIGHT = 190, 24, 74, 42
_SWEEPS = 4
_MOST_LINES = 12  # of tensors in the text that appears over a box


@dataclass
class _Node:
    layer: int
    place: float = 0.0
    title: str = ""
    lines: tuple[str, str] = ("", "")
    style: str = ""  # "" for a lane: a point through which a long edge passes

    @property
    def width(self) -> int:
        return _BOX if self.style else _LANE


def graph_picture(found: Inspection, subgraph: int = 0) -> str:
    """One subgraph as an SVG element in the page's colors.

    Args:
      found: the inspected file.
      subgraph: which graph.

    Returns:
      The element; "" for a graph without operators or with more than can be read.
    """
    operators = [op for op in found.operators if op.subgraph == subgraph]
    if not 0 < len(operators) <= MOST_OPERATORS:
        return ""
    tensors = {tensor.index: tensor for tensor in found.tensors if tensor.subgraph == subgraph}
    nodes, edges = _nodes_and_edges(found, subgraph, operators, tensors)
    paths = _lanes(nodes, edges)
    _order(nodes, paths)
    return _svg(nodes, paths)


def _nodes_and_edges(
    found: Inspection, subgraph: int, operators: list[OperatorInfo], tensors: dict[int, TensorInfo]
) -> tuple[list[_Node], set[tuple[int, int]]]:
    nodes: list[_Node] = []
    maker: dict[int, int] = {}
    edges: set[tuple[int, int]] = set()
    for index in dict.fromkeys(found.subgraphs[subgraph].inputs):
        maker[index] = len(nodes)
        nodes.append(_end("input", tensors[index], 0))
    for op in operators:
        sources = {maker[index] for index in op.inputs if index in maker}
        if not sources and op.name in ("DEQUANTIZE", "DENSIFY"):
            continue  # it unpacks a constant, and constants are not drawn either
        # Operators stand in the file in the order in which they run, so that sources come first.
        layer = 1 + max((nodes[source].layer for source in sources), default=0)
        edges |= {(source, len(nodes)) for source in sources}
        nodes.append(_operator(op, tensors, layer))
        for index in op.outputs:
            maker[index] = len(nodes) - 1
    _sink(nodes, edges)
    for index in dict.fromkeys(found.subgraphs[subgraph].outputs):
        if index in maker:
            edges.add((maker[index], len(nodes)))
            nodes.append(_end("output", tensors[index], nodes[maker[index]].layer + 1))
    return nodes, edges


def _sink(nodes: list[_Node], edges: set[tuple[int, int]]) -> None:
    """Moves nodes down next to their readers where no edge gets longer in sum: side branches, unrolled steps."""
    readers: dict[int, list[int]] = defaultdict(list)
    sources: dict[int, int] = defaultdict(int)
    for a, b in edges:
        readers[a].append(b)
        sources[b] += 1
    for number in range(len(nodes) - 1, -1, -1):
        if nodes[number].style != "end" and sources[number] <= len(readers[number]) > 0:
            nodes[number].layer = min(nodes[reader].layer for reader in readers[number]) - 1


def _end(side: str, tensor: TensorInfo, layer: int) -> _Node:
    return _Node(layer, 0.0, tensor.name, (side, f"{shape(tensor.shape)} {tensor.dtype}"), "end")


def _operator(op: OperatorInfo, tensors: dict[int, TensorInfo], layer: int) -> _Node:
    result = tensors[op.outputs[0]] if op.outputs else None
    lines = [f"{op.index}: {op.name}", f"MACs: {count(op.macs)}", f"parameters: {op.parameter_bytes:,} bytes"]
    lines += [_described("reads", tensors[index]) for index in op.inputs[:_MOST_LINES] if index >= 0]
    lines += [_described("makes", tensors[index]) for index in op.outputs[:_MOST_LINES]]
    style = "custom" if op.is_custom else "heavy" if op.macs else "plain"
    below = f"{shape(result.shape)} {result.dtype}" if result else ""
    return _Node(layer, 0.0, "\n".join(lines), (op.name, below), style)


def _described(verb: str, tensor: TensorInfo) -> str:
    name = tensor.name if len(tensor.name) <= 80 else tensor.name[:77] + "..."
    return f"{verb} {name or tensor.index} ({shape(tensor.shape)} {tensor.dtype})"


def _lanes(nodes: list[_Node], edges: set[tuple[int, int]]) -> list[list[int]]:
    """Every edge as a list of nodes in successive layers; long ones get a point in each layer they cross."""
    crossed = sum(max(0, nodes[b].layer - nodes[a].layer - 1) for a, b in edges)
    paths = []
    for a, b in sorted(edges):
        path = [a]
        if crossed <= _MOST_LANES:
            for layer in range(nodes[a].layer + 1, nodes[b].layer):
                path.append(len(nodes))
                nodes.append(_Node(layer))
        paths.append([*path, b])
    return paths


def _order(nodes: list[_Node], paths: list[list[int]]) -> None:
    """Gives every node its horizontal place: near its neighbors, without overlaps."""
    layers: dict[int, list[int]] = defaultdict(list)
    above: dict[int, list[int]] = defaultdict(list)
    below: dict[int, list[int]] = defaultdict(list)
    for index, node in enumerate(nodes):
        layers[node.layer].append(index)
    for path in paths:
        for a, b in itertools.pairwise(path):
            above[b].append(a)
            below[a].append(b)
    for indices in layers.values():
        _spread(nodes, indices, dict.fromkeys(indices, 0.0))
    for sweep in range(_SWEEPS):
        neighbors = below if sweep % 2 else above
        for layer in sorted(layers, reverse=bool(sweep % 2)):
            wanted = {
                index: sum(nodes[other].place for other in neighbors[index]) / len(neighbors[index])
                if neighbors[index]
                else nodes[index].place
                for index in layers[layer]
            }
            layers[layer].sort(key=lambda index: wanted[index])
            _spread(nodes, layers[layer], wanted)


def _spread(nodes: list[_Node], indices: list[int], wanted: dict[int, float]) -> None:
    """Places a layer from left to right as near to the wanted places as the widths allow."""
    places: list[float] = []
    for position, index in enumerate(indices):
        least = float("-inf")
        if position:
            before = nodes[indices[position - 1]]
            least = places[-1] + (before.width + nodes[index].width) / 2 + 12
        places.append(max(wanted[index], least))
    # Pushing went to the right only; the layer as a whole goes back by half of it.
    shift = sum(place - wanted[index] for place, index in zip(places, indices)) / len(indices)
    for place, index in zip(places, indices):
        nodes[index].place = place - shift


def _svg(nodes: list[_Node], paths: list[list[int]]) -> str:
    left = min(node.place - node.width / 2 for node in nodes) - 10
    width = max(node.place + node.width / 2 for node in nodes) + 10 - left
    height = (1 + max(node.layer for node in nodes)) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
        f'viewBox="{left:.0f} 0 {width:.0f} {height}" role="img" aria-label="the graph">'
    ]
    for path in paths:
        points = [
            (nodes[i].place, nodes[i].layer * _ROW + _ROW / 2, _HEIGHT / 2 if nodes[i].style else 0)
            for i in path
        ]
        line = f"M{points[0][0]:.0f} {points[0][1] + points[0][2]:.0f}"
        for (x, y, half), (to_x, to_y, to_half) in itertools.pairwise(points):
            start, stop = y + half, to_y - to_half
            middle = (start + stop) / 2
            line += f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {stop:.0f}"
        parts.append(f'<path class="edge" d="{line}"/>')
    for node in nodes:
        if node.style:
            parts.append(_box(node))
    return "".join(parts) + "</svg>"


def _box(node: _Node) -> str:
    x, y = node.place - _BOX / 2, node.layer * _ROW + (_ROW - _HEIGHT) / 2
    radius = _HEIGHT / 2 if node.style == "end" else 5
    first, second = (html.escape(_cut(line)) for line in node.lines)
    return (
        f'<g class="node {node.style}"><title>{html.escape(node.title)}</title>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{_BOX}" height="{_HEIGHT}" rx="{radius:.0f}"/>'
        f'<text x="{node.place:.0f}" y="{y + 17:.0f}">{first}</text>'
        f'<text class="below" x="{node.place:.0f}" y="{y + 33:.0f}">{second}</text></g>'
    )


def _cut(text: str, width: int = 24) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
