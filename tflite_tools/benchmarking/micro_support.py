"""What TFLite Micro can run, read from the file alone, so that a refusal has a reason before anything runs.

The list of operators is that of `tflite-micro` 0.dev20261023; a test asks the installed package about each one.
"""

from __future__ import annotations

from tflite_tools.constants import is_constant
from tflite_tools.quantization_scheme import producers, source_constant
from tflite_tools.schema import Model, Operator, Subgraph

# Builtin operator -> the function of MicroMutableOpResolver that registers it. Names that are not the
# operator's own name in camel case are written out.
_NAMES = (
    "ABS", "ADD", "ADD_N", "ARG_MAX", "ARG_MIN", "ASSIGN_VARIABLE", "AVERAGE_POOL_2D", "BATCH_MATMUL",
    "BATCH_TO_SPACE_ND", "BROADCAST_ARGS", "BROADCAST_TO", "CALL_ONCE", "CAST", "CEIL", "CONCATENATION",
    "CONV_2D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV",
    "DYNAMIC_UPDATE_SLICE", "ELU", "EMBEDDING_LOOKUP", "EQUAL", "EXP", "EXPAND_DIMS", "FILL", "FLOOR",
    "FLOOR_DIV", "FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL",
    "HARD_SWISH", "IF", "L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG",
    "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN",
    "MINIMUM", "MIRROR_PAD", "MUL", "NEG", "NOT_EQUAL", "PACK", "PAD", "PADV2", "PRELU", "QUANTIZE",
    "READ_VARIABLE", "REDUCE_ALL", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT", "SELECT_V2", "SHAPE", "SIN", "SLICE",
    "SOFTMAX", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARE",
    "SQUARED_DIFFERENCE", "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "SVDF", "TANH", "TRANSPOSE",
    "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNPACK", "VAR_HANDLE", "WHILE", "ZEROS_LIKE",
)  # fmt: skip
_IRREGULAR = {
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "SVDF": "AddSvdf",
    "BATCH_MATMUL": "AddBatchMatMul",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
# Custom operators that TFLite Micro knows by name.
_CUSTOM = {
    "CIRCULAR_BUFFER": "AddCircularBuffer",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "ethos-u": "AddEthosU",
    "SignalDelay": "AddDelay",
    "SignalEnergy": "AddEnergy",
    "SignalFftAutoScale": "AddFftAutoScale",
    "SignalFilterBank": "AddFilterBank",
    "SignalFilterBankLog": "AddFilterBankLog",
    "SignalFilterBankSpectralSubtraction": "AddFilterBankSpectralSubtraction",
    "SignalFilterBankSquareRoot": "AddFilterBankSquareRoot",
    "SignalFramer": "AddFramer",
    "SignalIrfft": "AddIrfft",
    "SignalOverlapAdd": "AddOverlapAdd",
    "SignalPCAN": "AddPCAN",
    "SignalRfft": "AddRfft",
    "SignalStacker": "AddStacker",
    "SignalWindow": "AddWindow",
}
# Kernels without an 8-bit unsigned version, which is what files of the old TOCO converter need.
_NO_UINT8 = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONCATENATION", "ADD", "AVERAGE_POOL_2D")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")


def supported_operators() -> tuple[str, ...]:
    """The builtin operators that TFLite Micro has kernels for."""
    return _NAMES


def resolver_call(name: str) -> str | None:
    """The function of MicroMutableOpResolver that registers an operator; None where there is none.

    Example:
      >>> resolver_call("CONV_2D"), resolver_call("FULLY_CONNECTED"), resolver_call("FlexErf")
      ('AddConv2D', 'AddFullyConnected', None)
    """
    if name in _CUSTOM:
        return _CUSTOM[name]
    if name not in _NAMES:
        return None
    return _IRREGULAR.get(name) or "Add" + "".join(
        part if part == "2D" else part.capitalize() for part in name.split("_")
    )


def operators_to_register(model: Model) -> tuple[str, ...]:
    """The operators of all graphs, each once, in order of their names."""
    return tuple(sorted({operator.name for graph in model.subgraphs for operator in graph.operators}))


def refusals(model: Model) -> tuple[str, ...]:
    """Why TFLite Micro cannot run a file, as sentences; () when nothing speaks against it.

    Only what the file shows for certain is listed. A kernel may still refuse a shape or a type when it runs.
    """
    missing = [name for name in operators_to_register(model) if resolver_call(name) is None]
    flex = [name for name in missing if name.startswith("Flex")]
    other = [name for name in missing if name not in flex]
    found = []
    if flex:
        found.append(f"it needs TensorFlow's own kernels ({', '.join(flex)}), which no microcontroller has")
    if "edgetpu-custom-op" in other:
        found.append("it is compiled for a Coral Edge TPU; take the file that it was compiled from")
        other.remove("edgetpu-custom-op")
    if other:
        found.append(f"TFLite Micro has no kernel for {', '.join(other)}")
    hybrid, halves, unsigned, sparse = set(), set(), set(), set()
    for graph in model.subgraphs:
        made_by = producers(graph)
        for operator in graph.operators:
            if _is_hybrid(model, graph, operator):
                hybrid.add(operator.name)
            for index in operator.inputs:
                if index < 0:
                    continue
                tensor = graph.tensors[index]
                source = source_constant(model, graph, tensor, made_by)
                if source is not None and source.dtype == "FLOAT16":
                    halves.add(operator.name)
                if source is not None and source.is_sparse:
                    sparse.add(operator.name)
                if operator.name in _NO_UINT8 and tensor.dtype == "UINT8":
                    unsigned.add(operator.name)
    if hybrid:
        found.append(
            f"its weights are integers but its activations are float (dynamic range: {_listed(hybrid)}); convert with "
            "quantization='int8' and calibration data, or without quantization"
        )
    if halves:
        found.append(
            f"its weights are float16 ({_listed(halves - {'DEQUANTIZE'} or halves)}); convert with "
            "quantization='int8' or None"
        )
    if sparse:
        found.append("its weights are stored sparsely; convert without sparse storage")
    if unsigned:
        found.append(
            f"it is quantized to uint8 ({_listed(unsigned)}), a scheme of old converters; convert again to int8"
        )
    return tuple(found)


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _is_hybrid(model: Model, graph: Subgraph, operator: Operator) -> bool:
    if operator.name not in _WEIGHTED or len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0:
        return False
    # TRANSPOSE_CONV reads its shape first, so look at all inputs rather than at fixed places.
    tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
    integers = any(is_constant(model, t) and t.dtype in ("INT8", "INT4", "UINT8") for t in tensors)
    return integers and any(t.dtype == "FLOAT32" and not is_constant(model, t) for t in tensors)
