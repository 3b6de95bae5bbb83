"""Which operators an accelerator would probably leave to the CPU: an estimate from published lists.

A list names operators; the true answer also depends on shapes, on options and on the driver's version, so
that this is called an estimate everywhere. Only a run on the device tells.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tflite_tools.quantization_scheme import producers, source_constant
from tflite_tools.records import Record
from tflite_tools.schema import Model, Operator, Subgraph


@dataclass(frozen=True)
class Fallbacks(Record):
    """What one accelerator would leave to the CPU, by estimate.

    Attributes:
      accelerator: its name.
      operators: how often each operator would run on the CPU; {} when all are on the published list.
      on_accelerator, total: operators of the main graph on the accelerator, and in all.
      reasons: why, in words.
      source: where the list was published.
    """

    accelerator: str
    operators: dict[str, int]
    on_accelerator: int
    total: int
    reasons: tuple[str, ...]
    source: str
    kind: str = "estimated"


@dataclass(frozen=True)
class _Accelerator:
    name: str
    source: str
    operators: frozenset[str]
    numbers: str  # which activations it computes with: "any", "float" or "integer"


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ACCELERATORS = (
    _Accelerator(
        "GPU delegate (Android, iOS)",
        "LiteRT documentation, GPU delegates, 'GPU ML operations support' "
        "(https://ai.google.dev/edge/litert/performance/gpu)",
        _listed(
            "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXP FULLY_CONNECTED LOGICAL_AND LOGISTIC "
            "LSTM MAX_POOL_2D MAXIMUM MINIMUM MUL PAD PRELU RELU RELU6 RESHAPE RESIZE_BILINEAR SOFTMAX "
            "STRIDED_SLICE SUB TRANSPOSE_CONV"
        ),
        # 8-bit models are accepted and computed in float.
        "any",
    ),
    _Accelerator(
        "Core ML delegate (Apple Neural Engine)",
        "LiteRT documentation, Core ML delegate, 'Supported ops' "
        "(https://ai.google.dev/edge/litert/ios/coreml)",
        _listed(
            "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED HARD_SWISH LOGISTIC "
            "MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR SOFTMAX TANH TRANSPOSE_CONV"
        ),
        "float",
    ),
    _Accelerator(
        "Arm Ethos-U55 and U65",
        "Vela 5.2.0, `vela --supported-ops-report` (PyPI: ethos-u-vela)",
        _listed(
            "ABS ADD ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D ELU EXP "
            "EXPAND_DIMS FULLY_CONNECTED GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM "
            "MIRROR_PAD MUL NEG PACK PAD PADV2 PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 "
            "RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SLICE SOFTMAX SPLIT "
            "SPLIT_V SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV "
            "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK"
        ),
        "integer",
    ),
    _Accelerator(
        "Arm Ethos-U85",
        "Vela 5.2.0, `vela --supported-ops-report` (PyPI: ethos-u-vela)",
        _listed(
            "ABS ADD ARG_MAX ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D "
            "DEPTHWISE_CONV_2D DIV ELU EQUAL EXP EXPAND_DIMS FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL "
            "HARD_SWISH LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM "
            "MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE "
            "REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE "
            "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 RSQRT SCATTER_ND SELECT SELECT_V2 SLICE SOFTMAX "
            "SPLIT SPLIT_V SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV "
            "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK"
        ),
        "integer",
    ),
    _Accelerator(
        "Qualcomm Hexagon DSP (Hexagon delegate)",
        "TensorFlow, lite/delegates/hexagon/README.md, 'Supported Ops' "
        "(https://github.com/tensorflow/tensorflow/tree/master/tensorflow/lite/delegates/hexagon)",
        _listed(
            "ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTH_TO_SPACE DEPTHWISE_CONV_2D "
            "FULLY_CONNECTED HARD_SWISH L2_NORMALIZATION LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL "
            "NEG PACK PAD QUANTIZE RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE SOFTMAX "
            "SPACE_TO_DEPTH SPLIT STRIDED_SLICE SUB TANH TRANSPOSE TRANSPOSE_CONV"
        ),
        "integer",
    ),
    _Accelerator(
        "Coral Edge TPU",
        "Coral documentation, 'Supported operations' "
        "(https://coral.ai/docs/edgetpu/models-intro/#supported-operations), runtime version 14",
        _listed(
            "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED "
            "L2_NORMALIZATION LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX "
            "REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE "
            "SOFTMAX SPACE_TO_DEPTH SPLIT SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TRANSPOSE "
            "TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM"
        ),
        "integer",
    ),
)


def estimate_fallbacks(model: Model) -> tuple[Fallbacks, ...]:
    """For each accelerator, what it would leave to the CPU in the main graph. An estimate.

    Operators that only unpack constants (DEQUANTIZE of float16 weights) are not counted: delegates fold them.
    """
    graph = model.subgraphs[0]
    made_by = producers(graph)
    operators = [
        operator
        for operator in graph.operators
        if not (
            operator.outputs
            and source_constant(model, graph, graph.tensors[operator.outputs[0]], made_by) is not None
        )
    ]
    return tuple(_estimate(accelerator, graph, operators) for accelerator in _ACCELERATORS)


def _estimate(accelerator: _Accelerator, graph: Subgraph, operators: list[Operator]) -> Fallbacks:
    left: Counter[str] = Counter()
    unlisted, wrong_numbers = set(), set()
    for operator in operators:
        if operator.is_custom or operator.name not in accelerator.operators:
            unlisted.add(operator.name)
        elif not _fits(accelerator.numbers, graph, operator):
            wrong_numbers.add(operator.name)
        else:
            continue
        left[operator.name] += 1
    reasons = []
    if unlisted:
        reasons.append(f"not on the published list: {', '.join(sorted(unlisted))}")
    if wrong_numbers:
        needed = "float" if accelerator.numbers == "float" else "8-bit or 16-bit integer"
        reasons.append(f"computes with {needed} activations only: {', '.join(sorted(wrong_numbers))}")
    return Fallbacks(
        accelerator=accelerator.name,
        operators=dict(left.most_common()),
        on_accelerator=len(operators) - sum(left.values()),
        total=len(operators),
        reasons=tuple(reasons),
        source=accelerator.source,
    )


def _fits(numbers: str, graph: Subgraph, operator: Operator) -> bool:
    if numbers == "any" or not operator.outputs:
        return True
    dtype = graph.tensors[operator.outputs[0]].dtype
    is_float = dtype.startswith(("FLOAT", "BFLOAT"))
    # QUANTIZE and its like have a float on one side; index outputs (ARG_MAX) are integers everywhere.
    return is_float if numbers == "float" else not is_float
