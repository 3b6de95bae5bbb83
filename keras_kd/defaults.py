"""What is taken where a caller leaves something out, and fresh copies of what may be used only once."""

from typing import Any

import keras
import numpy as np

from keras_kd.output_kinds import seen_kinds


def compiled_setting(model: Any, name: str) -> Any:
    """`loss` or `optimizer` of a compiled model; None if it is not compiled.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> model.compile(loss="mse")
      >>> compiled_setting(model, "loss")
      'mse'
    """
    return getattr(model, name, None) if getattr(model, "compiled", False) else None


def default_loss(model: keras.Model, labels: np.ndarray) -> keras.losses.Loss:
    """The crossentropy that fits a classifier's output and its labels.

    Args:
      model: one output, [examples, classes].
      labels: integers [examples] (or [examples, 1]), or one-hot [examples, classes].

    Returns:
      Sparse or categorical crossentropy, from logits unless the model ends in a softmax.

    Raises:
      ValueError: it is not plain classification, so the loss has to be named.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
      >>> default_loss(model, np.array([0, 2])).name
      'sparse_categorical_crossentropy'
    """
    shape = getattr(model, "output_shape", None)
    classes = shape[-1] if isinstance(shape, tuple) and len(shape) == 2 else None
    is_whole = labels.dtype.kind in "iub" or bool(np.all(labels == np.round(labels)))
    if classes and classes > 1 and is_whole:
        from_logits = seen_kinds(model)[0] != "softmax"
        if labels.ndim == 1 or labels.shape[1:] == (1,):
            return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
        if labels.shape[1:] == (classes,):
            return keras.losses.CategoricalCrossentropy(from_logits=from_logits)
    raise ValueError(
        f"loss is missing: outputs of shape {shape} and labels of shape {labels.shape}, dtype {labels.dtype}, are not "
        "plain classification, so pass loss=, or compile the student."
    )


def fresh_optimizer(optimizer: Any) -> Any:
    """The same optimizer without a history, since one instance can serve one model only.

    Example:
      >>> adam = keras.optimizers.Adam(0.25)
      >>> other = fresh_optimizer(adam)
      >>> other is adam, float(other.learning_rate)
      (False, 0.25)
    """
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    return optimizer


def fresh_metrics(metrics: Any) -> Any:
    """The same metrics with nothing counted yet; structures of them keep their form."""
    if isinstance(metrics, dict):
        return {name: fresh_metrics(value) for name, value in metrics.items()}
    if isinstance(metrics, (list, tuple)):
        return [fresh_metrics(value) for value in metrics]
    if isinstance(metrics, keras.metrics.Metric):
        return type(metrics).from_config(metrics.get_config())
    return metrics
