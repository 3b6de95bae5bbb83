"""Losses between inner features of two networks, one value per example: pure functions.

Feature maps are channels-last, [batch, ..., channels]. Where spatial sizes differ, the larger map is
average-pooled to the smaller. All take the teacher first and let no gradient into it.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_kd.errors import ShapeMismatchError
from keras_kd.losses.tensors import (
    check_rank,
    check_same_shape,
    l2_normalize,
    match_spatial,
    per_example,
    teacher_and_student,
)

Tensor = Any


def hint_distance(
    teacher_features: Tensor, student_features: Tensor, *, mask: Tensor | None = None
) -> Tensor:
    """Mean squared difference of two features of the same width.

    L_i = mean_j (t_ij − s_ij)², after pooling the larger map to the smaller.

    Args:
      teacher_features: float [batch, ..., channels]. No gradient flows into it.
      student_features: float [batch, ..., channels], as many axes and channels.
      mask: [batch, ...], False where a position does not count (features of equal size only).

    Returns:
      float [batch], in squared units of the features, not reduced.

    Raises:
      ValueError: the shapes do not fit (the message names both).

    Example:
      >>> import numpy as np
      >>> ops.convert_to_numpy(hint_distance(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))).tolist()
      [2.0]

    Source: Romero et al. 2015, arXiv:1412.6550, equation 3 (mean in place of half the sum).
    """
    teacher, student = teacher_and_student(teacher_features, student_features)
    if len(student.shape) > 2:
        teacher, student = match_spatial(teacher, student)
    check_same_shape(teacher, student, "features")
    difference = student - teacher
    return per_example(difference * difference, mask)


def attention_map(features: Tensor, *, p: int = 2) -> Tensor:
    """Where a network looks: the channel mean of F^p, flattened and L2-normalized per example.

    Args:
      features: float [batch, ..., channels], at least three axes.
      p: the power, an integer of at least 1.

    Returns:
      float [batch, positions], of norm 1 (0 where the features are 0).

    Example:
      >>> import numpy as np
      >>> features = np.array([[[1.0, 1.0], [2.0, 2.0]]])
      >>> ops.convert_to_numpy(attention_map(features)).round(4).tolist()
      [[0.2425, 0.9701]]

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.
    """
    if isinstance(p, bool) or not isinstance(p, int) or p < 1:
        raise ValueError(f"p must be an integer of at least 1, got {p!r}.")
    check_rank(features, 3, "An attention map")
    powered = features
    for _ in range(p - 1):
        powered = powered * features
    channel_mean = ops.mean(powered, axis=-1)
    flat = ops.reshape(channel_mean, (ops.shape(channel_mean)[0], -1))
    return l2_normalize(flat, axis=-1)


def attention_distance(teacher_features: Tensor, student_features: Tensor, *, p: int = 2) -> Tensor:
    """Mean squared difference of two attention maps; the widths may differ.

    L_i = mean_j (A(t)_ij − A(s)_ij)²,  A = `attention_map`.

    Args:
      teacher_features: float [batch, ..., channels], at least three axes. No gradient flows into it.
      student_features: float, as many axes; sizes are pooled to the smaller, channels may differ.
      p: the power of the activations, an integer of at least 1.

    Returns:
      float [batch], dimensionless, not reduced.

    Raises:
      ValueError: the shapes do not fit (the message names both), or p is not a positive integer.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[[3.0], [0.0]]]), np.array([[[0.0, 0.0], [1.0, 1.0]]])
      >>> ops.convert_to_numpy(attention_distance(teacher, student)).tolist()
      [1.0]

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2, with the mean of its reference code.
    """
    teacher, student = teacher_and_student(teacher_features, student_features)
    teacher, student = match_spatial(teacher, student)
    difference = attention_map(teacher, p=p) - attention_map(student, p=p)
    return ops.mean(difference * difference, axis=-1)


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """The matrix of inner products between the channels of two maps, divided by the positions.

    G_ij = mean_x first_xi · second_xj.

    Args:
      first: float [batch, ..., channels_1], at least three axes.
      second: float [batch, ..., channels_2]; the larger of the two maps is pooled to the smaller.

    Returns:
      float [batch, channels_1, channels_2].

    Example:
      >>> import numpy as np
      >>> first, second = np.array([[[1.0, 0.0], [3.0, 2.0]]]), np.array([[[2.0], [4.0]]])
      >>> ops.convert_to_numpy(flow_matrix(first, second)).tolist()
      [[[7.0], [4.0]]]

    Source: Yim et al. 2017, "A gift from knowledge distillation" (CVPR), equation 1.
    """
    check_rank(first, 3, "A flow matrix")
    first, second = match_spatial(first, second)
    batch = ops.shape(first)[0]
    first = ops.reshape(first, (batch, -1, first.shape[-1]))
    second = ops.reshape(second, (batch, -1, second.shape[-1]))
    positions = ops.cast(ops.shape(first)[1], first.dtype)
    return ops.matmul(ops.transpose(first, (0, 2, 1)), second) / positions


def flow_distance(teacher_features: Sequence[Tensor], student_features: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the flow matrices of two pairs of maps.

    L_i = mean_jk (G(t1, t2)_ijk − G(s1, s2)_ijk)²,  G = `flow_matrix`.

    Args:
      teacher_features: a pair of float [batch, ..., channels], the earlier first. No gradient flows into it.
      student_features: a pair of the same two widths; sizes may differ from the teacher's.

    Returns:
      float [batch], not reduced.

    Raises:
      ValueError: one of the two is not a pair, or the widths differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> one, two = np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0)
      >>> ops.convert_to_numpy(flow_distance((one, two), (one, one))).tolist()
      [1.0]

    Source: Yim et al. 2017, "A gift from knowledge distillation" (CVPR), equation 2 (mean in place of the sum).
    """
    for name, features in (("teacher_features", teacher_features), ("student_features", student_features)):
        if not isinstance(features, (tuple, list)) or len(features) != 2:
            received = (
                f"{len(features)} items" if isinstance(features, (tuple, list)) else type(features).__name__
            )
            raise ValueError(f"{name} must be a pair of feature maps, got {received}.")
    (t1, s1), (t2, s2) = (teacher_and_student(t, s) for t, s in zip(teacher_features, student_features))
    teacher, student = flow_matrix(t1, t2), flow_matrix(s1, s2)
    if tuple(teacher.shape[1:]) != tuple(student.shape[1:]):
        raise ShapeMismatchError(
            "Flow matrices compare pairs of layers of the same widths: the teacher's features have shapes "
            f"{tuple(t1.shape)} and {tuple(t2.shape)}, the student's {tuple(s1.shape)} and {tuple(s2.shape)}."
        )
    difference = teacher - student
    return ops.mean(difference * difference, axis=(1, 2))


def neuron_selectivity_mmd(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the channels' activation patterns; the widths may differ.

    L_i = mean k(t, t) + mean k(s, s) − 2 mean k(t, s) over all pairs of channels,  k(a, b) = (a·b)²,
    each channel being its map over the positions, L2-normalized.

    Args:
      teacher_features: float [batch, ..., channels], at least three axes. No gradient flows into it.
      student_features: float, as many axes; sizes are pooled to the smaller, channels may differ.

    Returns:
      float [batch], dimensionless, non-negative up to rounding, not reduced.

    Raises:
      ValueError: the shapes do not fit (the message names both).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[[1.0], [0.0]]]), np.array([[[0.0], [2.0]]])
      >>> ops.convert_to_numpy(neuron_selectivity_mmd(teacher, student)).tolist()
      [2.0]

    Source: Huang and Wang 2017, arXiv:1707.01219, equation 6, polynomial kernel with d = 2 and c = 0.
    """
    teacher, student = teacher_and_student(teacher_features, student_features)
    check_rank(student, 3, "neuron_selectivity_mmd")
    teacher, student = match_spatial(teacher, student)

    def patterns(x: Tensor) -> Tensor:
        return l2_normalize(ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1])), axis=1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        product = ops.matmul(ops.transpose(a, (0, 2, 1)), b)
        return ops.mean(product * product, axis=(1, 2))

    teacher, student = patterns(teacher), patterns(student)
    return kernel(teacher, teacher) + kernel(student, student) - 2.0 * kernel(teacher, student)


def gaussian_nll(
    teacher_features: Tensor, mean: Tensor, log_scale: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    """Negative log-likelihood of the teacher's features under a Gaussian that the student predicts.

    L_i = mean_j ½ ((t_ij − μ_ij)² / v_j + log v_j),  v = softplus(log_scale) + ε, one per channel.
    Up to a constant; it can be negative.

    Args:
      teacher_features: float [batch, ..., channels]. No gradient flows into it.
      mean: float, μ, as many axes and channels; the larger of the two maps is pooled to the smaller.
      log_scale: float [channels].
      epsilon: least variance.

    Returns:
      float [batch], in nats per element, not reduced.

    Raises:
      ValueError: the shapes do not fit (the message names both).

    Example:
      >>> import numpy as np
      >>> log_scale = np.log(np.expm1([1.0]))  # softplus of it is 1
      >>> ops.convert_to_numpy(gaussian_nll(np.array([[3.0]]), np.array([[1.0]]), log_scale)).round(3).tolist()
      [2.0]

    Source: Ahn et al. 2019, arXiv:1904.05835, equation 4, as in its reference code.
    """
    teacher, mean = teacher_and_student(teacher_features, mean)
    if len(mean.shape) > 2:
        teacher, mean = match_spatial(teacher, mean)
    check_same_shape(teacher, mean, "features (the predicted mean being the student's)")
    variance = ops.softplus(ops.cast(log_scale, mean.dtype)) + epsilon
    difference = mean - teacher
    return per_example(0.5 * (difference * difference / variance + ops.log(variance)))
