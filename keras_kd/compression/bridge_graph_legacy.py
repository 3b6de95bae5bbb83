"""Walks the graph of a tf_keras model, whose configuration has another form than that of Keras 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

Values = dict[tuple[str, int, int], Any]


def run_legacy_graph(model: Any, inputs: list[Any], visit: Callable[..., Any], prefix: str) -> Any:
    """`bridge_graph.run_graph` for a Functional or built Sequential tf_keras model."""
    if isinstance(model, tf_keras.Sequential):
        value = inputs[0]
        for layer in model.layers:
            value = visit(layer, f"{prefix}{layer.name}", (value,), {})
        return value
    config = model.get_config()
    names = [tensor.node.layer.name for tensor in model.inputs]
    values: Values = {(name, 0, 0): value for name, value in zip(names, inputs)}
    pending = [
        (layer["name"], index, node)
        for layer in config["layers"]
        for index, node in enumerate(layer["inbound_nodes"])
    ]
    # A nested model with an Input counts its own definition as call 0, both in arguments and in outputs.
    first = {layer.name: int(_counts_itself(layer)) for layer in model.layers}
    known = set(first)
    while pending:
        waiting = []
        for name, index, node in pending:
            try:
                args, kwargs = _arguments(node, values, known)
            except KeyError:
                waiting.append((name, index, node))
                continue
            result = visit(model.get_layer(name), f"{prefix}{name}", args, kwargs)
            for position, value in enumerate(tf.nest.flatten(result)):
                values[name, index + first[name], position] = value
        if len(waiting) == len(pending):
            raise ValueError(
                f"The graph of model {model.name!r} could not be ordered; stuck at {waiting[0][0]}."
            )
        pending = waiting
    return _filled(config["output_layers"], values, known)


def _counts_itself(layer: Any) -> bool:
    if not isinstance(layer, tf_keras.Model):
        return False
    inner = layer.get_config().get("layers", [])
    return bool(inner) and inner[0]["class_name"] == "InputLayer"


def _arguments(node: Any, values: Values, known: set[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One call's positional and keyword arguments with tensors filled in."""
    kwargs: dict[str, Any] = {}

    def read(entry: Any) -> Any:
        if _is_call_argument(entry):
            name, index, position, options = entry
            kwargs.update({key: _filled(item, values, known) for key, item in options.items()})
            # Operators write a constant on their left side like this.
            return position if name == "_CONSTANT_VALUE" else values[name, index, position]
        if isinstance(entry, Mapping):
            return {key: read(item) for key, item in entry.items()}
        return [read(item) for item in entry]

    given = read(node)
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return (given,), {key: item for key, item in kwargs.items() if item is not None}


def _is_call_argument(entry: Any) -> bool:
    return (
        isinstance(entry, (list, tuple))
        and len(entry) == 4
        and isinstance(entry[0], str)
        and isinstance(entry[3], Mapping)
    )


def _filled(item: Any, values: Values, known: set[str]) -> Any:
    """Replaces [name, call, position] by its tensor, in any structure."""
    if isinstance(item, (list, tuple)):
        if len(item) == 3 and isinstance(item[0], str) and item[0] in known:
            return values[item[0], item[1], item[2]]
        filled = [_filled(entry, values, known) for entry in item]
        return (
            filled[0]
            if len(filled) == 1 and isinstance(item[0], (list, tuple)) and _is_end(item[0])
            else filled
        )
    if isinstance(item, Mapping) and not {"start", "stop", "step"} <= set(item):
        return {key: _filled(entry, values, known) for key, entry in item.items()}
    return item


def _is_end(entry: Any) -> bool:
    return len(entry) == 3 and isinstance(entry[0], str)
