"""A new model with fewer channels, or fewer blocks, and the weights of the old one."""

import warnings
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from keras_kd.compression.bridge_graph import run_graph
from keras_kd.selection.channel_graph import ChannelGraph
from keras_kd.selection.pools import counter


def rebuild(
    model: keras.Model,
    graph: ChannelGraph | None = None,
    kept: np.ndarray | None = None,
    *,
    bypassed: dict[str, int] | None = None,
    name: str,
) -> tuple[keras.Model, list[tuple[Any, Any]]]:
    """A Functional model of new layers that bear the names of the old.

    Args:
      model: Functional or Sequential; it is not touched.
      graph: its channels; None keeps all of them.
      kept: bool [ids of the graph].
      bypassed: {path of an addition: which of its inputs to go on with}; layers that lead to the other input only
        are left out.
      name: of the new model.

    Returns:
      The model, trainable throughout and not compiled, and (old layer, new layer) for all of its layers.
    """
    cuts = {} if graph is None else graph.cuts
    new_layers: dict[int, Any] = {}
    pairs: list[tuple[Any, Any]] = []
    taken: set[str] = set()
    symbols = [_fresh_input(tensor) for tensor in model.inputs]
    taken.update(symbol.name for symbol in symbols)

    def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if bypassed is not None and path in bypassed:
            operands = args[0] if isinstance(args[0], (list, tuple)) else args
            return operands[bypassed[path]]
        if id(operation) not in new_layers:
            config = {**operation.get_config(), "name": _free_name(path, taken)}
            if id(operation) in cuts and kept is not None:
                fields = cuts[id(operation)].fields
                config.update({field: value(counter(kept)) for field, value in fields.items()})
            if "trainable" in config:
                config["trainable"] = True
            new_layers[id(operation)] = _made_again(operation, config)
            if isinstance(operation, keras.layers.Layer):
                pairs.append((operation, new_layers[id(operation)]))
        return new_layers[id(operation)](*args, **kwargs)

    outputs = run_graph(model, symbols, visit)
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    inputs = keras.tree.pack_sequence_as(structure, symbols)
    with warnings.catch_warnings():
        # Keras warns of inputs given as a list of one; the structure is the original's and is kept.
        warnings.simplefilter("ignore", UserWarning)
        result = keras.Model(inputs, outputs, name=name)
    alive = {id(layer) for layer in result.layers}
    pairs = [(old, new) for old, new in pairs if id(new) in alive]
    for old, new in pairs:
        _copy_weights(old, new, cuts.get(id(old)), kept)
    result.trainable = True
    return result, pairs


def _made_again(operation: Any, config: dict[str, Any]) -> Any:
    if not isinstance(operation, keras.layers.Lambda):
        return type(operation).from_config(config)
    # The function is already at work in this process; a copy of its code would lose what it closes over.
    again = keras.layers.Lambda.from_config(config, safe_mode=False)
    again.function = operation.function
    return again


def _fresh_input(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)


def _free_name(path: str, taken: Collection[str]) -> str:
    """The layer's own name, with those of the nested models around it where it is taken."""
    parts = path.split("/")
    candidates = ["_".join(parts[start:]) for start in reversed(range(len(parts)))]
    number = 1
    while candidates[0] in taken:
        if len(candidates) > 1:
            candidates.pop(0)
        else:
            candidates = [f"{path.replace('/', '_')}_{number}"]
            number += 1
    taken.add(candidates[0])  # type: ignore[attr-defined]
    return candidates[0]


def _copy_weights(old: Any, new: Any, cut: Any, kept: np.ndarray | None) -> None:
    for source, target in zip(old.weights, new.weights, strict=True):
        value = keras.ops.convert_to_numpy(source)
        axes = () if cut is None else cut.weight_ids.get(source.name, ())
        for axis, ids in enumerate(axes):
            if ids is not None and kept is not None:
                value = np.compress(kept[ids], value, axis=axis)
        target.assign(value)
    if isinstance(new, keras.layers.Normalization):
        # It computes with copies of its weights, made when it was built.
        new.finalize_state()
