"""Keras 3 and tf_keras models as sources for `convert`."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tflite_tools.errors import ConversionError
from tflite_tools.traced import DEFAULT_SIGNATURE, InputSpec, Source, trace, with_batch

if TYPE_CHECKING:
    from tflite_tools.preprocessing import Preprocessing

# TF-MOT's wrappers, by name: importing TF-MOT to ask isinstance would change tf.keras for the process.
_QUANTIZE_LAYERS = {"QuantizeWrapper", "QuantizeWrapperV2", "QuantizeLayer"}
_UNFINISHED_LAYERS = {
    "PruneLowMagnitude": "tfmot.sparsity.keras.strip_pruning(model)",
    "QuantizeAnnotate": "tfmot.quantization.keras.quantize_apply(model)",
    "ClusterWeights": "tfmot.clustering.keras.strip_clustering(model)",
}


def _in_float32(model: Any, package: Any) -> tuple[Any, tuple[str, ...]]:
    """The model itself, or a copy of a mixed-precision one that computes in float32: .tflite has no float16 kernels."""
    dtypes = {str(getattr(layer, "compute_dtype", "float32")) for layer in _all_layers(model)}
    half = sorted(dtypes & {"float16", "bfloat16"})
    if not half:
        return model, ()

    def in_float32(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    try:
        copy = package.models.clone_model(model, clone_function=in_float32)
        copy.set_weights(model.get_weights())
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"The model computes in {half[0]}, for which .tflite has no operators, and it could not be rebuilt in "
            f"float32 ({error}). Build it under the float32 policy and load its weights there."
        ) from error
    return copy, (f"The model computes in {half[0]}; the file computes in float32.",)


def from_keras(
    model: Any,
    package: Any,
    batch_size: int | None,
    signatures: Any,
    preprocess: "Preprocessing | None",
    *,
    unroll: bool = False,
) -> Source:
    """The source of a model.

    Args:
      model: a model of the package.
      package: the module keras or tf_keras.
      batch_size: as for `open_source`.
      signatures: as for `open_source`.
      preprocess: as for `open_source`.
      unroll: as for `open_source`.
    """
    model, precision = _in_float32(model, package)
    with _unrolled(model, unroll) as notes:
        source = _from_keras(model, package.__name__, batch_size, signatures, preprocess)
    return dataclasses.replace(source, notes=precision + notes)


def _from_keras(
    model: Any, kind: str, batch_size: int | None, signatures: Any, preprocess: "Preprocessing | None"
) -> Source:
    layers = _all_layers(model)
    _refuse_unfinished(layers)
    if not model.built:
        raise ConversionError(
            f"The model {model.name!r} has no weights yet. Call it once on data, or build it with an input shape."
        )
    named = {DEFAULT_SIGNATURE: model}
    if signatures is not None:
        if not isinstance(signatures, Mapping) or not all(callable(part) for part in signatures.values()):
            raise TypeError(
                "signatures: for a Keras model, expected a dictionary of signature name to a keras.Model (often one "
                f"that shares layers with the model), got {signatures!r}."
            )
        named = dict(signatures)
    functions, inputs = {}, {}
    for name, part in named.items():
        specs = keras_inputs(part, batch_size)
        functions[name], inputs[name] = trace(_keras_call(part), specs, preprocess)
    variables = {id(v): v for function in functions.values() for v in function.graph.variables}
    return Source(
        kind=kind,
        name=model.name,
        inputs=inputs,
        functions=functions,
        layer_names=tuple(layer.name for layer in layers),
        variables=tuple(variables.values()),
        weights=tuple(model.weights),
        trained_ranges=any(type(layer).__name__ in _QUANTIZE_LAYERS for layer in layers),
        models=named,
    )


@contextlib.contextmanager
def _unrolled(model: Any, wanted: bool) -> Iterator[tuple[str, ...]]:
    """Recurrent layers with `unroll` set while the context is open.

    Keras 3 traces them as a WHILE loop, and TensorFlow 2.21's calibrator ends the process with a segmentation
    fault on such a loop. tf_keras traces an LSTM as one fused operator, which quantizes as it is.
    """
    layers = [layer for layer in _all_layers(model) if wanted and getattr(layer, "unroll", None) is False]
    for layer in layers:
        layer.unroll = True
    names = ", ".join(layer.name for layer in layers)
    try:
        yield (f"The recurrent layers {names} were unrolled: integer files have no loops.",) if layers else ()
    finally:
        for layer in layers:
            layer.unroll = False


def _all_layers(model: Any) -> list[Any]:
    """Layers of the model and of the models inside it, wrapped layers included."""
    found: list[Any] = []
    pending = list(getattr(model, "layers", ()))
    while pending:
        layer = pending.pop(0)
        found.append(layer)
        pending += getattr(layer, "layers", None) or []
        inner = [getattr(layer, name, None) for name in ("layer", "forward_layer", "backward_layer")]
        pending += [part for part in inner if hasattr(part, "name")]
    return found


def _refuse_unfinished(layers: Sequence[Any]) -> None:
    for layer in layers:
        advice = _UNFINISHED_LAYERS.get(type(layer).__name__)
        if advice is not None:
            raise ConversionError(
                f"The layer {layer.name!r} still carries TF-MOT's training wrapper {type(layer).__name__}. Finish it "
                f"first: {advice}.",
                layers=[layer.name],
            )


def keras_inputs(model: Any, batch_size: int | None) -> tuple[InputSpec, ...]:
    """The inputs of a Keras model, in its own order."""
    tensors = getattr(model, "inputs", None)
    if not tensors:
        raise ConversionError(
            f"The inputs of {model.name!r} are not known: it is a subclassed model. Convert a function of it "
            "instead, for example tf.function(lambda x: model(x, training=False), "
            "input_signature=[tf.TensorSpec([1, 28, 28, 1])])."
        )
    names = [str(tensor.name).split(":")[0] for tensor in tensors]
    return tuple(
        InputSpec(name, tuple(with_batch(tensor.shape, batch_size)), _dtype_name(tensor.dtype))
        for name, tensor in zip(names, tensors)
    )


def _dtype_name(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))


def _keras_call(model: Any) -> Callable[..., Any]:
    structure = getattr(model, "input", None)

    def call(*tensors: Any) -> dict[str, Any]:
        if isinstance(structure, Mapping):
            by_name = {str(t.name).split(":")[0]: value for t, value in zip(model.inputs, tensors)}
            fed: Any = {key: by_name[str(t.name).split(":")[0]] for key, t in structure.items()}
        else:
            fed = tensors[0] if len(tensors) == 1 else list(tensors)
        outputs = model(fed, training=False)
        if isinstance(outputs, Mapping):
            return dict(outputs)
        listed = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        names = list(getattr(model, "output_names", None) or [])
        if len(names) != len(listed) or len(set(names)) != len(names):
            names = [f"output_{number}" for number in range(len(listed))]
        return dict(zip(names, listed))

    return call
