"""Losses on how the examples of a batch relate to each other: pure functions that return a scalar.

They flatten the features of each example, so teacher and student may differ in every size but the batch.
Under a distribution strategy they compare the examples of one replica. All take the teacher first and let
no gradient into it.
"""

from typing import Any

from keras import ops

from keras_kd.errors import ShapeMismatchError
from keras_kd.losses.tensors import check_rank, flatten_examples, l2_normalize, teacher_and_student

Tensor = Any


def _embeddings(teacher_features: Tensor, student_features: Tensor) -> tuple[Tensor, Tensor]:
    teacher, student = teacher_and_student(teacher_features, student_features)
    check_rank(teacher, 2, "A loss on relations between examples")
    check_rank(student, 2, "A loss on relations between examples")
    a, b = teacher.shape[0], student.shape[0]
    if a is not None and b is not None and a != b:
        raise ShapeMismatchError(
            f"Teacher and student saw different numbers of examples: the teacher's features have shape "
            f"{tuple(teacher.shape)}, the student's {tuple(student.shape)}."
        )
    return flatten_examples(teacher), flatten_examples(student)


def similarity_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Squared difference of the two batches' similarity matrices, divided by the batch squared.

    L = ‖G_t − G_s‖²_F / b²,  G = rows of F·Fᵀ, each L2-normalized.

    Args:
      teacher_features: float [batch, ...]. No gradient flows into it.
      student_features: float [batch, ...]; all sizes but the batch may differ.

    Returns:
      float scalar, dimensionless.

    Raises:
      ValueError: the batches differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.eye(2), np.ones((2, 1))
      >>> round(float(similarity_distance(teacher, student)), 4)
      0.2929

    Source: Tung and Mori 2019, arXiv:1907.09682, equation 4.
    """
    teacher, student = _embeddings(teacher_features, student_features)

    def similarities(x: Tensor) -> Tensor:
        return l2_normalize(ops.matmul(x, ops.transpose(x)), axis=-1)

    difference = similarities(teacher) - similarities(student)
    return ops.mean(difference * difference)


def _huber(difference: Tensor) -> Tensor:
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * difference * difference, size - 0.5)


def relational_distance(
    teacher_features: Tensor,
    student_features: Tensor,
    *,
    distance_weight: Any = 25.0,
    angle_weight: Any = 50.0,
) -> Tensor:
    """Huber loss between the two batches' pairwise distances, and between their angles in triplets.

    L = w_d mean_ij h(d_t − d_s) + w_a mean_ijk h(cos_t − cos_s),  d being divided by its mean over the pairs,
    h(x) = ½x² for |x| < 1 and |x| − ½ beyond. The angles cost batch³ numbers and batch² · features.

    Args:
      teacher_features: float [batch, ...]. No gradient flows into it.
      student_features: float [batch, ...]; all sizes but the batch may differ.
      distance_weight: weight of the distances.
      angle_weight: weight of the angles; the Python number 0 leaves the angles out and costs nothing.

    Returns:
      float scalar, dimensionless. 0 for a batch of one.

    Raises:
      ValueError: the batches differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [3.0]])
      >>> round(float(relational_distance(teacher, student)), 4)
      0.3472

    Source: Park et al. 2019, arXiv:1904.05068, equations 6 to 10; weights of its reference implementations.
    """
    teacher, student = _embeddings(teacher_features, student_features)

    def differences(x: Tensor) -> Tensor:
        return ops.expand_dims(x, 0) - ops.expand_dims(x, 1)

    def distances(difference: Tensor) -> Tensor:
        square = ops.sum(difference * difference, axis=-1)
        off_diagonal = 1.0 - ops.eye(ops.shape(square)[0], dtype=square.dtype)
        # The floor keeps the root's gradient finite for two equal examples.
        distance = ops.sqrt(ops.maximum(square, 1e-12)) * off_diagonal
        mean = ops.sum(distance) / ops.maximum(ops.sum(off_diagonal), 1.0)
        return distance / ops.where(mean > 0, mean, ops.ones_like(mean))

    def cosines(difference: Tensor) -> Tensor:
        direction = l2_normalize(difference, axis=-1)
        return ops.matmul(direction, ops.transpose(direction, (0, 2, 1)))

    teacher, student = differences(teacher), differences(student)
    loss = distance_weight * ops.mean(_huber(distances(student) - distances(teacher)))
    if isinstance(angle_weight, (int, float)) and angle_weight == 0:
        return loss
    return loss + angle_weight * ops.mean(_huber(cosines(student) - cosines(teacher)))


def cosine_kernel_kl(teacher_features: Tensor, student_features: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """KL divergence between the two batches' neighborhoods, by cosine similarity.

    L = mean_ij p_ij log((p_ij + ε) / (q_ij + ε)),  rows of p and q being (cos + 1)/2, divided by their sum.

    Args:
      teacher_features: float [batch, ...]. No gradient flows into it.
      student_features: float [batch, ...]; all sizes but the batch may differ.
      epsilon: keeps the logarithm finite for examples that point in opposite directions.

    Returns:
      float scalar, in nats; the mean over all batch² pairs.

    Raises:
      ValueError: the batches differ (the message names both shapes).

    Example:
      >>> import numpy as np
      >>> teacher, student = np.eye(2), np.ones((2, 1))
      >>> round(float(cosine_kernel_kl(teacher, student)), 4)
      0.0283

    Source: Passalis and Tefas 2018, arXiv:1803.10837, equations 4 and 7, as in its reference code.
    """
    teacher, student = _embeddings(teacher_features, student_features)

    def neighborhood(x: Tensor) -> Tensor:
        x = l2_normalize(x, axis=-1, epsilon=epsilon)
        similarity = (ops.matmul(x, ops.transpose(x)) + 1.0) / 2.0
        return similarity / ops.sum(similarity, axis=-1, keepdims=True)

    p, q = neighborhood(teacher), neighborhood(student)
    # Rounding can leave the cosine a hair below −1.
    p, q = ops.maximum(p, 0.0), ops.maximum(q, 0.0)
    return ops.mean(p * ops.log((p + epsilon) / (q + epsilon)))
