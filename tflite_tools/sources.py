"""What `convert` accepts, turned into one thing: a SavedModel on disk with named, fixed-size signatures.

Every kind of model takes this road, because it is the one on which variables are frozen reliably
(TensorFlow 2.21: concrete functions of a Keras 3 model leave READ_VARIABLE operators in an int8 graph),
and because the input specification of the traced function fixes the batch size.
"""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tflite_tools.errors import ConversionError, nearest
from tflite_tools.keras_sources import from_keras
from tflite_tools.traced import DEFAULT_SIGNATURE, InputSpec, Source, trace, with_batch

if TYPE_CHECKING:
    from tflite_tools.preprocessing import Preprocessing


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
        return from_keras(model, keras, batch_size, signatures, preprocess, unroll=unroll)
    tf_keras = sys.modules.get("tf_keras")  # a tf_keras model cannot exist unless somebody imported it
    if tf_keras is not None and isinstance(model, tf_keras.Model):
        return from_keras(model, tf_keras, batch_size, signatures, preprocess)
    functions = _named_functions(model, tf)
    if functions:
        return _from_functions(functions, batch_size, signatures, preprocess)
    raise TypeError(
        f"model: cannot convert {type(model).__name__}. Expected a keras.Model, a tf_keras.Model, the path of a "
        "SavedModel folder or of a .keras or .h5 file, a tf.function with an input_signature, a concrete function, "
        "or a dictionary of signature name to such functions."
    )


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


def has_loop(source: Source) -> bool:
    """Whether a function holds a loop that the converter cannot fuse into one operator."""
    for function in source.functions.values():
        graph = function.graph.as_graph_def()
        fused = [f for f in graph.library.function if f.attr["api_implements"].s.startswith(b"lstm")]
        parts = [graph.node, *(f.node_def for f in graph.library.function if f not in fused)]
        if any(node.op in ("While", "StatelessWhile") for nodes in parts for node in nodes):
            return True
    return False


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
            InputSpec(
                str(n).split(":")[0], tuple(with_batch(spec.shape.as_list(), batch_size)), spec.dtype.name
            )
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

        traced[key], inputs[key] = trace(call, wanted_specs, preprocess)
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
