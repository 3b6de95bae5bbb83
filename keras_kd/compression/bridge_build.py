"""Builds the tf_keras graph: what a rule is given, how weights are linked, which layers cannot be bridged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from keras_kd.compression.bridge_errors import NotBridgeable, UnsupportedLayerError
from keras_kd.compression.bridge_graph import run_graph
from keras_kd.compression.bridge_inputs import InputUnits
from keras_kd.compression.bridge_layout import Forms, in_other_form

# A simple rule: `rule(keras_layer, name)` gives one tf_keras layer, a list of them to run in turn, or a
# Chain.
LayerRule = Callable[[Any, str], Any]
# A rule for whatever is not a chain: `rule(call)` applies tf_keras layers to `call.args` and returns tensors.
CallRule = Callable[["Call"], Any]


@dataclasses.dataclass(frozen=True)
class WeightLink:
    """One Keras 3 variable and the tf_keras variable that stands for it."""

    source: Any
    target: Any
    forward: Callable[[np.ndarray], np.ndarray] | None = None
    backward: Callable[[np.ndarray], np.ndarray] | None = None

    def copy(self) -> None:
        """Keras 3 to tf_keras."""
        value = _to_numpy(self.source)
        self.target.assign(self.forward(value) if self.forward else value)

    def copy_back(self) -> None:
        """tf_keras to Keras 3."""
        value = self.target.numpy()
        self.source.assign(self.backward(value) if self.backward else value)


@dataclasses.dataclass(frozen=True)
class Chain:
    """tf_keras layers that run one after the other in place of one Keras 3 layer.

    Attributes:
      layers: in the order of their calls; the first may take several inputs.
      weighted: those that take the Keras 3 layer's weights, in the order of `layer.weights`; None means all.
      forward: reshapes or rescales each weight on its way into tf_keras, by position; None: as it is.
      backward: the inverse of `forward`.
    """

    layers: list[Any]
    weighted: list[Any] | None = None
    forward: Sequence[Callable[[np.ndarray], np.ndarray] | None] = ()
    backward: Sequence[Callable[[np.ndarray], np.ndarray] | None] = ()


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a Keras 3 operation, to be repeated in tf_keras.

    Attributes:
      operation: the Keras 3 layer or `keras.ops` operation.
      path: its path, nested models included: "backbone/conv1".
      args: positional arguments; tensors are tf_keras tensors.
      kwargs: keyword arguments likewise.
      previous: the operation whose output this call alone reads, or None where others read it too.
      owner: the layer that holds the weights, where `operation` is a twin of it with other settings.
    """

    operation: Any
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    previous: Any
    builder: GraphBuilder
    owner: Any = None

    @property
    def weights(self) -> list[Any]:
        """The operation's variables in Keras 3."""
        return list(getattr(self.owner or self.operation, "weights", ()))

    @property
    def input(self) -> Any:
        """The first argument, however it was passed."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def name(self, suffix: str = "") -> str:
        """A free layer name: the path, with `suffix` behind it, and a number where that is taken."""
        return self.builder.free_name(f"{self.path}/{suffix}" if suffix else self.path)

    def run(self, layer: Any, inputs: Any, **kwargs: Any) -> Any:
        """Applies one tf_keras layer and notes that it belongs to this path."""
        outputs = layer(inputs, **kwargs)
        self.builder.note_layer(self.path, layer)
        return outputs

    def link(self, source: Any, target: Any, forward: Any = None, backward: Any = None) -> None:
        """Ties a Keras 3 variable to a tf_keras variable; the value is copied when the graph is complete."""
        self.builder.links[id(source)] = WeightLink(source, target, forward, backward)

    def rows(self, tensor: Any) -> Any:
        """A tensor as [batch, 1, length, channels], without a reshape where it just came from there.

        [batch, length, channels] becomes one row, [batch, channels] one pixel.
        """
        known = self.builder.forms.of("rows", tensor)
        if known is not None:
            return known
        *length, channels = tensor.shape[1:]
        shape = (1, *(-1 if size is None else size for size in length or [1]), channels)
        return self.run(tf_keras.layers.Reshape(shape, name=self.name("rows")), tensor)

    def from_rows(self, rows: Any, rank: int = 3) -> Any:
        """Back from `rows`; the next layer that wants rows gets them without a reshape."""
        _, _, length, channels = rows.shape
        shape = (channels,) if rank == 2 else (-1 if length is None else length, channels)
        tensor = self.run(tf_keras.layers.Reshape(shape, name=self.name("back")), rows)
        self.builder.forms.note("rows", tensor, rows)
        return tensor

    def chain(self, made: Any, value: Any = None) -> Any:
        """Runs what a simple rule returned on this call's input (or `value`) and links the weights."""
        chain = made if isinstance(made, Chain) else Chain(made if isinstance(made, list) else [made])
        value = self.input if value is None else value
        for position, layer in enumerate(chain.layers):
            keywords = {}
            if position == 0:
                given = {key: item for key, item in self.kwargs.items() if item is not None}
                keywords = {key: item for key, item in given.items() if key in ("mask", "initial_state")}
            if self.kwargs.get("training") is not None and _takes_training(layer):
                keywords["training"] = self.kwargs["training"]
            value = self.run(layer, value, **keywords)
        self._link_all(chain)
        return value

    def _link_all(self, chain: Chain) -> None:
        sources = self.weights
        weighted = chain.layers if chain.weighted is None else chain.weighted
        targets = [weight for layer in weighted for weight in layer.weights]
        forward = list(chain.forward) or [None] * len(sources)
        backward = list(chain.backward) or [None] * len(sources)
        shapes = [
            _to_numpy(s).shape if f is None else f(_to_numpy(s)).shape for s, f in zip(sources, forward)
        ]
        if shapes != [tuple(target.shape) for target in targets]:
            raise NotBridgeable(
                f"its weights have the shapes {shapes}, those of the tf_keras layers "
                f"{[tuple(target.shape) for target in targets]}"
            )
        for source, target, into, back in zip(sources, targets, forward, backward):
            self.link(source, target, into, back)


class GraphBuilder:
    """Rebuilds one Keras 3 model in tf_keras with the rules it is given.

    After `build`: `links` (weights), `layer_names` (path -> names of tf_keras layers, the last one gives the
    output), `tensors` (path -> output of its first call) and `units` (of the inputs).
    """

    def __init__(self, model: keras.Model, find_rule: Callable[[Any], CallRule | None]):
        self.model = model
        self.find_rule = find_rule
        self.links: dict[int, WeightLink] = {}
        self.layer_names: dict[str, list[str]] = {}
        self.tensors: dict[str, Any] = {}
        self.problems: dict[str, tuple[str, str]] = {}
        self._made: dict[int, Any] = {}
        self._layers: dict[str, Any] = {}
        self._names: set[str] = set()
        self._identities = 0
        self.forms = Forms()

    def build(self) -> tf_keras.Model:
        """The tf_keras model, with the weights of the Keras 3 model.

        Raises:
          UnsupportedLayerError: naming every layer that could not be rebuilt.
        """
        readers = _Readers(self.model)
        inputs = [self._input(tensor) for tensor in self.model.inputs]
        self.units = InputUnits(inputs)

        def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                outputs = self._apply(Call(operation, path, args, kwargs, readers.previous(path), self))
            except NotBridgeable as reason:
                self.problems[path] = (type(operation).__name__, str(reason))
                outputs = readers.placeholder(path)
            self.tensors.setdefault(path, outputs)
            self.units.note(operation, args, kwargs, outputs)
            return outputs

        outputs = run_graph(self.model, inputs, visit)
        if self.problems:
            raise UnsupportedLayerError(
                self.model.name, [(path, kind, why) for path, (kind, why) in self.problems.items()]
            )
        bridged = tf_keras.Model(inputs, outputs, name=self.model.name)
        self._forget_layers_outside(bridged)
        for link in self.links.values():
            link.copy()
        return bridged

    def _input(self, tensor: Any) -> Any:
        shape = tuple(tensor.shape)
        name = self.free_name(tensor.name)
        return tf_keras.Input(shape=shape[1:], batch_size=shape[0], dtype=tensor.dtype, name=name)

    def visit_inner(self, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operation that another one wraps."""
        return self._apply(Call(operation, path, args, kwargs, None, self))

    def _apply(self, call: Call) -> Any:
        rule = self.find_rule(call.operation)
        if rule is None:
            raise NotBridgeable("no rule for this layer")
        mode = getattr(call.operation, "quantization_mode", None)
        if mode is not None:
            raise NotBridgeable(f"Keras has quantized it ({mode}); compression starts from the float model")
        other = in_other_form(call)
        if other is None:
            return rule(call)
        moved, back = other
        return back(self._apply(moved))

    def remembered(self, call: Call, make: Callable[[], Any]) -> Any:
        """What `make` gave for this operation before, where it owns weights: shared layers stay shared.

        Layers without weights are made anew for every call, so that each call gets a range of its own.
        """
        return self.remembered_as(call.owner or call.operation, make) if call.weights else make()

    def remembered_as(self, owner: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave for this owner of weights before."""
        if id(owner) not in self._made:
            self._made[id(owner)] = make()
        return self._made[id(owner)]

    def _forget_layers_outside(self, bridged: tf_keras.Model) -> None:
        """Drops names of reshapes that nothing reads."""
        inside = {layer.name for layer in bridged.layers}
        for path, names in self.layer_names.items():
            self.layer_names[path] = [name for name in names if name in inside]

    def next_identity(self) -> int:
        """The number of the next layer that multiplies by one."""
        self._identities += 1
        return self._identities - 1

    def free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted_1`, `wanted_2` ... where it is taken."""
        name, number = wanted, 0
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name

    def weight_layers(self) -> dict[str, tuple[str, ...]]:
        """Path -> names of the tf_keras layers that hold the weights of the original layer."""
        targets = {id(link.target) for link in self.links.values()}
        found = {}
        for path, names in self.layer_names.items():
            layers = [self._layers[name] for name in names]
            mine = tuple(x.name for x in layers if any(id(weight) in targets for weight in x.weights))
            if mine:
                found[path] = mine
        return found

    def note_layer(self, path: str, layer: Any) -> None:
        """Remembers that a tf_keras layer belongs to a path."""
        self._layers[layer.name] = layer
        names = self.layer_names.setdefault(path, [])
        if layer.name not in names:
            names.append(layer.name)


class _Readers:
    """Who reads what in the original graph, found by one walk with symbolic tensors."""

    def __init__(self, model: keras.Model):
        self._producer: dict[int, tuple[str, Any]] = {}
        self._reads: dict[int, int] = {}
        self._first_input: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._calls: dict[str, int] = {}
        inputs = [_symbol_like(tensor) for tensor in model.inputs]
        outputs = run_graph(model, inputs, self._visit)
        for tensor in _flat(outputs):
            self._read(tensor)

    def _visit(self, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [item for item in _flat([args, kwargs]) if isinstance(item, keras.KerasTensor)]
        for tensor in tensors:
            self._read(tensor)
        if hasattr(operation, "compute_output_spec"):
            outputs = operation.compute_output_spec(*args, **kwargs)
        else:
            outputs = operation.get_output_at(0)
        # A layer may hand on the very tensor that it got; a copy keeps producers apart.
        outputs = keras.tree.map_structure(
            lambda t: keras.KerasTensor(tuple(t.shape), tf.as_dtype(t.dtype).name), outputs
        )
        for tensor in _flat(outputs):
            self._producer[id(tensor)] = (path, operation)
        self._first_input[path] = tensors[0] if tensors else None
        self._outputs[path] = outputs
        self._calls[path] = self._calls.get(path, 0) + 1
        return outputs

    def _read(self, tensor: Any) -> None:
        self._reads[id(tensor)] = self._reads.get(id(tensor), 0) + 1

    def previous(self, path: str) -> Any:
        tensor = self._first_input.get(path)
        if tensor is None or id(tensor) not in self._producer or self._reads[id(tensor)] != 1:
            return None
        producer_path, operation = self._producer[id(tensor)]
        return operation if self._calls[producer_path] == 1 and self._calls[path] == 1 else None

    def placeholder(self, path: str) -> Any:
        """tf_keras inputs of the right shape in place of a layer that could not be built."""
        return keras.tree.map_structure(
            lambda t: tf_keras.Input(shape=tuple(t.shape)[1:], batch_size=t.shape[0], dtype=t.dtype),
            self._outputs[path],
        )


def _symbol_like(tensor: Any) -> keras.KerasTensor:
    return keras.KerasTensor(tuple(tensor.shape), tf.as_dtype(tensor.dtype).name)


def _flat(structure: Any) -> Iterator[Any]:
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, (list, tuple)):
        for item in structure:
            yield from _flat(item)
    else:
        yield structure


def _takes_training(layer: Any) -> bool:
    return isinstance(layer, (tf_keras.layers.BatchNormalization, tf_keras.layers.Dropout))


def _to_numpy(variable: Any) -> np.ndarray:
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    return value.astype("float32") if tf.as_dtype(variable.dtype).is_floating else value
