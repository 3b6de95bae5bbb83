"""How much memory a graph's computed tensors need at one time: a lower bound of the runtime's arena."""

from __future__ import annotations

from tflite_tools import constants
from tflite_tools.quantization_scheme import producers, source_constant
from tflite_tools.schema import Model, Subgraph


def lifetimes(model: Model, graph: Subgraph) -> dict[int, tuple[int, int, int]] | None:
    """When each computed tensor must be in memory, if the operators run in file order.

    A tensor lives from the operator that makes it to the last one that reads it; inputs from the start, outputs
    to the end, variables throughout. What DEQUANTIZE and DENSIFY unpack from constants is not counted.

    Returns:
      {tensor: (first operator, last operator, bytes)}, sizes that the file leaves open counted as 1; the last
      "operator" of an output is one past the last. None where a tensor has no fixed element size.
    """
    sizes: dict[int, int] = {}
    for tensor in graph.tensors:
        if constants.is_constant(model, tensor):
            continue
        size = constants.dense_bytes(tensor)
        if size is None:
            return None
        sizes[tensor.index] = size
    made_by = producers(graph)
    # What DEQUANTIZE and DENSIFY make of constants is unpacked once and is no activation.
    unpacked = {i for i in sizes if source_constant(model, graph, graph.tensors[i], made_by) is not None}
    end = len(graph.operators)
    first: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    last: dict[int, int] = dict.fromkeys(graph.outputs, end)
    for position, operator in enumerate(graph.operators):
        for index in operator.outputs:
            first.setdefault(index, position)
            last.setdefault(index, position)
        for index in operator.inputs:
            if index >= 0 and last.get(index, 0) < end:
                last[index] = position
    found = {}
    for index, start in first.items():
        if index in sizes and index not in unpacked:
            span = (start, last.get(index, start))
            if graph.tensors[index].is_variable:
                span = (0, end)
            found[index] = (*span, sizes[index])
    return found


def activation_bytes(model: Model, graph: Subgraph) -> int | None:
    """The most bytes of computed tensors that are alive at once; see `lifetimes`.

    Returns:
      Bytes; None where a tensor has no fixed element size.
    """
    found = lifetimes(model, graph)
    if found is None:
        return None
    change = [0] * (len(graph.operators) + 2)
    for start, stop, size in found.values():
        change[start] += size
        change[stop + 1] -= size
    alive = peak = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak
