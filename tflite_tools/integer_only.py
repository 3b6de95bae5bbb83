"""Finds what still computes in float in a file that was meant to be integer throughout."""

from collections.abc import Sequence

from tflite_tools.errors import ConversionError
from tflite_tools.failures import layers_in
from tflite_tools.schema import parse

_FLOAT = {"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16"}
# A float input or output of the file passes through one of these, and nothing else touches it.
_BORDER = {"QUANTIZE", "DEQUANTIZE"}


def float_tensors(content: bytes) -> list[str]:
    """Names of the float tensors that operators compute with, in the order of the operators.

    A graph's own float inputs and outputs do not count when only QUANTIZE and DEQUANTIZE touch them. Neither do
    an LSTM's "intermediates": the schema gives them a type, and no kernel computes with them.
    """
    found: dict[str, None] = {}
    for graph in parse(content).subgraphs:
        border = {*graph.inputs, *graph.outputs}
        for operator in graph.operators:
            for number in (*operator.inputs, *operator.outputs):
                if number < 0 or graph.tensors[number].dtype not in _FLOAT:
                    continue
                if not (number in border and operator.name in _BORDER):
                    found[graph.tensors[number].name] = None
    return list(found)


def check_integer_only(
    content: bytes, layer_names: Sequence[str], *, trained_ranges: bool, calibrated: bool
) -> tuple[str, ...]:
    """Notes about what stays float; a model that could be made whole by calibration is an error.

    Raises:
      ConversionError: a QAT model in which training gave some tensors no range, and no calibration data.
    """
    left = float_tensors(content)
    if not left:
        return ()
    layers = layers_in("\n".join(left), layer_names)
    where = "layers " + ", ".join(layers) if layers else "tensors " + ", ".join(left[:5])
    if trained_ranges and not calibrated:
        raise ConversionError(
            f"Training gave no ranges for some tensors ({where}), and {len(left)} would stay float. Pass calibration= "
            "beside the QAT model; it is used for these only.",
            layers=layers,
        )
    return (
        f"{len(left)} tensors stay float: .tflite has no integer form of their operators ({where}). A "
        "microcontroller or an integer-only accelerator will refuse this file.",
    )
