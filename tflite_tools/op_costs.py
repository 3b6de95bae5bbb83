"""Multiply-accumulates (MACs) of TFLite operators, from shapes alone.

A MAC is one multiplication and one addition of a convolution or matrix product. Other operators
(additions, activations, pooling, copies) count as 0, as in MLPerf and in Vela: they move bytes, and
their time is not a matter of arithmetic. Layouts of weights: TFLite's kernels, documented per
operator in https://www.tensorflow.org/mlir/tfl_ops
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tflite_tools.schema import Operator, Tensor

# Operators whose weights are rank-2 constants, applied once per row of the first input.
_RECURRENT = {
    "LSTM",
    "RNN",
    "SVDF",
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN",
}
_UNKNOWN = {"STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_COMPOSITE"}

# The operators that hold a network's weights, by the position of their weights among the inputs.
WEIGHT_INPUT = {
    "CONV_2D": 1,
    "CONV_3D": 1,
    "CONV_3D_TRANSPOSE": 1,
    "DEPTHWISE_CONV_2D": 1,
    "FULLY_CONNECTED": 1,
    "TRANSPOSE_CONV": 1,
    "BATCH_MATMUL": 1,
    "EMBEDDING_LOOKUP": 1,
    "GATHER": 0,
    **dict.fromkeys(_RECURRENT, 1),
}
# The position of the activations, where it is not 0.
ACTIVATION_INPUT = {"TRANSPOSE_CONV": 2, "CONV_3D_TRANSPOSE": 2, "EMBEDDING_LOOKUP": 0, "GATHER": 0}


def known(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape with 1 in the place of sizes that the file leaves open."""
    return tuple(size if size >= 0 else 1 for size in shape)


def macs(
    operator: Operator, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], constant: set[int]
) -> int | None:
    """Multiply-accumulates of one run of an operator.

    Args:
      operator: the operator.
      inputs: its input tensors in order; None for an optional one that is absent.
      outputs: its output tensors in order.
      constant: numbers of the tensors whose values stand in the file.

    Returns:
      The number of MACs; sizes that the file leaves open (a dynamic batch) count as 1. None when it
      cannot be known: custom operators, operators that run other subgraphs, malformed shapes.
    """
    if operator.is_custom or operator.calls or operator.name in _UNKNOWN:
        return None
    shapes = [None if tensor is None else known(tensor.shape) for tensor in inputs]
    out = known(outputs[0].shape) if outputs else ()
    name = operator.name
    if name in _RECURRENT:
        if shapes and shapes[0]:
            matrices = [t for t in inputs[1:] if t is not None and t.index in constant and len(t.shape) == 2]
            return math.prod(shapes[0][:-1]) * sum(math.prod(known(t.shape)) for t in matrices)
        return None
    if name == "BATCH_MATMUL":
        left = shapes[0] if shapes else None
        if left is None or len(left) < 2:
            return None
        transposed = operator.options is not None and operator.options.integer(0, "uint8")
        return math.prod(out) * left[-2 if transposed else -1]
    if name not in WEIGHT_INPUT or name in ("EMBEDDING_LOOKUP", "GATHER"):
        return 0
    weights = shapes[1] if len(shapes) > 1 else None
    if weights is None:
        return None
    if name == "FULLY_CONNECTED":
        return math.prod(out) * weights[-1] if weights else None
    if name == "CONV_3D":
        return math.prod(out) * math.prod(weights[:-1]) if len(weights) == 5 else None
    if name == "CONV_3D_TRANSPOSE":
        data = shapes[2] if len(shapes) > 2 else None
        return math.prod(data) * math.prod(weights[:-1]) if data and len(weights) == 5 else None
    if len(weights) != 4:
        return None
    if name == "DEPTHWISE_CONV_2D":
        return math.prod(out) * weights[1] * weights[2]
    if name == "TRANSPOSE_CONV":
        data = shapes[2] if len(shapes) > 2 else None
        return math.prod(data) * math.prod(weights[:-1]) if data else None
    return math.prod(out) * math.prod(weights[1:])
