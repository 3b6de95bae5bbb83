"""A cheaper copy of a frozen teacher: BatchNormalization folded into the layer before it.

In inference a BatchNormalization is a multiplication and an addition for each channel, and so is a part of
the convolution (or Dense) whose output it normalizes:

    γ (w·x + b − μ) / √(σ² + ε) + β  =  (s w)·x + (s (b − μ) + β),   s = γ / √(σ² + ε)

The copy is private: the caller's model is only read.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_kd.taps import follows_graph

Tensor = Any

_FOLDABLE = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


class FoldedTeacher:
    """A private copy of a model with its BatchNormalization layers folded away.

    Args:
      model: a built Functional or Sequential model, nested models included.
      keep: names of layers whose outputs are needed as they are ("backbone/conv" inside a nested model); they and
        their partners are not folded.

    Attributes:
      model: the copy; its outputs equal the original's up to float rounding.
      folded: names of the BatchNormalization layers that are gone.

    Raises:
      ValueError: the model has no graph of layers, or a layer cannot be copied from its configuration.

    Example:
      >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, use_bias=False),
      ...           keras.layers.BatchNormalization(name="norm"), keras.layers.ReLU()]
      >>> model = keras.Sequential(layers)
      >>> copy = FoldedTeacher(model)
      >>> copy.folded, len(model.layers), len(copy.model.layers)
      (['norm'], 3, 3)
      >>> x = np.ones((1, 8, 8, 3))
      >>> bool(np.allclose(model(x), copy.model(x), atol=1e-5))
      True
    """

    def __init__(self, model: keras.Model, *, keep: Iterable[str] = ()):
        self.folded: list[str] = []
        self._same: list[tuple[Any, Any]] = []  # (original layer, copy)
        self._pairs: list[tuple[Any, Any, Any]] = []  # (original layer, original normalization, folded layer)
        self.model = self._copy(model, frozenset(keep), "")
        self.model.trainable = False
        self.refold()

    def _copy(self, model: keras.Model, keep: frozenset[str], path: str) -> keras.Model:
        _require_graph(model)
        alias = _functional(model)
        partners = _partners(alias, keep)
        originals = {layer.name: layer for layer in alias.layers}
        normalizations = set(partners.values())

        def copy_layer(layer: Any) -> Any:
            if isinstance(layer, keras.Model):
                inside = frozenset(n.partition("/")[2] for n in keep if n.startswith(f"{layer.name}/"))
                return self._copy(layer, inside, f"{path}{layer.name}/")
            config = layer.get_config()
            if layer.name in partners:
                config["use_bias"] = True
            copy = type(layer).from_config(config)
            if layer.name in partners:
                self._pairs.append((layer, originals[partners[layer.name]], copy))
                self.folded.append(path + partners[layer.name])
            elif layer.name not in normalizations:
                self._same.append((layer, copy))
            return copy

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if operation.name in normalizations:
                return args[0]
            return operation(*args, **kwargs)

        return keras.models.clone_model(alias, clone_function=copy_layer, call_function=call)

    def refold(self) -> None:
        """Read the original's weights again, for a teacher that changed since the last time."""
        for layer, copy in self._same:
            if layer.weights:
                copy.set_weights(layer.get_weights())
        for layer, normalization, copy in self._pairs:
            copy.set_weights(_folded_weights(layer, normalization))


def _functional(model: keras.Model) -> keras.Model:
    """A fresh, uncompiled Functional model over the same graph: clone_model would compile its copy as well."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def _partners(model: keras.Model, keep: frozenset[str]) -> dict[str, str]:
    """{layer: the normalization that can be folded into it}, by name."""
    producers: dict[int, Any] = {}
    consumers: dict[int, list[Any]] = {}
    calls: dict[str, int] = {}
    alive: list[Any] = []  # ids are only good while their objects live

    def record(operation: Any, *args: Any, **kwargs: Any) -> Any:
        result = operation(*args, **kwargs)
        alive.append((args, kwargs, result))
        calls[operation.name] = calls.get(operation.name, 0) + 1
        for tensor in keras.tree.flatten((args, kwargs)):
            consumers.setdefault(id(tensor), []).append(operation)
        for tensor in keras.tree.flatten(result):
            producers[id(tensor)] = operation
        return result

    # On a throwaway copy: calling the original's layers would leave new nodes on them.
    throwaway = keras.models.clone_model(model, clone_function=_shallow_copy, call_function=record)
    for tensor in keras.tree.flatten(throwaway.output):
        consumers.setdefault(id(tensor), []).append(None)
    partners: dict[str, str] = {}
    for identity, producer in producers.items():
        used = consumers.get(identity, [])
        if len(used) != 1 or not isinstance(used[0], keras.layers.BatchNormalization):
            continue
        normalization = used[0]
        if (
            isinstance(producer, _FOLDABLE)
            and calls[producer.name] == calls[normalization.name] == 1
            and not {producer.name, normalization.name} & keep
            and getattr(producer.activation, "__name__", "") == "linear"
            and getattr(producer, "data_format", "channels_last") == "channels_last"
            and normalization.axis in (-1, len(keras.tree.flatten(_shape_of(producer))) - 1)
            and producer.dtype_policy.name == normalization.dtype_policy.name == "float32"
            and producer.activity_regularizer is None
        ):
            partners[producer.name] = normalization.name
    return partners


def _shape_of(layer: Any) -> Any:
    return tuple(layer.output.shape)


def _require_graph(model: keras.Model) -> None:
    if not follows_graph(model):
        raise ValueError(f"{model.name!r} has no graph of layers that could be copied.")


def _shallow_copy(layer: Any) -> Any:
    if isinstance(layer, keras.Model):
        _require_graph(layer)
        return keras.models.clone_model(_functional(layer), clone_function=_shallow_copy)
    return type(layer).from_config(layer.get_config())


def _folded_weights(layer: Any, normalization: Any) -> list[np.ndarray]:
    """Kernel and bias of the folded layer, computed in float64."""

    def value(variable: Any, default: float) -> np.ndarray:
        if variable is None:
            return np.asarray(default, "float64")
        return keras.ops.convert_to_numpy(variable).astype("float64")

    kernel = value(layer.kernel, 0.0)
    bias = value(layer.bias if layer.use_bias else None, 0.0)
    mean, variance = value(normalization.moving_mean, 0.0), value(normalization.moving_variance, 1.0)
    scale = value(normalization.gamma if normalization.scale else None, 1.0) / np.sqrt(
        variance + normalization.epsilon
    )
    shift = value(normalization.beta if normalization.center else None, 0.0)
    # A depthwise kernel ends in (channels, multiplier), whose product is the output's channels.
    kernel = kernel * (scale.reshape(kernel.shape[-2:]) if isinstance(layer, _DEPTHWISE) else scale)
    return [kernel.astype("float32"), (scale * (bias - mean) + shift).astype("float32")]
