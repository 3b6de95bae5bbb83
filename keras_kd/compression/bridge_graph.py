"""Reads the graph of a Keras 3 Functional or Sequential model through its public configuration.

`run_graph` is a small interpreter: it walks the operations in order and leaves the meaning of each one to
a callback. The bridge uses it twice, to build the tf_keras graph and to replay the original model layer
by layer when the parity check looks for the first one that differs.
"""

from collections.abc import Callable
from typing import Any

import keras

# What a callback receives: the live Keras operation, its path, and its arguments with tensors filled in.
Visitor = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]


def is_graph_model(operation: Any) -> bool:
    """Whether `operation` is a model whose layers can be walked: Functional or a built Sequential."""
    if isinstance(operation, keras.Model):
        return isinstance(operation, keras.Sequential) or hasattr(operation, "operations")
    return _is_legacy_graph(operation)


def _is_legacy_graph(operation: Any) -> bool:
    """Whether this is a tf_keras model with a graph of layers."""
    import tf_keras

    if not isinstance(operation, tf_keras.Model):
        return False
    return isinstance(operation, tf_keras.Sequential) or type(operation).__name__ == "Functional"


def run_graph(model: keras.Model, inputs: list[Any], visit: Visitor, prefix: str = "", **forced: Any) -> Any:
    """Runs `model` on `inputs`, calling `visit` for every operation that is not a nested model.

    Args:
      model: a Functional model or a built Sequential.
      inputs: one value per entry of `model.inputs`, in that order.
      visit: called as `visit(operation, path, args, kwargs)`; returns the operation's output value(s).
      prefix: put in front of every path.
      **forced: keyword arguments of the model's own call that its layers inherit (`training=False`).

    Returns:
      The outputs in the model's own structure (a value, a list or a dict).
    """
    if _is_legacy_graph(model):
        from keras_kd.compression.bridge_graph_legacy import run_legacy_graph

        def open_models(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _visit(operation, path, args, kwargs, visit)

        return run_legacy_graph(model, inputs, open_models, prefix)
    if isinstance(model, keras.Sequential):
        value = inputs[0]
        for layer in model.layers:
            value = _visit(layer, f"{prefix}{layer.name}", (value,), dict(forced), visit)
        return value
    return _run_functional(model, inputs, visit, prefix, forced)


def _run_functional(
    model: keras.Model, inputs: list[Any], visit: Visitor, prefix: str, forced: dict[str, Any]
) -> Any:
    config = model.get_config()
    if "layers" not in config:
        # A subclass that calls `super().__init__(inputs, outputs)` has its own get_config; a plain
        # Functional around the same tensors holds the same layers and describes the graph.
        model = keras.Model(model.inputs, model.outputs)
        config = model.get_config()
    operations = {operation.name: operation for operation in model.operations}
    input_names = [_history(entry)[0] for entry in _leaves(config["input_layers"])]
    # (operation, node, tensor) -> value. A node is one call of an operation.
    values: dict[tuple[str, int, int], Any] = {(name, 0, 0): v for name, v in zip(input_names, inputs)}
    pending = [
        (layer["name"], node_index, node)
        for layer in config["layers"]
        for node_index, node in enumerate(layer["inbound_nodes"])
        if layer["name"] not in input_names
    ]
    while pending:
        waiting = []
        for name, node_index, node in pending:
            try:
                args = _fill(node["args"], values)
                kwargs = _fill(node["kwargs"], values)
            except KeyError:  # an input of this call is computed by a later entry
                waiting.append((name, node_index, node))
                continue
            operation = operations[name]
            if isinstance(operation, keras.layers.Layer):  # keras.ops operations know no `training`
                kwargs = {**{k: v for k, v in forced.items() if k not in kwargs}, **kwargs}
            result = _visit(operation, f"{prefix}{name}", tuple(args), kwargs, visit)
            for tensor_index, value in enumerate(_leaves(result)):
                values[name, node_index, tensor_index] = value
        if len(waiting) == len(pending):
            names = sorted({name for name, _, _ in waiting})
            raise ValueError(f"The graph of model {model.name!r} could not be ordered; stuck at {names}.")
        pending = waiting
    nested = {
        name
        for name, operation in operations.items()
        if isinstance(operation, keras.Model) and not isinstance(operation, keras.Sequential)
    }
    return _outputs(config["output_layers"], values, nested)


def _visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], visit: Visitor) -> Any:
    if not is_graph_model(operation):
        return visit(operation, path, args, kwargs)
    inherited = {"training": kwargs["training"]} if kwargs.get("training") is not None else {}
    flat = _leaves(args[0] if args else kwargs["inputs"], order=operation)
    return run_graph(operation, flat, visit, path + "/", **inherited)


def _history(entry: Any) -> tuple[str, int, int]:
    name, node_index, tensor_index = entry
    return name, node_index, tensor_index


def _is_history(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 3 and isinstance(entry[0], str)


def _outputs(entry: Any, values: dict[tuple[str, int, int], Any], nested: set[str]) -> Any:
    """Replaces every [name, node, tensor] of the config's output structure by its value."""
    if _is_history(entry):
        name, node_index, tensor_index = _history(entry)
        # In this structure alone Keras 3.15 counts the calls of a nested Functional from 1: its node 0 is its
        # own definition. In the arguments of calls it counts them from 0.
        return values[name, node_index - (name in nested), tensor_index]
    if isinstance(entry, dict):
        return {key: _outputs(item, values, nested) for key, item in entry.items()}
    return [_outputs(item, values, nested) for item in entry]


def _fill(item: Any, values: dict[tuple[str, int, int], Any]) -> Any:
    """Deserializes one argument of a call: tensors come from `values`, the rest is rebuilt by Keras."""
    if isinstance(item, dict):
        if item.get("class_name") == "__keras_tensor__":
            return values[_history(item["config"]["keras_history"])]
        if "class_name" in item and "config" in item:
            return keras.saving.deserialize_keras_object(item)
        return {key: _fill(value, values) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [_fill(value, values) for value in item]
    return item


def _leaves(structure: Any, order: Any = None) -> list[Any]:
    """Flattens lists, tuples and dicts; dicts by their sorted keys, as Keras orders `model.inputs`.

    A dict that is handed to a model `order` is read in the order of that model's named inputs.
    """
    if _is_history(structure):
        return [structure]
    if isinstance(structure, dict):
        keys = sorted(structure)
        if order is not None:
            named = [tensor.name for tensor in order.inputs]
            if set(named) <= set(keys):
                keys = named
        return [leaf for key in keys for leaf in _leaves(structure[key])]
    if isinstance(structure, (list, tuple)):
        return [leaf for item in structure for leaf in _leaves(item)]
    return [structure]
