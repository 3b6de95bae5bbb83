"""What a model's outputs are: logits, softmax probabilities, or sigmoid probabilities.

Seen on the last activation where there is one to see, otherwise from one batch of outputs.
"""

from typing import Any, Literal

import keras
import numpy as np

from keras_kd.taps import has_graph, overrides_call

OutputKind = Literal["logits", "softmax", "sigmoid"]

# Layers that move values about without changing them: what they return is what came before them.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.Permute,
    keras.layers.ActivityRegularization,
    keras.layers.Identity,
)


def _kind_of_activation(activation: Any) -> OutputKind | None:
    name = getattr(activation, "__name__", "")
    if name in ("softmax", "sigmoid"):
        return name  # type: ignore[return-value]
    # Anything else leaves numbers that are no probabilities: to a softmax loss they are logits.
    return "logits" if name else None


def _kind_of_layer(layer: Any) -> OutputKind | None:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, keras.Model):
        kinds = seen_kinds(layer)
        return kinds[0] if len(kinds) == 1 else None
    activation = getattr(layer, "activation", None)
    if activation is None:
        return None
    if isinstance(layer, keras.layers.Activation) and getattr(activation, "__name__", "") == "linear":
        return None  # often there to change the dtype only; what came before it is not seen from here
    return _kind_of_activation(activation)


def seen_kinds(model: Any) -> list[OutputKind | None]:
    """The kind of each output (in flattened order) as far as the last layers show it; None where they do not.

    Example:
      >>> softmax = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
      >>> seen_kinds(softmax)
      ['softmax']
    """
    if isinstance(model, keras.Model) and overrides_call(model):
        return []
    if isinstance(model, keras.Sequential):
        for layer in reversed(model.layers):
            if not isinstance(layer, _TRANSPARENT):
                return [_kind_of_layer(layer)]
        return [None]
    if not has_graph(model):
        return []
    by_name = {operation.name: operation for operation in getattr(model, "operations", [])}
    return [_kind_of_layer(by_name.get(name)) for name in model.output_names]


def probed_kind(outputs: Any, *, binary: bool = False) -> OutputKind:
    """The kind of one batch of outputs, by its numbers.

    Args:
      outputs: concrete values [batch, ..., classes].
      binary: whether independent labels are meant, whose probabilities need not sum to one.

    Example:
      >>> probed_kind(np.array([[0.2, 0.8]])), probed_kind(np.array([[0.2, 0.7]]))
      ('softmax', 'logits')
      >>> probed_kind(np.array([[0.2, 0.7]]), binary=True)
      'sigmoid'
    """
    values = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float32")), dtype=np.float64)
    if values.size == 0 or not np.all(np.isfinite(values)):
        return "logits"
    if binary:
        return "sigmoid" if values.min() > 0.0 and values.max() < 1.0 else "logits"
    if values.ndim < 2 or values.shape[-1] < 2 or values.min() < 0.0:
        return "logits"
    # Rows of a softmax sum to 1 up to rounding: 1e-2 holds for a thousand classes in float16.
    return "softmax" if np.all(np.abs(values.sum(axis=-1) - 1.0) < 1e-2) else "logits"
