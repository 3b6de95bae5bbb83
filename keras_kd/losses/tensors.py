"""What every loss needs of its tensors: float32 or wider, shapes that fit, one value per example."""

from typing import Any

import numpy as np
from keras import ops

from keras_kd.errors import ShapeMismatchError

Tensor = Any

#: Smallest probability that is told from zero when log-probabilities stand in for logits.
TINY = 1e-30


def to_float(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it came so: half precision overflows in sums of squares.

    Example:
      >>> str(to_float(np.ones(2, "float16")).dtype.name), str(to_float(np.ones(2)).dtype.name)
      ('float32', 'float64')
    """
    x = ops.convert_to_tensor(x)
    return x if "float64" in str(x.dtype) else ops.cast(x, "float32")


def teacher_and_student(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one float type, and no gradient into the teacher."""
    teacher, student = to_float(teacher), to_float(student)
    if teacher.dtype != student.dtype:
        teacher, student = ops.cast(teacher, "float64"), ops.cast(student, "float64")
    return ops.stop_gradient(teacher), student


def check_temperature(temperature: Any, name: str = "temperature") -> None:
    """Raise `ValueError` for a number that is not positive; a tensor (a schedule's value) passes."""
    if isinstance(temperature, (int, float, np.floating, np.integer)) and not temperature > 0:
        raise ValueError(f"{name} must be positive, got {temperature!r}.")


def check_same_shape(teacher: Tensor, student: Tensor, what: str) -> None:
    """Raise `ShapeMismatchError` unless both shapes can be equal; unknown sizes fit everything."""
    teacher_shape, student_shape = tuple(teacher.shape), tuple(student.shape)
    fits = len(teacher_shape) == len(student_shape) and all(
        a is None or b is None or a == b for a, b in zip(teacher_shape, student_shape)
    )
    if not fits:
        raise ShapeMismatchError(
            f"The {what} of teacher and student do not fit: the teacher's shape is {teacher_shape}, "
            f"the student's {student_shape}."
        )


def check_rank(tensor: Tensor, at_least: int, what: str) -> None:
    """Raise `ShapeMismatchError` if `tensor` has fewer axes than a loss needs."""
    if len(tensor.shape) < at_least:
        raise ShapeMismatchError(
            f"{what} needs at least {at_least} axes (the batch first, channels last), got {tuple(tensor.shape)}."
        )


def per_example(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over everything but the first axis; positions where `mask` is False do not count.

    Example:
      >>> values = np.array([[1.0, 3.0], [5.0, 7.0]])
      >>> ops.convert_to_numpy(per_example(values)).tolist()
      [2.0, 6.0]
      >>> ops.convert_to_numpy(per_example(values, np.array([[True, False], [False, False]]))).tolist()
      [1.0, 0.0]
    """
    values = ops.convert_to_tensor(values)
    axes = tuple(range(1, len(values.shape)))
    if not axes:
        return values
    if mask is None:
        return ops.mean(values, axis=axes)
    mask = ops.cast(mask, values.dtype)
    if len(mask.shape) < len(values.shape):
        mask = ops.reshape(mask, (*ops.shape(mask), *([1] * (len(values.shape) - len(mask.shape)))))
    mask = ops.broadcast_to(mask, ops.shape(values))
    # Values under the mask may be anything, NaN included: multiplying by 0 would keep the NaN.
    kept = ops.where(mask > 0, values, ops.zeros_like(values))
    return ops.sum(kept * mask, axis=axes) / ops.maximum(ops.sum(mask, axis=axes), 1.0)


def flatten_examples(x: Tensor) -> Tensor:
    """[batch, ...] to [batch, features]."""
    features = 1
    for size in x.shape[1:]:
        if size is None:
            return ops.reshape(x, (ops.shape(x)[0], -1))
        features *= size
    return ops.reshape(x, (-1, features))


def l2_normalize(x: Tensor, axis: int, epsilon: float = 1e-12) -> Tensor:
    """X / max(‖x‖, epsilon), with a finite gradient (zero) where x is zero."""
    square = ops.sum(x * x, axis=axis, keepdims=True)
    return x / ops.sqrt(ops.maximum(square, epsilon * epsilon))


def _pooling_matrix(size: int, target: int) -> np.ndarray:
    """[target, size]: each row averages the window of adaptive average pooling."""
    matrix = np.zeros((target, size))
    for row in range(target):
        start, stop = (row * size) // target, -((-(row + 1) * size) // target)
        matrix[row, start:stop] = 1.0 / (stop - start)
    return matrix


def average_pool_to(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Average-pool the axes between the batch and the channels down to `sizes`.

    Windows are those of adaptive average pooling: equal where the sizes divide, overlapping by one otherwise.

    Example:
      >>> x = np.arange(6.0).reshape(1, 6, 1)
      >>> ops.convert_to_numpy(average_pool_to(x, (3,)))[0, :, 0].tolist()
      [0.5, 2.5, 4.5]
      >>> ops.convert_to_numpy(average_pool_to(x, (4,)))[0, :, 0].tolist()
      [0.5, 1.5, 3.5, 4.5]
    """
    x = ops.convert_to_tensor(x)
    for axis, target in enumerate(sizes, start=1):
        size = x.shape[axis]
        if size == target:
            continue
        matrix = ops.convert_to_tensor(_pooling_matrix(size, target), dtype=x.dtype)
        x = ops.moveaxis(ops.tensordot(x, matrix, axes=[[axis], [1]]), -1, axis)
    return x


def match_spatial(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool, axis by axis, whichever of two channels-last maps is larger to the smaller.

    Raises:
      ShapeMismatchError: the numbers of axes differ, or sizes differ and one of them is not known.

    Example:
      >>> a, b = match_spatial(np.ones((1, 8, 8, 3)), np.ones((1, 4, 4, 5)))
      >>> tuple(a.shape), tuple(b.shape)
      ((1, 4, 4, 3), (1, 4, 4, 5))
    """
    if len(teacher.shape) != len(student.shape):
        raise ShapeMismatchError(
            "The features of teacher and student have different numbers of axes: the teacher's shape is "
            f"{tuple(teacher.shape)}, the student's {tuple(student.shape)}."
        )
    pairs = list(zip(tuple(teacher.shape)[1:-1], tuple(student.shape)[1:-1]))
    if all(a == b for a, b in pairs):
        return teacher, student
    if any(a is None or b is None for a, b in pairs):
        raise ShapeMismatchError(
            "Features of sizes that are not known in advance can only be compared if nothing is to be pooled: "
            f"the teacher's shape is {tuple(teacher.shape)}, the student's {tuple(student.shape)}. "
            "Give both models a fixed input size."
        )
    sizes = tuple(min(a, b) for a, b in pairs)
    return average_pool_to(teacher, sizes), average_pool_to(student, sizes)


def softmax_logits(outputs: Tensor, from_logits: bool) -> Tensor:
    """`outputs` if they are logits, else their logarithm (a softmax's logits up to a constant)."""
    outputs = to_float(outputs)
    return outputs if from_logits else ops.log(ops.maximum(outputs, TINY))


def sigmoid_logits(outputs: Tensor, from_logits: bool) -> Tensor:
    """`outputs` if they are logits, else log(p) − log(1 − p)."""
    outputs = to_float(outputs)
    if from_logits:
        return outputs
    return ops.log(ops.maximum(outputs, TINY)) - ops.log(ops.maximum(1.0 - outputs, 1e-7))
