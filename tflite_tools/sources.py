"""What `convert` accepts, turned into one thing: a SavedModel on disk with named, fixed-size signatures.

Every kind of model takes this road, because it is the one on which variables are frozen reliably
(TensorFlow 2.21: concrete functions of a Keras 3 model leave READ_VARIABLE operators in an int8 graph),
and because the input specification of the traced function fixes the batch size.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tflite_tools.errors import ConversionError, nearest

if TYPE_CHECKING:
    from tflite_tools.preprocessing import Preprocessing

DEFAULT_SIGNATURE = "serving_default"

# TF-MOT's wrappers, by name: importing TF-MOT to ask isinstance would change tf.keras for the process.
_QUANTIZE_LAYERS = {"QuantizeWrapper", "QuantizeWrapperV2", "QuantizeLayer"}
_UNFINISHED_LAYERS = {
    "PruneLowMagnitude": "tfmot.sparsity.keras.strip_pruning(model)",
    "QuantizeAnnotate": "tfmot.quantization.keras.quantize_apply(model)",
    "ClusterWeights": "tfmot.clustering.keras.strip_clustering(model)",
}


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of a signature: shape has None where a size is open, the batch included."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A model ready to be written as a SavedModel.

    Attributes:
      kind: "keras", "tf_keras", "saved_model" or "function".
      inputs: per signature, its inputs in the model's own order.
      functions: per signature, the traced function.
      layer_names: the model's layers, to recognise them in the converter's messages.
      variables: what the functions read; saved along.
      weights: the model's weights in its own order; hashed into the provenance.
      trained_ranges: whether the model carries quantization ranges from quantization-aware training.
      models: per signature, the Keras model behind it; empty for other kinds.
      notes: what was done to the model on the way.
      keep: objects that own variables and tables; they must stay alive and be saved along.
    """

    kind: str
    name: str
    inputs: dict[str, tuple[InputSpec, ...]]
    functions: dict[str, Any]
    layer_names: tuple[str, ...]
    variables: tuple[Any, ...]
    weights: tuple[Any, ...]
    trained_ranges: bool
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    keep: tuple[Any, ...] = ()

    def write(self, folder: str) -> None:
        """Writes the SavedModel."""
        import tensorflow as tf

        module = tf.Module()
        module.held = list(self.variables)
        module.owners = list(self.keep)
        tf.saved_model.save(module, folder, signatures=self.functions)

    def weights_sha256(self) -> str:
        """SHA-256 over dtype, shape and bytes of every weight, in the order of `model.weights`."""
        digest = hashlib.sha256()
        for variable in self.weights:
            try:
                value = np.ascontiguousarray(variable.numpy())
            except (AttributeError, TypeError, NotImplementedError):
                continue  # a table or a string variable; it has no weights
            if value.dtype == object:
                continue
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()


def open_source(
    model: Any,
    *,
    batch_size: int | None,
    signatures: Any,
    preprocess: "Preprocessing | None" = None,
    unroll: bool = False,
) -> Source:
    """Recognises what came and traces its signatures.

    Args:
      model: see `convert`.
      batch_size: the fixed leading size of every input; None leaves it open.
      signatures: see `convert`.
      preprocess: what to put in front of every signature.
      unroll: trace the recurrent layers of a Keras 3 model step by step instead of as a loop.

    Raises:
      TypeError: nothing that can be converted; the message lists what can.
      ConversionError: a model without known inputs, or one whose TF-MOT wrappers were not stripped.
    """
    import keras
    import tensorflow as tf

    if isinstance(model, (str, os.PathLike)):
        path = pathlib.Path(model)
        if (path / "saved_model.pb").is_file():
            return _from_saved_model(path, batch_size, signatures, preprocess)
        model = _load_keras_file(path)
    if isinstance(model, keras.Model):
        model, precision = _in_float32(model, keras)
        with _unrolled(model, unroll) as notes:
            source = _from_keras(model, "keras", batch_size, signatures, preprocess)
        return dataclasses.replace(source, notes=precision + notes)
    tf_keras = sys.modules.get("tf_keras")  # a tf_keras model cannot exist unless somebody imported it
    if tf_keras is not None and isinstance(model, tf_keras.Model):
        model, precision = _in_float32(model, tf_keras)
        source = _from_keras(model, "tf_keras", batch_size, signatures, preprocess)
        return dataclasses.replace(source, notes=precision)
    functions = _named_functions(model, tf)
    if functions:
        return _from_functions(functions, batch_size, signatures, preprocess)
    raise TypeError(
        f"model: cannot convert {type(model).__name__}. Expected a keras.Model, a tf_keras.Model, the path of a "
        "SavedModel folder or of a .keras or .h5 file, a tf.function with an input_signature, a concrete function, "
        "or a dictionary of signature name to such functions."
    )


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


def _load_keras_file(path: pathlib.Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"model: there is no file or folder {path}")
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise TypeError(
            f"model: {path} is neither a SavedModel folder (no saved_model.pb in it) nor a .keras or .h5 file."
        )
    import keras

    return keras.models.load_model(path, compile=False)


def _named_functions(model: Any, tf: Any) -> dict[str, Any]:
    named = model if isinstance(model, Mapping) else {DEFAULT_SIGNATURE: model}
    functions = {}
    for name, function in named.items():
        if hasattr(function, "structured_input_signature"):
            functions[str(name)] = function
        elif hasattr(function, "get_concrete_function"):
            if getattr(function, "input_signature", None) is None:
                raise ConversionError(
                    f"The tf.function {name!r} does not say which inputs it takes. Give it an input_signature, or "
                    "pass function.get_concrete_function(tf.TensorSpec(...))."
                )
            functions[str(name)] = function.get_concrete_function()
        else:
            return {}
    return functions


def _fixed(shape: Sequence[int | None], batch_size: int | None) -> list[int | None]:
    sizes = list(shape)
    if sizes and sizes[0] is None:
        sizes[0] = batch_size
    return sizes


def _traced(
    call: Callable[..., Any], specs: Sequence[InputSpec], preprocess: "Preprocessing | None"
) -> tuple[Any, tuple[InputSpec, ...]]:
    """A concrete function over keyword inputs, and the inputs as the app will feed them."""
    import tensorflow as tf

    fed = tuple(specs) if preprocess is None else tuple(preprocess.feeds(spec) for spec in specs)

    def serve(*tensors: Any) -> Any:
        ready = tensors if preprocess is None else preprocess(specs, tensors)
        return call(*ready)

    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in fed]
    # Keras and the preprocessing are graph code already; AutoGraph would only warn about what it cannot read.
    return tf.function(serve, input_signature=signature, autograph=False).get_concrete_function(), fed


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
        functions[name], inputs[name] = _traced(_keras_call(part), specs, preprocess)
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


def has_loop(source: Source) -> bool:
    """Whether a function holds a loop that the converter cannot fuse into one operator."""
    for function in source.functions.values():
        graph = function.graph.as_graph_def()
        fused = [f for f in graph.library.function if f.attr["api_implements"].s.startswith(b"lstm")]
        parts = [graph.node, *(f.node_def for f in graph.library.function if f not in fused)]
        if any(node.op in ("While", "StatelessWhile") for nodes in parts for node in nodes):
            return True
    return False


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
        InputSpec(name, tuple(_fixed(tensor.shape, batch_size)), _dtype_name(tensor.dtype))
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


def _from_saved_model(
    path: pathlib.Path, batch_size: int | None, signatures: Any, preprocess: "Preprocessing | None"
) -> Source:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    available = dict(loaded.signatures)
    if not available:
        raise ConversionError(
            f"The SavedModel {path} has no signatures. Save it with tf.saved_model.save(model, path, signatures=...)."
        )
    # Keras exports one function under two names; a file needs it once.
    default, alias = available.get(DEFAULT_SIGNATURE), available.get("serve")
    if signatures is None and default is not None and alias is not None and _same_signature(default, alias):
        del available["serve"]
    return _from_functions(
        available, batch_size, signatures, preprocess, kind="saved_model", name=path.name, keep=(loaded,)
    )


def _same_signature(first: Any, second: Any) -> bool:
    return (
        first.structured_input_signature == second.structured_input_signature
        and first.structured_outputs == second.structured_outputs
    )


def _from_functions(
    functions: Mapping[str, Any],
    batch_size: int | None,
    signatures: Any,
    preprocess: "Preprocessing | None",
    *,
    kind: str = "function",
    name: str = "function",
    keep: tuple[Any, ...] = (),
) -> Source:
    wanted = list(functions) if signatures is None else list(signatures)
    for key in wanted:
        if key not in functions:
            raise ValueError(
                f"signatures: there is no signature {key!r}; there are {sorted(functions)}.{nearest(key, functions)}"
            )
    traced, inputs = {}, {}
    for key in wanted:
        function = functions[key]
        positional, keyword = function.structured_input_signature
        specs = [spec for spec in positional if hasattr(spec, "shape")] + list(keyword.values())
        names = [
            spec.name or f"input_{number}" for number, spec in enumerate(specs[: len(positional)])
        ] + list(keyword)
        wanted_specs = [
            InputSpec(str(n).split(":")[0], tuple(_fixed(spec.shape.as_list(), batch_size)), spec.dtype.name)
            for n, spec in zip(names, specs)
        ]

        def call(
            *tensors: Any, function: Any = function, count: int = len(positional), keys: Any = tuple(keyword)
        ) -> Any:
            outputs = function(*tensors[:count], **dict(zip(keys, tensors[count:])))
            if isinstance(outputs, Mapping):
                return dict(outputs)
            listed = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
            return {f"output_{number}": value for number, value in enumerate(listed)}

        traced[key], inputs[key] = _traced(call, wanted_specs, preprocess)
    variables = {id(v): v for function in traced.values() for v in function.graph.variables}
    return Source(
        kind=kind,
        name=name,
        inputs=inputs,
        functions=traced,
        layer_names=(),
        variables=tuple(variables.values()),
        weights=tuple(variables.values()),
        trained_ranges=_has_fake_quantization(traced.values()),
        keep=(*keep, *functions.values()) if kind == "saved_model" else keep,
    )


def _has_fake_quantization(functions: Any) -> bool:
    for function in functions:
        graph = function.graph.as_graph_def()
        nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
        if any(node.op.startswith(("FakeQuantWithMinMax", "QuantizeAndDequantize")) for node in nodes):
            return True
    return False
