"""`evaluate`: runs a .tflite file over labelled data and says how good it is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tflite_tools.errors import nearest
from tflite_tools.evaluation_result import ClassResult, EvaluationResult
from tflite_tools.interpreter import ArtifactLike, Isolate, as_artifact, predict
from tflite_tools.metrics import (
    confusion_matrix,
    expected_calibration_error,
    log_softmax,
    roc_auc,
    top_k_accuracy,
)

TASKS = ("auto", "classification", "multi_label", "regression", "reconstruction")
_TOP_K = 5


def evaluate(
    artifact: ArtifactLike,
    x: Any,
    y: Any = None,
    *,
    task: str = "auto",
    metrics: Mapping[str, Callable[[Any, np.ndarray], float]] | None = None,
    from_logits: bool | Literal["auto"] = "auto",
    class_names: Sequence[str] | None = None,
    output_name: str | None = None,
    isolate: Isolate = "auto",
    num_processes: int | None = None,
    signature: str | None = None,
) -> EvaluationResult:
    """Runs the file over labelled data.

    Args:
      artifact: from `convert` or `load`; a path or bytes are loaded.
      x: as for `predict`; or a batched tf.data.Dataset of (x, y), and then no y.
      y: classification: class numbers [examples] or one-hot rows; multi-label: zeros and ones [examples,
        labels]; regression: values; reconstruction: 1 for an anomaly and 0 for a normal example, or None.
      task: "auto" looks at y and at the output's shape, and `why` in the result says what it saw.
      metrics: further ones, name to a function of (y, outputs) that returns a number.
      from_logits: whether outputs are logits. "auto": outputs that are all in [0, 1], with rows that sum to 1
        (within the output's own rounding), are probabilities.
      class_names: default: those embedded in the file, otherwise the numbers.
      output_name: which output, where there are several.
      isolate: as for `predict`.
      num_processes: as for `predict`.
      signature: as for `predict`.

    Returns:
      The result; print it for a table.

    Raises:
      ValueError: an argument that cannot be used, or labels that do not fit the outputs.

    Example:
      >>> import keras
      >>> from tflite_tools import convert
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="identity")])
      >>> result = evaluate(convert(model), np.eye(2), np.array([0, 0]))
      >>> result.accuracy, result.confusion
      (0.5, ((1, 1), (0, 0)))
    """
    if task not in TASKS:
        raise ValueError(f"task: expected one of {list(TASKS)}, got {task!r}.{nearest(task, TASKS)}")
    if from_logits not in ("auto", True, False):
        raise ValueError(f"from_logits: expected 'auto', True or False, got {from_logits!r}.")
    artifact = as_artifact(artifact)
    if y is None and _is_stream(x):
        x, y = _gather(x)
    labels = None if y is None else np.asarray(y)
    outputs = predict(artifact, x, isolate=isolate, num_processes=num_processes, signature=signature)
    if isinstance(outputs, dict):
        if output_name is None:
            raise ValueError(
                f"output_name: the file has several outputs, {sorted(outputs)}; say which one y is about."
            )
        if output_name not in outputs:
            raise ValueError(
                f"output_name: there is no output {output_name!r}; there are {sorted(outputs)}."
                f"{nearest(output_name, outputs)}"
            )
        outputs = outputs[output_name]
    values = np.asarray(outputs, np.float64)
    if labels is not None and len(labels) != len(values):
        raise ValueError(f"y: {len(labels)} labels for {len(values)} examples.")
    if not len(values):
        raise ValueError("x: there is not a single example.")
    target = np.asarray(x) if not isinstance(x, (Mapping, list, tuple)) else None
    if task == "auto":
        task, why = recognize_task(labels, values, target)
    else:
        why = f"The task was given: {task}."
    names = class_names if class_names is not None else artifact.class_names
    if task == "classification":
        result = _classification(values, labels, from_logits, names, why)
    elif task == "multi_label":
        result = _multi_label(values, labels, from_logits, names, why)
    elif task == "regression":
        result = _regression(values, labels, why)
    else:
        result = _reconstruction(values, labels, target, why)
    extra = {name: float(function(labels, values)) for name, function in (metrics or {}).items()}
    return dataclasses.replace(result, extra=extra, sha256=artifact.sha256)


def recognize_task(labels: np.ndarray | None, outputs: np.ndarray, x: np.ndarray | None) -> tuple[str, str]:
    """The task, and a sentence that says why.

    Example:
      >>> recognize_task(np.array([1, 0]), np.zeros((2, 3)), None)[0]
      'classification'
    """
    # Two numbers in and two out with labels 0 and 1 are far more often two classes than an autoencoder.
    same_as_input = x is not None and x.shape == outputs.shape and outputs[0].size > 2
    if labels is None:
        if same_as_input:
            return (
                "reconstruction",
                "Taken as reconstruction: there are no labels, and outputs have the input's shape.",
            )
        raise ValueError(
            "y: there are no labels, and the outputs do not have the input's shape (no autoencoder)."
        )
    flat = outputs.reshape(len(outputs), -1)
    whole = labels.dtype.kind in "biu" or bool(np.all(labels == np.round(labels)))
    if labels.shape == outputs.shape and labels.ndim >= 2 and labels.shape[-1] > 1:
        binary = bool(np.isin(labels, (0, 1)).all())
        if binary and bool((labels.reshape(len(labels), -1).sum(axis=1) == 1).all()):
            return "classification", "Taken as classification: the rows of y are one-hot."
        if binary:
            return (
                "multi_label",
                "Taken as multi-label: the rows of y hold zeros and ones, not exactly one each.",
            )
        return "regression", "Taken as regression: y holds values of the output's shape."
    one_per_example = labels.size == len(labels)
    if same_as_input and one_per_example and bool(np.isin(labels, (0, 1)).all()):
        return (
            "reconstruction",
            "Taken as reconstruction: outputs have the input's shape, and y says which examples are anomalies.",
        )
    if one_per_example and flat.shape[1] == 1:
        if bool(np.isin(labels, (0, 1)).all()):
            return "classification", "Taken as binary classification: one output, and y is 0 or 1."
        return "regression", "Taken as regression: one output, and y is not 0 or 1."
    if one_per_example and whole:
        return (
            "classification",
            f"Taken as classification: y holds class numbers for {flat.shape[1]} outputs.",
        )
    raise ValueError(
        f"y: shape {labels.shape} of {labels.dtype} does not say what to do with outputs of shape {outputs.shape}; "
        "pass task=."
    )


def _as_probabilities(
    values: np.ndarray, from_logits: bool | str, *, rows: bool
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Log-probabilities, probabilities, and whether the outputs were logits."""
    if from_logits == "auto":
        # A quantized softmax has steps of 1/256: a row of many classes may miss 1 by half a step per class.
        slack = 1e-3 + values.shape[-1] / 512
        inside = bool(values.min() >= 0.0 and values.max() <= 1.0)
        from_logits = not (inside and (not rows or bool(np.all(np.abs(values.sum(axis=-1) - 1.0) <= slack))))
    if from_logits:
        log_p = log_softmax(values) if rows else -np.logaddexp(0.0, -values)
        return log_p, np.exp(log_p), True
    # As Keras does: a probability of exactly 0, which quantization makes common, would make the loss
    # infinite.
    clipped = np.clip(values, 1e-7, 1.0)
    if rows:
        clipped = clipped / clipped.sum(axis=-1, keepdims=True)
    return np.log(clipped), clipped, False


def _kind(from_logits: bool) -> str:
    return "Outputs were taken as logits." if from_logits else "Outputs were taken as probabilities."


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(count)]
    if len(names) != count:
        raise ValueError(f"class_names: {len(names)} names for {count} classes.")
    return list(map(str, names))


def _per_class(confusion: np.ndarray, names: list[str]) -> tuple[ClassResult, ...]:
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return tuple(
        ClassResult(
            name=name,
            examples=int(true[k]),
            precision=float(right[k] / said[k]) if said[k] else None,
            recall=float(right[k] / true[k]) if true[k] else None,
            f1=float(2 * right[k] / (true[k] + said[k])) if true[k] + said[k] else None,
        )
        for k, name in enumerate(names)
    )


def _classification(
    values: np.ndarray,
    labels: np.ndarray | None,
    from_logits: bool | str,
    names: Sequence[str] | None,
    why: str,
) -> EvaluationResult:
    if labels is None:
        raise ValueError("y: classification needs labels.")
    scores = values.reshape(len(values), -1)
    if labels.size == scores.size and scores.shape[1] > 1:
        classes = labels.reshape(scores.shape).argmax(axis=1)
    elif labels.size == len(labels):
        classes = labels.reshape(-1).astype(np.int64)
    else:
        raise ValueError(
            f"y: expected class numbers or one-hot rows for outputs {scores.shape}, got {labels.shape}."
        )
    if scores.shape[1] == 1:  # one sigmoid output; written as two columns it is like any other
        log_p, p, logits = _as_probabilities(scores, from_logits, rows=False)
        other = -np.logaddexp(0.0, scores) if logits else np.log(np.clip(1.0 - p, 1e-7, 1.0))
        log_p, p = np.hstack([other, log_p]), np.hstack([1.0 - p, p])
        # A probability of exactly one half counts as class 0 here, as `argmax` does and Keras's `> 0.5`.
        scores = p
    else:
        log_p, p, logits = _as_probabilities(scores, from_logits, rows=True)
    count = scores.shape[1]
    if classes.min() < 0 or classes.max() >= count:
        raise ValueError(f"y: class numbers from {classes.min()} to {classes.max()} for {count} outputs.")
    confusion = confusion_matrix(scores.argmax(axis=1), classes, count)
    return EvaluationResult(
        task="classification",
        why=f"{why} {_kind(logits)}",
        num_examples=len(scores),
        accuracy=top_k_accuracy(scores, classes, 1),
        top5_accuracy=top_k_accuracy(scores, classes, _TOP_K) if count > _TOP_K else None,
        loss=float(-log_p[np.arange(len(classes)), classes].mean()),
        from_logits=logits,
        calibration_error=expected_calibration_error(p, classes),
        per_class=_per_class(confusion, _names(names, count)),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def _multi_label(
    values: np.ndarray,
    labels: np.ndarray | None,
    from_logits: bool | str,
    names: Sequence[str] | None,
    why: str,
) -> EvaluationResult:
    if labels is None or labels.size != values.size:
        raise ValueError(f"y: multi-label needs zeros and ones of the output's shape {values.shape}.")
    scores = values.reshape(len(values), -1)
    truth = labels.reshape(scores.shape).astype(bool)
    log_p, p, logits = _as_probabilities(scores, from_logits, rows=False)
    log_not = -np.logaddexp(0.0, scores) if logits else np.log(np.clip(1.0 - p, 1e-7, 1.0))
    decided = p > 0.5
    rows = []
    for k, name in enumerate(_names(names, scores.shape[1])):
        hits = int((decided[:, k] & truth[:, k]).sum())
        said, true = int(decided[:, k].sum()), int(truth[:, k].sum())
        rows.append(
            ClassResult(
                name,
                true,
                hits / said if said else None,
                hits / true if true else None,
                2 * hits / (said + true) if said + true else None,
                roc_auc(scores[:, k], truth[:, k]),
            )
        )
    areas = [row.auc for row in rows if row.auc is not None]
    return EvaluationResult(
        task="multi_label",
        why=f"{why} {_kind(logits)}",
        num_examples=len(scores),
        accuracy=float((decided == truth).mean()),
        loss=float(-np.where(truth, log_p, log_not).mean()),
        from_logits=logits,
        auc=float(np.mean(areas)) if areas else None,
        per_class=tuple(rows),
    )


def _regression(values: np.ndarray, labels: np.ndarray | None, why: str) -> EvaluationResult:
    if labels is None or labels.size != values.size:
        raise ValueError(f"y: regression needs values of the output's shape {values.shape}.")
    target = labels.astype(np.float64).reshape(values.shape)
    error = values - target
    spread = float(np.sum((target - target.mean(axis=0)) ** 2))
    mse = float(np.mean(error**2))
    return EvaluationResult(
        task="regression",
        why=why,
        num_examples=len(values),
        loss=mse,
        mean_absolute_error=float(np.abs(error).mean()),
        root_mean_squared_error=mse**0.5,
        r2=1.0 - float(np.sum(error**2)) / spread if spread else None,
    )


def _reconstruction(
    values: np.ndarray, labels: np.ndarray | None, x: np.ndarray | None, why: str
) -> EvaluationResult:
    if x is None or x.shape != values.shape:
        raise ValueError(f"task: reconstruction needs outputs of the input's shape, got {values.shape}.")
    per_example = np.mean((values - x.astype(np.float64)).reshape(len(x), -1) ** 2, axis=1)
    return EvaluationResult(
        task="reconstruction",
        why=why,
        num_examples=len(x),
        loss=float(per_example.mean()),
        root_mean_squared_error=float(per_example.mean() ** 0.5),
        auc=None if labels is None else roc_auc(per_example, labels.reshape(-1)),
    )


def _is_stream(x: Any) -> bool:
    return not hasattr(x, "shape") and not isinstance(x, (Mapping, list, tuple)) and hasattr(x, "__iter__")


def _gather(stream: Any) -> tuple[Any, Any]:
    """All examples and labels of a batched dataset."""
    batches = [element[:2] for element in stream if isinstance(element, tuple) and len(element) >= 2]
    if not batches:
        raise ValueError("x: expected a batched dataset of (x, y).")
    firsts = [batch[0] for batch in batches]
    labels = np.concatenate([np.asarray(batch[1]) for batch in batches])
    if isinstance(firsts[0], Mapping):
        return {key: np.concatenate([np.asarray(f[key]) for f in firsts]) for key in firsts[0]}, labels
    if isinstance(firsts[0], (list, tuple)):
        return [np.concatenate([np.asarray(f[k]) for f in firsts]) for k in range(len(firsts[0]))], labels
    return np.concatenate([np.asarray(first) for first in firsts]), labels
