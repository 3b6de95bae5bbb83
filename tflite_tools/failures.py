"""Turns the converter's failures into one error that names the layer and says what to do."""

import re
from collections.abc import Sequence

from tflite_tools.errors import ConversionError

# What to do about operators that .tflite does not have.
_ADVICE = {
    "FFT2D": "tf.signal.rfft2d has a .tflite form for real inputs; fft2d on complex numbers has none.",
    "PyFunc": "Python code cannot be part of a .tflite file; write the layer with TensorFlow or Keras "
    "operations.",
    "EagerPyFunc": "Python code cannot be part of a .tflite file; write the layer with TensorFlow or Keras "
    "operations.",
    "LookupTableFindV2": "do text and category lookups before the model, and feed it their numbers.",
}


def explain_failure(
    failure: str, printed: str, layer_names: Sequence[str], quantization: str | None
) -> ConversionError:
    """The error to raise for a failed conversion.

    Args:
      failure: what the converter raised, as "Class: message".
      printed: what it printed.
      layer_names: the model's layers.
      quantization: as given to `convert`.

    Example:
      >>> message = "error: 'tf.Igamma' op is neither a custom op nor a flex op ... net_1/gamma_1/Igamma@__f"
      >>> print(explain_failure(message, "", ["gamma"], None))
      .tflite has no operator for Igamma (layer 'gamma'). Replace the layer by one made of supported
      operations, or do this step outside the model.
    """
    text = f"{failure}\n{printed}"
    operators = list(dict.fromkeys(re.findall(r"'tf\.(\w+)' op is neither", text)))
    layers = layers_in(text, layer_names)
    log = text
    if operators:
        where = f" (layer {', '.join(map(repr, layers))})" if layers else ""
        advice = " ".join(_ADVICE[op] for op in operators if op in _ADVICE)
        if not advice:
            advice = (
                "Replace the layer by one made of supported operations, or do this step outside the model."
            )
        return ConversionError(
            f".tflite has no operator for {', '.join(operators)}{where}. {advice[0].upper()}{advice[1:]}",
            layers=layers,
            operators=operators,
            log=log,
        )
    unsupported = list(
        dict.fromkeys(re.findall(r"Quantization to \S+ not yet supported for op: '(\w+)'", text))
    )
    if unsupported:
        return ConversionError(
            f"quantization={quantization!r} does not exist for the operators {', '.join(unsupported)}. Use "
            "quantization='int8' or 'dynamic', or replace the layers that they come from.",
            operators=unsupported,
            log=log,
        )
    if "READ_VARIABLE" in text or "VAR_HANDLE" in text or "VarHandleOp" in text:
        return ConversionError(
            f"The converter cannot quantize this model's variables (state kept between runs): {_short(failure)} "
            "quantization=None, 'float16' and 'dynamic' keep them in float.",
            layers=layers,
            log=log,
        )
    return ConversionError(
        f"The converter gave up: {_short(failure)}{_mentioned(layers)} The full output is in the error's `log` "
        "attribute.",
        layers=layers,
        log=log,
    )


def explain_crash(how: str, printed: str, layer_names: Sequence[str]) -> ConversionError:
    """The error to raise when the converter's process died.

    Args:
      how: as in "was killed by SIGSEGV".
      printed: what it said before.
      layer_names: the model's layers.

    Example:
      >>> print(explain_crash("was killed by SIGABRT", "", []))
      The converter was killed by SIGABRT; this process is unharmed. That is a fault of TensorFlow's native code, which
      this model brings out: try another `quantization`, or convert parts of the model to find the layer. What it
      printed is in the error's `log` attribute.
    """
    layers = layers_in(printed, layer_names)
    return ConversionError(
        f"The converter {how}; this process is unharmed. That is a fault of TensorFlow's native code, which this "
        f"model brings out: try another `quantization`, or convert parts of the model to find the layer."
        f"{_mentioned(layers)} What it printed is in the error's `log` attribute.",
        layers=layers,
        log=printed,
    )


def _mentioned(layers: Sequence[str]) -> str:
    return f" It mentions the layers {', '.join(map(repr, layers))}." if layers else ""


def layers_in(text: str, layer_names: Sequence[str]) -> list[str]:
    """Layers named in the converter's locations, such as "net_1/my_fft_1/FFT2D@__inference_...".

    Keras numbers the scopes of a traced call ("my_fft" becomes "my_fft_1"), so a trailing number is ignored
    when the whole name is unknown.
    """
    known = set(layer_names)
    found: dict[str, None] = {}
    for path in re.findall(r"[\w.:\-]+(?:/[\w.:\-]+)+", text):
        for part in path.split("/")[:-1]:
            shortened = re.sub(r"_\d+$", "", part)
            if part in known:
                found[part] = None
            elif shortened in known:
                found[shortened] = None
    return list(found)


def _short(failure: str) -> str:
    lines = [line.strip() for line in failure.splitlines() if line.strip()]
    first = lines[0] if lines else "it did not say why"
    # A class without words, and the words on the next line.
    if first.endswith(":") and len(lines) > 1:
        first = f"{first} {lines[1]}"
    return first[:300]
