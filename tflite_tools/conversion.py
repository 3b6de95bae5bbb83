"""`convert`: a Keras model, a SavedModel or a function becomes a checked .tflite artifact."""

import dataclasses
import platform
import tempfile
import warnings as python_warnings
from collections.abc import Mapping
from typing import Any

from tflite_tools.artifact import TFLiteArtifact, embed
from tflite_tools.calibration import Calibration, check_calibration
from tflite_tools.console import captured_console, remarks
from tflite_tools.converter import (
    Answer,
    Request,
    convert_apart,
    convert_here,
    described,
    start_early,
)
from tflite_tools.errors import CalibrationError, ConversionError, nearest
from tflite_tools.failures import explain_crash, explain_failure
from tflite_tools.file_facts import tensor_types
from tflite_tools.integer_only import check_integer_only
from tflite_tools.keras_sources import keras_inputs
from tflite_tools.preprocessing import Preprocessing, as_preprocessing
from tflite_tools.sources import has_loop, open_source
from tflite_tools.traced import Source
from tflite_tools.training_ranges import check_against_training
from tflite_tools.version import __version__

QUANTIZATIONS = (None, "float16", "dynamic", "int8", "int16x8")
# Entries of `metadata` that tell how the model was made; they go into the provenance.
_PROVENANCE_NAMES = ("recipe", "seed", "dataset", "teacher")
_INTEGER = {"int8": "int8", "int16x8": "int16"}
_INPUT_DTYPES: dict[str | None, tuple[str, ...]] = {
    "int8": ("int8", "uint8", "float32"),
    "int16x8": ("int16", "float32"),
}


def convert(
    model: Any,
    *,
    quantization: str | None = None,
    calibration: Any = None,
    batch_size: int | None = 1,
    input_dtype: str | None = None,
    signatures: Any = None,
    include_preprocessing: Any = None,
    metadata: Mapping[str, Any] | bool | None = None,
    sparse_encoding: bool = False,
    isolate: bool = True,
) -> TFLiteArtifact:
    """Converts a model to a .tflite file in memory.

    Args:
      model: a keras.Model or tf_keras.Model (one after quantization-aware training as well), the path of a
        SavedModel folder or of a .keras or .h5 file, a tf.function with an input signature, a concrete
        function, or a dictionary of signature name to such functions.
      quantization: None (float32 throughout), "float16" (weights only), "dynamic" (int8 weights, activations
        quantized while running), "int8" (integers throughout: calibrated for a float model, the trained
        ranges for a QAT model) or "int16x8" (int16 activations, int8 weights).
      calibration: data like the model's inputs, for "int8" and "int16x8": an array [examples, ...], a
        dictionary by input name, a batched tf.data.Dataset, or a callable that yields batches. Beside a QAT
        model it serves only the tensors that training gave no range.
      batch_size: the fixed leading size of every input whose own is open; None leaves it open.
      input_dtype: type of the file's inputs and outputs. Default: "int8" for quantization="int8", "int16" for
        "int16x8", otherwise the model's own. "float32" leaves quantizing and dequantizing to the file;
        "uint8" is possible for "int8".
      signatures: for a Keras model a dictionary of signature name to keras.Model, for anything else the names
        of the signatures to keep (default: all).
      include_preprocessing: a `tflite_tools.preprocessing.Preprocessing`, or its fields as a dictionary:
        resizing and scaling that become part of the file, so that the app feeds raw pixels.
      metadata: anything JSON can hold, embedded in the file and read back by `load`: class_names,
        input_scaling, ... (recipe, seed, dataset and teacher become part of the provenance). False embeds
        nothing, not even the provenance.
      sparse_encoding: store the weights of pruned layers without their zeros (the converter's
        EXPERIMENTAL_SPARSITY). With TensorFlow 2.21 such a file runs if its weights are float32 or float16; files of
        int8 weights do not run. `keras_kd.CompressedModel.to_tflite` checks that.
      isolate: run TensorFlow's converter in a child process, so that a crash in its native code is a
        ConversionError here. The child is kept for further conversions, and ends when it has had none for two
        minutes. False runs it in this process.

    Returns:
      The artifact, with its provenance; `notes` holds what the converter had to say about the model.

    Raises:
      TypeError, ValueError: an argument that cannot be used.
      CalibrationError: the calibration data do not fit; the message lists every problem.
      ConversionError: the converter gave up; the message names the layer and what to do.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> artifact = convert(model, quantization="float16", metadata={"class_names": ["cat", "dog"]})
      >>> artifact.provenance["quantization"], artifact.class_names
      ('float16', ('cat', 'dog'))
    """
    _check_arguments(quantization, batch_size, input_dtype, metadata)
    if isolate:
        start_early()
    with captured_console() as console:
        preprocessing = as_preprocessing(include_preprocessing)
        source = open_source(
            model,
            batch_size=batch_size,
            signatures=signatures,
            preprocess=preprocessing,
            unroll=quantization in _INTEGER,
        )
    calibrations = _calibrations(source, quantization, calibration, preprocessing)
    content, log = _run_converter(
        source,
        quantization,
        calibrations,
        batch_size or 1,
        input_dtype or _INTEGER.get(str(quantization)),
        sparse_encoding,
        isolate,
    )
    doubts = [f"The calibration data: {text}" for data in calibrations.values() for text in data.warnings]
    for doubt in doubts:
        python_warnings.warn(doubt, stacklevel=2)
    notes = [*source.notes, *doubts, *remarks(console.text + log)]
    if quantization in _INTEGER:
        notes += check_integer_only(
            content,
            source.layer_names,
            trained_ranges=source.trained_ranges,
            calibrated=bool(calibrations),
        )
    notes += _check_quantized_at_all(content, quantization)
    provenance = _provenance(source, quantization, calibrations, batch_size, input_dtype)
    extra = dict(metadata) if isinstance(metadata, Mapping) else {}
    provenance |= {name: extra.pop(name) for name in _PROVENANCE_NAMES if name in extra}
    if preprocessing is not None:
        extra.setdefault("preprocessing", preprocessing.to_dict())
    artifact = TFLiteArtifact(content=content, provenance=provenance, notes=tuple(notes))
    if metadata is False:
        return artifact
    return embed(artifact, provenance=provenance, metadata=extra)


def _check_arguments(
    quantization: str | None, batch_size: int | None, input_dtype: str | None, metadata: Any
) -> None:
    if quantization not in QUANTIZATIONS:
        names = [name for name in QUANTIZATIONS if name]
        raise ValueError(
            f"quantization: expected None or one of {names}, got {quantization!r}.{nearest(str(quantization), names)}"
        )
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size: expected a whole number of at least 1, or None, got {batch_size!r}.")
    allowed = _INPUT_DTYPES.get(quantization, ("float32",))
    if input_dtype is not None and input_dtype not in allowed:
        raise ValueError(
            f"input_dtype: with quantization={quantization!r} the file's inputs and outputs can be "
            f"{' or '.join(allowed)}, got {input_dtype!r}."
        )
    if metadata is not None and not isinstance(metadata, (Mapping, bool)):
        raise TypeError(f"metadata: expected a dictionary, None or False, got {type(metadata).__name__}.")


def _calibrations(
    source: Source, quantization: str | None, calibration: Any, preprocessing: Preprocessing | None
) -> dict[str, Calibration]:
    """Checked calibration data per signature; empty when none are needed."""
    if quantization not in _INTEGER:
        if calibration is not None:
            raise ValueError(
                f"calibration: only quantization='int8' and 'int16x8' use calibration data, not {quantization!r}."
            )
        return {}
    if source.trained_ranges and quantization == "int16x8":
        raise ConversionError(
            "This model was trained for int8 (quantization-aware training), and the converter cannot turn it into "
            "int16x8. Use quantization='int8', or convert the float model with calibration data."
        )
    if calibration is None:
        if source.trained_ranges:
            return {}
        raise ValueError(
            f"calibration: quantization={quantization!r} of a float model needs calibration data: 100 to 500 "
            "examples of the model's inputs, for example calibration=x_train[:500]."
        )
    if has_loop(source):
        raise ConversionError(
            f"quantization={quantization!r} cannot quantize this model's loops (TensorFlow 2.21 ends the process "
            "when it tries). Build its recurrent layers with unroll=True, or use quantization='dynamic' or 'float16'."
        )
    if len(set(source.inputs.values())) == 1:  # one signature, or several that take the same inputs
        calibration = dict.fromkeys(source.functions, calibration)
    elif not isinstance(calibration, Mapping) or set(calibration) != set(source.functions):
        raise ValueError(
            "calibration: this model has several signatures with inputs of their own; pass a dictionary with data "
            f"for each of {sorted(source.functions)}."
        )
    return {name: _checked(source, name, calibration[name], preprocessing) for name in source.functions}


def _checked(source: Source, name: str, data: Any, preprocessing: Preprocessing | None) -> Calibration:
    """One signature's data, checked for form, and then against what the model remembers of its training."""
    checked = check_calibration(data, source.inputs[name])
    model = source.models.get(name)
    if model is None:
        return checked
    arrays: Mapping[str, Any] = checked.arrays
    if preprocessing is not None:
        specs = keras_inputs(model, None)
        ready = preprocessing(specs, [arrays[spec.name] for spec in source.inputs[name]])
        arrays = {spec.name: tensor.numpy() for spec, tensor in zip(specs, ready)}
    problems: list[str] = []
    warnings = list(checked.warnings)
    with captured_console():
        check_against_training(model, arrays, problems, warnings)
    if problems:
        raise CalibrationError(problems)
    return dataclasses.replace(checked, warnings=tuple(warnings))


def _run_converter(
    source: Source,
    quantization: str | None,
    calibrations: Mapping[str, Calibration],
    batch_size: int,
    io_dtype: str | None,
    sparse: bool,
    isolate: bool,
) -> tuple[bytes, str]:
    """The converted bytes, and everything that was printed on the way."""
    with tempfile.TemporaryDirectory(prefix="tflite_tools_") as folder:
        answer = _write(source, folder)
        if answer.failure is None:
            request = Request(folder, tuple(source.functions), quantization, io_dtype, batch_size, sparse)
            said = answer.log
            answer = (convert_apart if isolate else convert_here)(request, calibrations)
            answer = dataclasses.replace(answer, log=said + answer.log)
    if answer.crash is not None:
        raise explain_crash(answer.crash, answer.log, source.layer_names)
    if answer.failure is not None:
        raise explain_failure(answer.failure, answer.log, source.layer_names, quantization)
    return answer.content, answer.log


def _write(source: Source, folder: str) -> Answer:
    failure = None
    with captured_console() as console:
        try:
            source.write(folder)
        except Exception as error:  # as many kinds as there are models
            failure = described(error)
    return Answer(failure=failure, log=console.text)


def _check_quantized_at_all(content: bytes, quantization: str | None) -> list[str]:
    """A note when the weights stayed float32 although they were to become smaller."""
    wanted = {"dynamic": 9, "float16": 1}.get(str(quantization))  # TensorType INT8 and FLOAT16
    if wanted is None or any(kind == wanted for _, kind, _ in tensor_types(content)):
        return []
    return [
        f"quantization={quantization!r} changed nothing: the converter leaves small weights (below 1024 elements) as "
        "they are, and this model has no others."
    ]


def _provenance(
    source: Source,
    quantization: str | None,
    calibrations: Mapping[str, Calibration],
    batch_size: int | None,
    input_dtype: str | None,
) -> dict[str, Any]:
    import keras
    import tensorflow as tf

    # No date and no host: the same model, data and versions give the same bytes.
    provenance: dict[str, Any] = {
        "tool": "tflite_tools",
        "versions": {
            "tflite_tools": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
        "source": source.kind,
        "model_name": source.name,
        "weights_sha256": source.weights_sha256(),
        "quantization": quantization or "float32",
        "quantization_aware_training": source.trained_ranges,
        "batch_size": batch_size,
        "input_dtype": input_dtype or _INTEGER.get(str(quantization), "float32"),
    }
    if calibrations:
        provenance["calibration"] = {
            name: {"examples": data.num_examples, "sha256": data.sha256()}
            for name, data in calibrations.items()
        }
    return provenance
