"""A model's outputs and named inner features, in one forward pass.

A tap is the name of a layer (or of an operation such as an addition) of a Functional or Sequential model;
`"backbone/block_3_add"` is the layer `block_3_add` of the nested model `backbone`. Where a layer is called
more than once, its name means the first call and `"name:1"` the second.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_kd.errors import TapError, UnknownNameError, nearest

Tensor = Any
Shape = tuple[int | None, ...]

_OUTPUTS = "keras_kd_outputs"


class TappedModel:
    """A model that also returns the features of named layers; it shares every weight with the model.

    Args:
      model: any `keras.Model`; with `layer_names`, a Functional or Sequential one that is built.
      layer_names: the taps; may be empty.
      replace: None, or a callable from each layer or operation of the graph, those of nested models included, to the
        one that is called in its place (itself, to leave it).

    Raises:
      UnknownNameError: a name does not exist; the message lists the nearest ones.
      TapError: the model, or a nested one on the way, has no graph of layers to tap into.

    Example:
      >>> import numpy as np
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="hidden"), keras.layers.Dense(2)])
      >>> outputs, features = TappedModel(model, ["hidden"])(np.ones((5, 3)))
      >>> tuple(outputs.shape), {name: tuple(feature.shape) for name, feature in features.items()}
      ((5, 2), {'hidden': (5, 4)})
    """

    def __init__(
        self, model: Any, layer_names: Iterable[str] = (), *, replace: Callable[[Any], Any] | None = None
    ):
        self.model = model
        self.layer_names = tuple(dict.fromkeys(layer_names))
        wanted = self.layer_names or replace is not None
        self._graph = tap_graph(model, self.layer_names, replace=replace) if wanted else None

    @property
    def feature_shapes(self) -> dict[str, Any]:
        """Shape of each feature with the batch as None (a nest of shapes where a layer returns a nest)."""
        if self._graph is None:
            return {}
        outputs = self._graph.output
        return {
            name: keras.tree.map_structure(lambda tensor: tuple(tensor.shape), outputs[_key(name)])
            for name in self.layer_names
        }

    def __call__(self, x: Any, training: bool = False) -> tuple[Any, dict[str, Any]]:
        """(outputs, {layer name: feature}) of one forward pass."""
        if self._graph is None:
            return self.model(x, training=training), {}
        results = self._graph(x, training=training)
        return results[_OUTPUTS], {name: results[_key(name)] for name in self.layer_names}


def _key(name: str) -> str:
    return f"tap {name}"


def has_graph(model: Any) -> bool:
    """Whether the model's layers can be tapped: Functional, or a built Sequential."""
    return bool(getattr(model, "inputs", None)) and bool(getattr(model, "outputs", None))


def overrides_call(model: Any) -> bool:
    """Whether a model is run by Python code of its own class: also a Functional model's class may override `call`."""
    call = type(model).call
    is_kerass = call.__module__.partition(".")[0] == "keras"
    return not (is_kerass and call.__qualname__ in ("Functional.call", "Sequential.call"))


def follows_graph(model: Any) -> bool:
    """Whether calling the model runs its graph of layers and nothing else."""
    return isinstance(model, keras.Model) and has_graph(model) and not overrides_call(model)


def _children(model: Any) -> dict[str, Any]:
    """Everything in a model's graph that produces a tensor, by name, in order."""
    operations = model.layers if isinstance(model, keras.Sequential) else model.operations
    return {operation.name: operation for operation in operations}


def tap_candidates(model: Any, *, prefix: str = "") -> list[str]:
    """Every name that can be tapped in a model, nested models included, in the order of the graph.

    Example:
      >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")], name="inner")
      >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.ReLU(name="relu")])
      >>> tap_candidates(model)
      ['inner', 'inner/dense', 'relu']
    """
    names: list[str] = []
    if not follows_graph(model):
        return names
    for name, child in _children(model).items():
        if isinstance(child, keras.layers.InputLayer):
            continue
        names.append(prefix + name)
        if isinstance(child, keras.Model):
            names.extend(tap_candidates(child, prefix=f"{prefix}{name}/"))
    return names


def _require_graph(model: Any, path: str, name: str) -> None:
    where = f"the nested model {path!r}" if path else f"the model {getattr(model, 'name', model)!r}"
    if not isinstance(model, keras.Model):
        raise TapError(
            f"The tap {name!r} goes inside {path!r}, which is a {type(model).__name__} layer: only the layers of "
            "Functional and Sequential models can be tapped. Tap the layer as a whole."
        )
    if follows_graph(model):
        return
    if isinstance(model, keras.Sequential) and not has_graph(model):
        raise TapError(
            f"The tap {name!r} cannot be reached: {where} is a Sequential model that has not been built. Begin it "
            "with a keras.Input, or call it on a batch first."
        )
    raise TapError(
        f"The tap {name!r} cannot be reached: {where} is a subclassed model, whose layers are called by Python code "
        f"({type(model).__name__}.call) and form no graph that could be followed. Use a Functional or Sequential "
        "model, or a loss on the outputs (LogitsDistillation), which works with every model."
    )


def _split(name: str) -> tuple[str, str]:
    head, _, rest = name.partition("/")
    return head, rest


def _call_index(head: str, children: dict[str, Any]) -> tuple[str, int]:
    """`"layer:1"` to ("layer", 1); a name that exists as it stands is that name."""
    base, colon, index = head.rpartition(":")
    if head not in children and colon and index.isdigit():
        return base, int(index)
    return head, 0


def tap_graph(
    model: Any, names: Sequence[str], *, path: str = "", replace: Callable[[Any], Any] | None = None
) -> keras.Model:
    """A Functional model over the same layers whose outputs are {_OUTPUTS: outputs, "tap name": feature}."""
    for name in names:
        _require_graph(model, path, f"{path}/{name}" if path else name)
    children = _children(model)
    for name in names:
        base, _ = _call_index(_split(name)[0], children)
        if base not in children:
            full_name, prefix = (f"{path}/{name}", f"{path}/") if path else (name, "")
            raise UnknownNameError(
                f"There is no layer {full_name!r} in the model {path or model.name!r}."
                f"{nearest(full_name, tap_candidates(model, prefix=prefix))}"
            )
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    if replace is None and all("/" not in name and name in children for name in names):
        try:
            # The quick way adds nothing to the model. `layer.output` is the layer's first call, which belongs to
            # another model where the layer was taken from one: then the graph is not connected, and Keras says so.
            taps = {_key(name): children[name].output for name in names}
            return keras.Model(inputs, {_OUTPUTS: outputs, **taps}, name=f"{model.name}_tapped")
        except (ValueError, AttributeError):
            pass
    return _retraced(model, names, children, path, replace)


def _retraced(
    model: Any,
    names: Sequence[str],
    children: dict[str, Any],
    path: str,
    replace: Callable[[Any], Any] | None,
) -> keras.Model:
    """The same, by calling the model's layers once more on symbolic inputs and looking at what goes by."""
    wanted: dict[str, dict[int, list[str]]] = {}
    for name in names:
        base, index = _call_index(_split(name)[0], children)
        wanted.setdefault(base, {}).setdefault(index, []).append(name)
    calls: dict[str, int] = {}
    found: dict[str, Any] = {}

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        index = calls.get(operation.name, 0)
        calls[operation.name] = index + 1
        here = wanted.get(operation.name, {}).get(index, [])
        inner = [_split(name)[1] for name in here if "/" in name]
        if inner or (replace is not None and follows_graph(operation)):
            inner_path = f"{path}/{operation.name}" if path else operation.name
            results = tap_graph(operation, inner, path=inner_path, replace=replace)(*args, **kwargs)
            found.update({name: results[_key(_split(name)[1])] for name in here if "/" in name})
            result = results[_OUTPUTS]
        else:
            result = (operation if replace is None else replace(operation))(*args, **kwargs)
        found.update({name: result for name in here if "/" not in name})
        return result

    if isinstance(model, keras.Sequential):
        first = model.inputs[0]
        inputs = keras.Input(batch_shape=first.shape, dtype=first.dtype, name=first.name)
        outputs = inputs
        for layer in model.layers:
            outputs = call(layer, outputs)
    else:
        # A fresh, uncompiled model over the same graph: clone_model would compile its copy as the original is.
        alias = keras.Model(model.input, model.output)
        clone = keras.models.clone_model(alias, clone_function=lambda layer: layer, call_function=call)
        inputs, outputs = clone.input, clone.output
    missing = [name for name in names if name not in found]
    if missing:
        base, index = _call_index(_split(missing[0])[0], children)
        raise UnknownNameError(
            f"There is no tap {missing[0]!r}: the layer {base!r} is called {calls.get(base, 0)} time(s), and calls "
            f"count from 0 (asked for: {index})."
        )
    taps = {_key(name): found[name] for name in names}
    return keras.Model(inputs, {_OUTPUTS: outputs, **taps}, name=f"{model.name}_tapped")
