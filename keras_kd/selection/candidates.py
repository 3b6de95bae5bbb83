"""Which layers of a network are worth looking at as taps."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_kd.taps import TappedModel, has_graph, tap_candidates

Shape = tuple[int | None, ...]

# Where a thought ends: an activation, or branches that come together.
_ENDS = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Add,
    layers.Concatenate,
    layers.Multiply,
)


def candidate_shapes(model: Any, names: Sequence[str] | None, side: str) -> dict[str, Shape]:
    """{tap: shape of its feature} in the order of the graph.

    Args:
      model: Functional or Sequential, built.
      names: taps to consider; None takes the outputs of activations, of merging layers, and of convolutions and
        Dense layers with an activation of their own (all layers with weights where there is none of these), without
        the layer that puts out the result.
      side: "teacher" or "student", for messages.

    Raises:
      ValueError: the model has no graph, a name does not exist, or nothing can be tapped.
    """
    if not has_graph(model):
        raise ValueError(
            f"The {side} must be a built Functional or Sequential keras.Model, whose layers can be tapped; got "
            f"{type(model).__name__}."
        )
    found = list(names) if names is not None else _ends(model) or _weighted(model)
    shapes = TappedModel(model, found).feature_shapes if found else {}
    usable = {name: shapes[name] for name in found if _is_feature(shapes[name])}
    if not usable:
        raise ValueError(
            f"The {side} {model.name!r} has no inner layer that returns features [batch, ..., channels]."
        )
    return usable


def _is_feature(shape: Any) -> bool:
    return (
        len(shape) >= 2
        and all(size is None or isinstance(size, int) for size in shape)
        and shape[-1] is not None
    )


def _inner(model: Any) -> dict[str, Any]:
    """{tap: operation}, without the one that returns the model's output."""
    inner = {}
    for name in tap_candidates(model):
        operation = model
        for part in name.split("/"):
            children = operation.layers if isinstance(operation, keras.Sequential) else operation.operations
            operation = next(child for child in children if child.name == part)
        if not isinstance(operation, keras.Model):
            inner[name] = operation
    outputs = set(getattr(model, "output_names", []))
    if isinstance(model, keras.Sequential):
        outputs.add(model.layers[-1].name)
    return {name: operation for name, operation in inner.items() if name not in outputs}


def _ends(model: Any) -> list[str]:
    found = []
    for name, operation in _inner(model).items():
        own = getattr(getattr(operation, "activation", None), "__name__", "linear")
        has_kernel = getattr(operation, "kernel", None) is not None
        if isinstance(operation, _ENDS) or (has_kernel and own != "linear"):
            found.append(name)
    return found


def _weighted(model: Any) -> list[str]:
    return [name for name, operation in _inner(model).items() if getattr(operation, "weights", None)]


def compatible(teacher_shape: Shape, student_shape: Shape) -> bool:
    """Whether a loss can compare the two: the same axes; sizes and widths may differ.

    Example:
      >>> compatible((None, 8, 8, 32), (None, 4, 4, 16)), compatible((None, 8, 8, 32), (None, 16))
      (True, False)
    """
    return len(teacher_shape) == len(student_shape)
