"""Losses between the last outputs of two networks: pure functions of logits.

All take the teacher first and let no gradient into it, compute in float32 or wider, and accept logits of
shape [batch, ..., classes]: the axes in the middle (pixels, time steps) are averaged, those under `mask`
excepted.
"""

from typing import Any

from keras import ops

from keras_kd.errors import ShapeMismatchError
from keras_kd.losses.tensors import (
    check_rank,
    check_same_shape,
    check_temperature,
    per_example,
    teacher_and_student,
)

Tensor = Any


def _prepare(teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, Tensor]:
    teacher, student = teacher_and_student(teacher_logits, student_logits)
    check_same_shape(teacher, student, "logits")
    check_rank(student, 2, "A loss on logits")
    return teacher, student


def standardize_logits(logits: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """Logits of mean 0 and (unbiased) standard deviation 1 over the last axis: (z − mean) / (ε + std).

    Args:
      logits: float [..., classes], at least 2 classes.
      epsilon: keeps the quotient finite where all logits are equal.

    Returns:
      float, the same shape.

    Raises:
      ValueError: fewer than two classes.

    Example:
      >>> import numpy as np
      >>> ops.convert_to_numpy(standardize_logits(np.array([[1.0, 2.0, 3.0]]))).round(4).tolist()
      [[-1.0, 0.0, 1.0]]

    Source: Sun et al. 2024, arXiv:2403.01427, algorithm 1.
    """
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"standardize needs at least 2 classes, got logits of shape {tuple(logits.shape)}.")
    centered = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.sum(centered * centered, axis=-1, keepdims=True) / (classes - 1)
    # The floor keeps the gradient of the square root finite where all logits are equal.
    return centered / (epsilon + ops.sqrt(ops.maximum(variance, 1e-24)))


def soft_target_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: Any = 1.0,
    standardize: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Temperature-scaled KL divergence from teacher to student.

    L_i = T² Σ_k p_ik (log p_ik − log q_ik),  p = softmax(teacher/T), q = softmax(student/T).
    T² keeps the gradient's scale the same at every temperature: it is T·(q − p) per logit.

    Args:
      teacher_logits: float [batch, ..., classes], before softmax. No gradient flows into it.
      student_logits: float, the same shape, before softmax.
      temperature: T > 0, dimensionless.
      standardize: z-score both first (arXiv:2403.01427), so that only the relations between the logits are taught.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float [batch], in nats times T², not reduced.

    Raises:
      ValueError: T <= 0, or the shapes differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]])
      >>> ops.convert_to_numpy(soft_target_kl(teacher, student)).round(4).tolist()
      [0.3278]
      >>> ops.convert_to_numpy(soft_target_kl(teacher, student, temperature=2.0)).round(4).tolist()
      [0.4438]

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    if standardize:
        teacher, student = standardize_logits(teacher), standardize_logits(student)
    temperature = ops.cast(temperature, student.dtype)
    log_p = ops.log_softmax(teacher / temperature, axis=-1)
    log_q = ops.log_softmax(student / temperature, axis=-1)
    divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
    return temperature * temperature * per_example(divergence, mask)


def soft_target_crossentropy(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    temperature: Any = 1.0,
    label_smoothing: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Temperature-scaled cross-entropy of the student under the teacher's soft targets.

    L_i = −T² Σ_k p_ik log q_ik: `soft_target_kl` plus the teacher's own entropy, hence the same gradient.

    Args:
      teacher_logits: float [batch, ..., classes], before softmax. No gradient flows into it.
      student_logits: float, the same shape, before softmax.
      temperature: T > 0, dimensionless.
      label_smoothing: in [0, 1), the share of the soft targets that is spread over all classes.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float [batch], in nats times T², not reduced.

    Raises:
      ValueError: T <= 0, or the shapes differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> loss = soft_target_crossentropy(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]))
      >>> ops.convert_to_numpy(loss).round(4).tolist()
      [0.6931]

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    temperature = ops.cast(temperature, student.dtype)
    targets = ops.softmax(teacher / temperature, axis=-1)
    if label_smoothing:
        targets = targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]
    crossentropy = -ops.sum(targets * ops.log_softmax(student / temperature, axis=-1), axis=-1)
    return temperature * temperature * per_example(crossentropy, mask)


def _target_mask(labels: Tensor, logits: Tensor) -> Tensor:
    """Bool, the logits' shape: True at the labelled class. Labels are sparse, one-hot, or mixed (the largest wins)."""
    labels = ops.convert_to_tensor(labels)
    rank, classes = len(logits.shape), logits.shape[-1]
    if len(labels.shape) == rank and labels.shape[-1] == classes and classes != 1:
        labels = ops.argmax(labels, axis=-1)
    elif len(labels.shape) == rank and labels.shape[-1] == 1:
        labels = ops.squeeze(labels, axis=-1)
    elif len(labels.shape) != rank - 1:
        raise ShapeMismatchError(
            f"Labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: expected "
            f"class numbers of shape {tuple(logits.shape[:-1])} or one-hot labels of the logits' shape."
        )
    return ops.equal(ops.expand_dims(ops.cast(labels, "int32"), -1), ops.arange(classes, dtype="int32"))


def _without_target(logits: Tensor, is_target: Tensor) -> Tensor:
    """Log-softmax over the classes that are not the target; the target's own entry is hugely negative."""
    return ops.log_softmax(ops.where(is_target, ops.cast(-1e9, logits.dtype), logits), axis=-1)


def _at_target(values: Tensor, is_target: Tensor) -> Tensor:
    return ops.sum(ops.where(is_target, values, ops.zeros_like(values)), axis=-1)


def _check_two_classes(logits: Tensor, name: str) -> None:
    if logits.shape[-1] is not None and logits.shape[-1] < 2:
        raise ValueError(f"{name} needs at least 2 classes, got logits of shape {tuple(logits.shape)}.")


def decoupled_kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    *,
    alpha: Any = 1.0,
    beta: Any = 8.0,
    temperature: Any = 4.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Soft targets split into the labelled class against the rest, and the rest among themselves.

    L_i = T² (α KL(b_t‖b_s) + β KL(p̂_t‖p̂_s)),  b = (p_y, 1 − p_y), p̂ = softmax over the classes other than y.
    With α = 1 and β = 1 − p_ty it is `soft_target_kl`; a constant β keeps teaching where the teacher is sure.

    Args:
      teacher_logits: float [batch, ..., classes], classes >= 2. No gradient flows into it.
      student_logits: float, the same shape, before softmax.
      labels: class numbers [batch, ...], or one-hot or mixed labels of the logits' shape (the largest counts).
      alpha: weight of the labelled class against the rest.
      beta: weight of the other classes among themselves.
      temperature: T > 0, dimensionless.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float [batch], in nats times T², not reduced.

    Raises:
      ValueError: T <= 0, fewer than two classes, or shapes that do not fit (the message names them).

    Example:
      >>> import numpy as np
      >>> loss = decoupled_kl(np.array([[2.0, 1.0, 0.0]]), np.zeros((1, 3)), np.array([0]), temperature=1.0)
      >>> ops.convert_to_numpy(loss).round(4).tolist()
      [1.1166]

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 7; defaults of its CIFAR-100 code.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    _check_two_classes(student, "decoupled_kl")
    is_target = _target_mask(labels, student)
    temperature = ops.cast(temperature, student.dtype)
    teacher, student = teacher / temperature, student / temperature

    def binary(logits: Tensor) -> tuple[Tensor, Tensor]:
        # log p_y and log(1 − p_y), the latter as a sum over the other classes: exact where p_y rounds to 1.
        total = ops.logsumexp(logits, axis=-1)
        others = ops.logsumexp(ops.where(is_target, ops.cast(-1e9, logits.dtype), logits), axis=-1)
        return _at_target(logits, is_target) - total, others - total

    (log_pt, log_rest_t), (log_ps, log_rest_s) = binary(teacher), binary(student)
    target = ops.exp(log_pt) * (log_pt - log_ps) + ops.exp(log_rest_t) * (log_rest_t - log_rest_s)
    log_p, log_q = _without_target(teacher, is_target), _without_target(student, is_target)
    others = ops.sum(ops.where(is_target, ops.zeros_like(log_p), ops.exp(log_p) * (log_p - log_q)), axis=-1)
    return temperature * temperature * per_example(alpha * target + beta * others, mask)


def normalized_kd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    *,
    gamma: Any = 1.5,
    temperature: Any = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The labelled class weighted by the teacher's belief in it, and normalized soft targets for the others.

    L_i = −p_ty log q_y − γ T² Σ_{k≠y} p̂_k log q̂_k,  p̂, q̂ = softmax(·/T) over the classes other than y;
    p_ty and q_y at temperature 1. A cross-entropy: not zero where the student equals the teacher.

    Args:
      teacher_logits: float [batch, ..., classes], classes >= 2. No gradient flows into it.
      student_logits: float, the same shape, before softmax.
      labels: class numbers [batch, ...], or one-hot or mixed labels of the logits' shape (the largest counts).
      gamma: weight of the other classes.
      temperature: T > 0 of the other classes, dimensionless.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float [batch], in nats, not reduced.

    Raises:
      ValueError: T <= 0, fewer than two classes, or shapes that do not fit (the message names them).

    Example:
      >>> import numpy as np
      >>> loss = normalized_kd(np.array([[2.0, 1.0, 0.0]]), np.zeros((1, 3)), np.array([0]))
      >>> ops.convert_to_numpy(loss).round(4).tolist()
      [1.7706]

    Source: Yang et al. 2023, arXiv:2303.13005, equation 12; defaults of its code.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    _check_two_classes(student, "normalized_kd")
    is_target = _target_mask(labels, student)
    belief = ops.exp(_at_target(ops.log_softmax(teacher, axis=-1), is_target))
    target = -belief * _at_target(ops.log_softmax(student, axis=-1), is_target)
    temperature = ops.cast(temperature, student.dtype)
    p = ops.exp(_without_target(teacher / temperature, is_target))
    log_q = _without_target(student / temperature, is_target)
    others = -ops.sum(ops.where(is_target, ops.zeros_like(p), p * log_q), axis=-1)
    return per_example(target + gamma * temperature * temperature * others, mask)


def soft_target_bce(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: Any = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy under a sigmoid teacher's soft targets, for labels that do not exclude each other.

    L_i = T² mean_k (softplus(z_ik) − p_ik z_ik),  p = sigmoid(teacher/T), z = student/T.
    A cross-entropy: at z equal to the teacher's it is the teacher's own entropy, not zero.

    Args:
      teacher_logits: float [batch, ..., labels], before sigmoid. No gradient flows into it.
      student_logits: float, the same shape, before sigmoid.
      temperature: T > 0, dimensionless.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float [batch], in nats times T², the mean over the labels, not reduced over the batch.

    Raises:
      ValueError: T <= 0, or the shapes differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> loss = soft_target_bce(np.array([[2.0, -2.0]]), np.array([[0.0, 1.0]]))
      >>> ops.convert_to_numpy(loss).round(4).tolist()
      [0.9436]

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, with a sigmoid for each label.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    temperature = ops.cast(temperature, student.dtype)
    z = student / temperature
    # max(z, 0) + log(1 + exp(−|z|)) is softplus without overflow.
    softplus = ops.maximum(z, 0.0) + ops.log1p(ops.exp(-ops.abs(z)))
    entropy = ops.mean(softplus - ops.sigmoid(teacher / temperature) * z, axis=-1)
    return temperature * temperature * per_example(entropy, mask)


def correlation_distance(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    beta: Any = 1.0,
    gamma: Any = 1.0,
    temperature: Any = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """One minus Pearson's correlation of the predictions, over classes and over examples.

    L = T² (β (1 − mean_i r(p_i·, q_i·)) + γ (1 − mean_k r(p_·k, q_·k))),  p, q = softmax(·/T).
    It asks for the teacher's preferences, not its exact probabilities: positive scaling and shifts are free.

    Args:
      teacher_logits: float [batch, ..., classes]; middle axes count as further examples. No gradient flows into it.
      student_logits: float, the same shape, before softmax.
      beta: weight of the correlation over the classes of one example.
      gamma: weight of the correlation over the examples of one class.
      temperature: T > 0, dimensionless.
      mask: [batch, ...], False where a position does not count.

    Returns:
      float scalar. A row or column without any spread has correlation 0.

    Raises:
      ValueError: T <= 0, or the shapes differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), np.array([[2.0, 0.0, 1.0], [1.0, 0.0, 3.0]])
      >>> round(float(correlation_distance(teacher, student)), 4)
      0.0741

    Source: Huang et al. 2022, arXiv:2205.10536, equations 8 to 10.
    """
    check_temperature(temperature)
    teacher, student = _prepare(teacher_logits, student_logits)
    temperature = ops.cast(temperature, student.dtype)
    classes = student.shape[-1]
    p = ops.reshape(ops.softmax(teacher / temperature, axis=-1), (-1, classes))
    q = ops.reshape(ops.softmax(student / temperature, axis=-1), (-1, classes))
    if mask is None:
        weights = ops.ones_like(p[:, :1])
    else:
        weights = ops.cast(ops.reshape(mask, (-1, 1)), p.dtype)

    def pearson(a: Tensor, b: Tensor, w: Tensor, axis: int) -> Tensor:
        count = ops.maximum(ops.sum(w, axis=axis, keepdims=True), 1.0)
        a = (a - ops.sum(a * w, axis=axis, keepdims=True) / count) * w
        b = (b - ops.sum(b * w, axis=axis, keepdims=True) / count) * w
        # Floors under the roots, not sums with an epsilon: the correlation stays exact, and its gradient
        # finite where there is no spread at all (a class that is never seen).
        spread = ops.sqrt(ops.maximum(ops.sum(a * a, axis=axis), 1e-16))
        spread *= ops.sqrt(ops.maximum(ops.sum(b * b, axis=axis), 1e-16))
        return ops.sum(a * b, axis=axis) / spread

    over_classes = pearson(p, q, ops.ones_like(p), -1)
    rows = weights[:, 0]
    over_classes = ops.sum(over_classes * rows) / ops.maximum(ops.sum(rows), 1.0)
    over_examples = ops.mean(pearson(p, q, weights, 0))
    return temperature * temperature * (beta * (1.0 - over_classes) + gamma * (1.0 - over_examples))
