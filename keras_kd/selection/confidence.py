"""Examples on which a teacher is wrong or unsure teach less."""

from typing import Any

import numpy as np

from keras_kd.errors import raise_all
from keras_kd.output_kinds import probed_kind


def confidence_weights(
    teacher_logits: Any, labels: Any, *, temperature: float = 1.0, from_logits: bool | str = "auto"
) -> np.ndarray:
    """Sample weights: the probability that the teacher gives to the true class, scaled to a mean of one.

    w_i = n p_i(y_i) / sum_j p_j(y_j),  p = softmax(teacher_logits / temperature).

    Given to `fit` as `sample_weight`, they weight the loss on labels too.

    Args:
      teacher_logits: float [examples, classes]; probabilities are recognized.
      labels: int [examples] or [examples, 1], or one-hot [examples, classes].
      temperature: T > 0; higher makes the weights more alike.
      from_logits: True, False, or "auto", which looks at the numbers.

    Returns:
      float32 [examples], at least 0, of mean 1.

    Raises:
      ValueError: shapes that do not fit, labels outside the classes, T <= 0; all in one message.

    Example:
      >>> sure, unsure, wrong = [2.0, -2.0], [0.0, 0.0], [-2.0, 2.0]
      >>> [round(float(weight), 3) for weight in confidence_weights([sure, unsure, wrong], [0, 0, 0])]
      [1.964, 1.0, 0.036]

    Source: Wen et al. 2019, arXiv:1911.07471, correct a teacher's wrong answers; here they only count less.
    """
    logits = np.asarray(teacher_logits, dtype=np.float64)
    classes = np.asarray(labels)
    problems = []
    if logits.ndim != 2:
        problems.append(f"teacher_logits must be [examples, classes], got shape {logits.shape}.")
    elif classes.shape == logits.shape:
        classes = classes.argmax(-1)
    elif classes.size != len(logits):
        problems.append(f"labels {classes.shape} do not fit teacher_logits {logits.shape}.")
    else:
        classes = classes.reshape(-1).astype(int)
        if classes.size and not (classes.min() >= 0 and classes.max() < logits.shape[1]):
            problems.append(
                f"labels must lie in 0..{logits.shape[1] - 1}, got {classes.min()}..{classes.max()}."
            )
    if not temperature > 0:
        problems.append(f"temperature must be greater than 0, got {temperature!r}.")
    raise_all(problems, subject="No weights can be computed")
    is_logits = probed_kind(logits) == "logits" if from_logits == "auto" else from_logits
    if not is_logits:
        logits = np.log(np.maximum(logits, 1e-12))
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    chosen = probabilities[np.arange(len(logits)), classes]
    return (chosen / chosen.mean()).astype(np.float32)
