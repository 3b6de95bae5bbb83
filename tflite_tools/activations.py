"""How much memory a graph's computed tensors need at one time: a lower bound of the runtime's arena."""

from __future__ import annotations

from tflite_tools import constants
from tflite_tools.quantization_scheme import producers, source_constant
from tflite_tools.schema import Model, Subgraph


def activation_bytes(model: Model, graph: Subgraph) -> int | None:
    """The most bytes of computed tensors that are alive at once, when the operators run in file order.

    A tensor lives from the operator that makes it to the last one that reads it; inputs from the start, outputs
    to the end, variables throughout. What DEQUANTIZE and DENSIFY unpack from constants is not counted.

    Returns:
      Bytes, sizes that the file leaves open counted as 1; None where a tensor has no fixed element size.
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
    change = [0] * (end + 2)
    for index, start in first.items():
        if index in sizes and index not in unpacked:
            stop = last.get(index, start)
            if graph.tensors[index].is_variable:
                start, stop = 0, end
            change[start] += sizes[index]
            change[stop + 1] -= sizes[index]
    alive = peak = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak
