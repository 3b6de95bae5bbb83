"""The loss on labels, for whoever has to measure one without being told which."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_kd.output_kinds import OutputKind, probed_kind, seen_kinds

LabelLoss = Callable[[Any, Any], Any]


def label_loss(model: keras.Model, loss: Any, y: Any, outputs: Any) -> LabelLoss:
    """A function (labels, outputs) -> scalar, the mean over the batch.

    Args:
      model: whose outputs these are.
      loss: a Keras loss, its name, or a function (labels, outputs); None takes the loss that the model was compiled
        with, and failing that the cross-entropy that fits the labels and the last activation.
      y: labels of some examples.
      outputs: the model's outputs for some examples.

    Raises:
      ValueError: several outputs and no loss to go by.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
      >>> compute = label_loss(model, None, np.array([0, 2]), np.zeros((2, 3)))
      >>> round(float(compute(np.array([0, 2]), np.zeros((2, 3), "float32"))), 4)
      1.0986
    """
    function = keras.losses.get(chosen_loss(model, loss, y, outputs))

    def compute(labels: Any, values: Any) -> Any:
        return keras.ops.mean(keras.ops.cast(function(labels, values), "float32"))

    return compute


def chosen_loss(model: keras.Model, loss: Any, y: Any, outputs: Any) -> Any:
    """The loss that `label_loss` measures, as `compile` takes it; same arguments."""
    if loss is None and getattr(model, "compiled", False):
        loss = model.loss
    return _fitting(model, y, outputs) if loss is None else loss


def _fitting(model: keras.Model, y: Any, outputs: Any) -> Any:
    flat = keras.tree.flatten(outputs)
    if len(flat) != 1 or len(keras.tree.flatten(y)) != 1:
        raise ValueError(
            f"loss is None, and {model.name!r} has {len(flat)} outputs. Give loss= a function of (labels, outputs)."
        )
    seen = seen_kinds(model)
    labels, values = np.asarray(keras.tree.flatten(y)[0]), flat[0]
    classes = int(values.shape[-1])
    binary = classes == 1 or (
        labels.ndim > 1 and labels.shape[-1] == classes and bool(np.any(labels.sum(-1) > 1))
    )
    kind: OutputKind = (seen[0] if seen else None) or probed_kind(values, binary=binary)
    from_logits = kind == "logits"
    if binary or kind == "sigmoid":
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    if labels.ndim < len(values.shape) or labels.shape[-1] == 1:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    return keras.losses.CategoricalCrossentropy(from_logits=from_logits)
