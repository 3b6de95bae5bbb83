"""One word for how a file is quantized, found from its weights and never from its name."""

from __future__ import annotations

from tflite_tools.constants import dense_bytes, is_constant
from tflite_tools.op_costs import ACTIVATION_INPUT, WEIGHT_INPUT
from tflite_tools.schema import BITS, Model, Operator, Subgraph, Tensor

# The converter leaves weights below this many elements in float under dynamic-range quantization
# (`minimum_elements_for_weights` in TFLite's quantize_weights); a few small ones make no mixed model.
_SMALL_WEIGHTS = 1024

_SHORT = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "INT4": "int4",
}


def producers(graph: Subgraph) -> dict[int, Operator]:
    """Which operator makes each tensor."""
    return {output: operator for operator in graph.operators for output in operator.outputs}


def source_constant(
    model: Model, graph: Subgraph, tensor: Tensor, made_by: dict[int, Operator]
) -> Tensor | None:
    """The constant behind a tensor: itself, or what DEQUANTIZE or DENSIFY unpacks; None when it is computed."""
    for _ in range(3):  # a chain has at most DENSIFY and DEQUANTIZE; a damaged file may have a circle
        if is_constant(model, tensor):
            return tensor
        maker = made_by.get(tensor.index)
        if (
            maker is None
            or maker.name not in ("DEQUANTIZE", "DENSIFY")
            or not maker.inputs
            or maker.inputs[0] < 0
        ):
            return None
        tensor = graph.tensors[maker.inputs[0]]
    return None


def quantization_scheme(model: Model) -> str:
    """How the weights and the activations next to them are stored.

    Returns:
      "float32", "float16" (float16 weights, computed in float), "dynamic range" (integer weights, float
      activations), "int8", "uint8", "int16x8" (activations x weights), "mixed" (several of these), or
      "none" for a file without weights.
    """
    found: dict[str, int] = {}
    for graph in model.subgraphs:
        made_by = producers(graph)
        for operator in graph.operators:
            scheme = _of_operator(model, graph, operator, made_by)
            if scheme is not None:
                name, elements = scheme
                found[name] = max(found.get(name, 0), elements)
    if "dynamic range" in found and found.get("float32", 0) < _SMALL_WEIGHTS:
        found.pop("float32", None)
    if not found:
        return "none"
    return next(iter(found)) if len(found) == 1 else "mixed"


def _of_operator(
    model: Model, graph: Subgraph, operator: Operator, made_by: dict[int, Operator]
) -> tuple[str, int] | None:
    position = WEIGHT_INPUT.get(operator.name)
    if position is None or position >= len(operator.inputs) or operator.inputs[position] < 0:
        return None
    weights = source_constant(model, graph, graph.tensors[operator.inputs[position]], made_by)
    if weights is None and operator.name.endswith(("LSTM", "RNN")):
        # An LSTM with coupled gates has no first matrix.
        weights = next(
            (t for i in operator.inputs[1:] if i >= 0 and is_constant(model, t := graph.tensors[i])), None
        )
    if weights is None or weights.dtype not in _SHORT:
        return None
    if operator.name in ("GATHER", "EMBEDDING_LOOKUP"):
        # A table that is looked up; only its own type says anything, and an integer table of indices says nothing.
        if weights.quantization is None and not weights.dtype.startswith("FLOAT"):
            return None
        activation = graph.tensors[operator.outputs[0]].dtype if operator.outputs else weights.dtype
    else:
        index = operator.inputs[ACTIVATION_INPUT.get(operator.name, 0)]
        activation = graph.tensors[index].dtype if index >= 0 else weights.dtype
    size = (dense_bytes(weights) or 0) * 8 // BITS[weights.dtype]
    if activation.startswith(("FLOAT", "BFLOAT")):
        if weights.dtype.startswith("FLOAT"):
            return _SHORT[weights.dtype], size
        return "dynamic range", size
    left, right = _SHORT.get(activation, activation.lower()), _SHORT[weights.dtype]
    if left == right:
        return left, size
    return f"{left}x{right.removeprefix('int')}", size
