"""Keras 3 losses, optimizers, metrics and callbacks, made to work in a tf_keras `fit`.

The student that TF-MOT trains is a tf_keras model, and what a user holds are Keras 3 objects. Losses are
called through (their mathematics is backend code that runs on any TensorFlow tensor); optimizers and metrics
are rebuilt from their configuration; callbacks are called through, with the tf_keras trainer as their model.
What cannot be adapted is refused by name before any work starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import tf_keras

# Fields that only one of the two Kerases has, with the values at which they mean nothing; None: always.
_NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "loss_scale_factor": (1, 1.0),
    "gradient_accumulation_steps": (1,),
    "dtype": None,
}
_REFUSED_CALLBACKS = {
    "BackupAndRestore": "compress resumes by itself: pass backup_dir",
    "ModelCheckpoint": "the model changes between phases; compress keeps the best epoch by itself",
    "SwapEMAWeights": "it reads the state of a Keras 3 optimizer",
    "TensorBoard": "it reads the graph of a Keras 3 model; tf_keras.callbacks.TensorBoard works",
}
_REDUCTIONS = {
    "sum_over_batch_size": "sum_over_batch_size",
    "mean": "sum_over_batch_size",
    "mean_with_sample_weight": "sum_over_batch_size",
    "sum": "sum",
}


class AdaptationError(ValueError):
    """A Keras 3 object that has no tf_keras equivalent."""


def adapt_loss(loss: Any) -> Any:
    """A loss for tf_keras's `compile`.

    Args:
      loss: a name, a function of (y_true, y_pred), a Keras 3 or tf_keras loss, None, or a list or dict of
        them.

    Returns:
      The same structure of tf_keras losses; None stays None.

    Raises:
      AdaptationError: an unknown name, or a reduction that tf_keras does not have.
    """
    if loss is None or isinstance(loss, tf_keras.losses.Loss):
        return loss
    if isinstance(loss, Mapping):
        return {name: adapt_loss(part) for name, part in loss.items()}
    if isinstance(loss, list | tuple):
        return [adapt_loss(part) for part in loss]
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError as error:
            raise AdaptationError(f"loss: {error}") from None
    if isinstance(loss, keras.losses.Loss):
        return _CalledThrough(loss)
    if callable(loss):
        return loss
    raise AdaptationError(f"loss: expected a name, a function or a loss object, got {type(loss).__name__}")


class _CalledThrough(tf_keras.losses.Loss):
    """A Keras 3 loss inside tf_keras: its per-example values, tf_keras's weighting and reduction.

    Handing tf_keras the loss itself would reduce before the sample weights are applied.
    """

    def __init__(self, loss: keras.losses.Loss):
        reduction = _REDUCTIONS.get(loss.reduction or "none")
        if reduction is None:
            raise AdaptationError(
                f"loss: {loss.name!r} has reduction {loss.reduction!r}; training needs one of "
                f"{', '.join(_REDUCTIONS)}"
            )
        super().__init__(reduction=reduction, name=loss.name)
        self._call_through = loss

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._call_through.call(y_true, y_pred)


def adapt_optimizer(optimizer: Any) -> Any:
    """A fresh tf_keras optimizer with the same settings.

    Args:
      optimizer: a name, or a Keras 3 or tf_keras optimizer. Its state (moments, step) is not taken over.

    Raises:
      AdaptationError: tf_keras has no such optimizer, or not one of its settings.
    """
    if isinstance(optimizer, str):
        try:
            return tf_keras.optimizers.get(optimizer)
        except ValueError as error:
            raise AdaptationError(f"optimizer: {error}") from None
    if isinstance(optimizer, tf_keras.optimizers.Optimizer | tf_keras.optimizers.legacy.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise AdaptationError(f"optimizer: expected a name or an optimizer, got {type(optimizer).__name__}")
    name = type(optimizer).__name__
    twin = getattr(tf_keras.optimizers, name, None)
    if twin is None or type(optimizer) is not getattr(keras.optimizers, name, None):
        raise AdaptationError(
            f"optimizer: {name} has no tf_keras equivalent; pass one of Adam, AdamW, SGD, RMSprop, "
            f"Adagrad, Adadelta, "
            "Adamax, Nadam, Ftrl, Lion, Adafactor, or any tf_keras optimizer"
        )
    config = optimizer.get_config()
    rate = config.get("learning_rate")
    if isinstance(rate, Mapping):
        config["learning_rate"] = _adapt_rate(rate)
    return twin(**_kept(config, twin, f"optimizer: {name}"))


def _adapt_rate(serialized: Mapping[str, Any]) -> Any:
    name = serialized["class_name"]
    twin = getattr(tf_keras.optimizers.schedules, name, None)
    if twin is None:
        raise AdaptationError(f"optimizer: learning rate schedule {name} has no tf_keras equivalent")
    return twin(**_kept(dict(serialized["config"]), twin, f"learning rate schedule: {name}"))


def adapt_metrics(metrics: Any) -> Any:
    """Metrics for tf_keras's `compile`: names stay, Keras 3 objects are rebuilt or called through.

    Args:
      metrics: None, or names, functions, Keras 3 or tf_keras metrics in any list or dict structure.

    Raises:
      AdaptationError: something that is no metric.
    """
    if metrics is None or isinstance(metrics, str | tf_keras.metrics.Metric):
        return metrics
    if isinstance(metrics, Mapping):
        return {name: adapt_metrics(part) for name, part in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [adapt_metrics(part) for part in metrics]
    if isinstance(metrics, keras.metrics.Metric):
        name = type(metrics).__name__
        twin = getattr(tf_keras.metrics, name, None)
        if twin is not None and type(metrics) is getattr(keras.metrics, name, None):
            return twin(**_kept(metrics.get_config(), twin, f"metrics: {name}"))
        return _metric_called_through(metrics)
    if callable(metrics):
        return metrics
    raise AdaptationError(
        f"metrics: expected names, functions or metric objects, got {type(metrics).__name__}"
    )


def _metric_called_through(metric: Any) -> Any:
    """A user's own Keras 3 metric inside tf_keras; its variables are TensorFlow variables already."""

    class CalledThrough(tf_keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name=metric.name)
            # In a tuple, so that tf_keras does not try to track a Keras 3 object.
            self._held = (lambda: metric,)

        def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
            self._held[0]().update_state(y_true, y_pred, sample_weight)

        def result(self) -> Any:
            return self._held[0]().result()

        def reset_state(self) -> None:
            self._held[0]().reset_state()

    return CalledThrough()


def _kept(config: dict[str, Any], twin: Callable[..., Any], what: str) -> dict[str, Any]:
    """The settings that the tf_keras twin knows; another one may only hold a value without effect."""
    known = set(inspect.signature(twin.__init__).parameters)
    kept, lost = {}, {}
    for key, value in config.items():
        if key in known:
            kept[key] = value
        elif value is not None and not _has_no_effect(key, value):
            lost[key] = value
    # `dtype` is a plain name in tf_keras and may be a policy's configuration in Keras 3.
    if isinstance(kept.get("dtype"), Mapping):
        kept["dtype"] = kept["dtype"].get("config", {}).get("name", "float32")
    if lost:
        raise AdaptationError(f"{what} has settings that tf_keras does not know: {lost}")
    return kept


def _has_no_effect(key: str, value: Any) -> bool:
    neutral = _NEUTRAL.get(key, ())
    return neutral is None or value in neutral


def adapt_callbacks(callbacks: Sequence[Any] | None) -> list[Any]:
    """Callbacks for tf_keras's `fit`.

    Args:
      callbacks: Keras 3 or tf_keras callbacks. Keras 3 ones see the tf_keras trainer as their model.

    Raises:
      AdaptationError: callbacks that need a Keras 3 model, all of them named.
    """
    adapted, problems = [], []
    for callback in callbacks or ():
        name = type(callback).__name__
        if isinstance(callback, tf_keras.callbacks.Callback):
            adapted.append(callback)
        elif not isinstance(callback, keras.callbacks.Callback):
            problems.append(f"{name} is no callback")
        elif any(base.__name__ in _REFUSED_CALLBACKS for base in type(callback).__mro__):
            base = next(b.__name__ for b in type(callback).__mro__ if b.__name__ in _REFUSED_CALLBACKS)
            problems.append(f"{name} cannot be used here ({_REFUSED_CALLBACKS[base]})")
        else:
            problem = _settle_mode(callback)
            if problem:
                problems.append(f"{name} {problem}")
            else:
                adapted.append(_CallbackCalledThrough(callback))
    if problems:
        raise AdaptationError("callbacks: " + "; ".join(problems))
    return adapted


def _settle_mode(callback: Any) -> str | None:
    """Keras 3 infers 'better' from its own metric objects, which are absent here; returns what is wrong."""
    if getattr(callback, "mode", None) != "auto" or not hasattr(callback, "monitor"):
        return None
    mode = better(callback.monitor)
    if mode is None:
        return f"monitors {callback.monitor!r} with mode='auto'; say mode='min' or mode='max'"
    callback.mode = mode
    return None


_MAX_PARTS = ("acc", "auc", "precision", "recall", "f1", "fbeta", "iou", "r2", "cosine_similarity")
_MIN_PARTS = (
    "loss",
    "error",
    "mae",
    "mse",
    "mape",
    "msle",
    "crossentropy",
    "hinge",
    "poisson",
    "kl_divergence",
)


def better(metric_name: str) -> str | None:
    """'max' or 'min' for a metric's name, None where the name does not say.

    Example:
      >>> better("val_accuracy"), better("val_loss"), better("val_taste")
      ('max', 'min', None)
    """
    name = metric_name.lower()
    if any(part in name for part in _MIN_PARTS):
        return "min"
    return "max" if any(part in name for part in _MAX_PARTS) else None


_HOOKS = [name for name in dir(keras.callbacks.Callback) if name.startswith("on_")]


class _CallbackCalledThrough(tf_keras.callbacks.Callback):
    """Forwards every hook to a Keras 3 callback."""

    def __init__(self, callback: Any):
        super().__init__()
        self._callback = callback

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self._callback.set_params(params)


def _forward(hook: str) -> Callable[..., None]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> None:
        getattr(self._callback, hook)(*args, **kwargs)

    return forward


for _hook in _HOOKS:
    setattr(_CallbackCalledThrough, _hook, _forward(_hook))


_COMPILED = ("optimizer", "loss", "metrics", "loss_weights", "weighted_metrics")


def compiled_settings(student: Any) -> dict[str, Any]:
    """What a Keras 3 or tf_keras model was compiled with (optimizer, loss, metrics, weights); empty if it was not."""
    library = tf_keras if isinstance(student, tf_keras.Model) else keras
    # tf_keras keeps its mark private; an uncompiled model of either kind has no optimizer.
    if getattr(student, "optimizer", None) is None:
        return {}
    config = student.get_compile_config() or {}
    if library is keras:
        config = {name: _deserialized(config.get(name)) for name in _COMPILED}
    else:
        with tf_keras.utils.custom_object_scope({}):
            config = {name: tf_keras.utils.deserialize_keras_object(config.get(name)) for name in _COMPILED}
    return {name: value for name, value in config.items() if value is not None}


def _deserialized(value: Any) -> Any:
    if isinstance(value, Mapping) and "class_name" not in value:
        return {name: _deserialized(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_deserialized(part) for part in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, Mapping) else value


def by_output(structure: Any, output_names: Iterable[str], what: str) -> Any:
    """A dict keyed by output names as a list in the outputs' order; anything else unchanged.

    Wrapping layers for pruning and quantization changes their names, and with them the names of outputs.
    """
    if not isinstance(structure, Mapping):
        return structure
    names = list(output_names)
    unknown = [name for name in structure if name not in names]
    if unknown:
        raise AdaptationError(f"{what}: unknown outputs {unknown}; the student's outputs are {names}")
    return [structure.get(name) for name in names]


def fresh_metrics(metrics: Any) -> Any:
    """New metric objects with the same settings, so that two phases share no state."""
    if isinstance(metrics, list | tuple):
        return [fresh_metrics(part) for part in metrics]
    if isinstance(metrics, Mapping):
        return {name: fresh_metrics(part) for name, part in metrics.items()}
    if isinstance(metrics, tf_keras.metrics.Metric) and type(metrics).__name__ != "CalledThrough":
        return type(metrics).from_config(metrics.get_config())
    return metrics
