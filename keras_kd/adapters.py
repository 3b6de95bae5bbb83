"""Trainable parts that stand between a student's feature and a teacher's.

They belong to the Distiller: its optimizer trains them, its file holds them, and the student never sees
them. They compute in float32 whatever the policy of the two networks.
"""

import math
from typing import Any

import keras
from keras import ops

Tensor = Any
Shape = tuple[int | None, ...]


def _width(shape: Shape, whose: str) -> int:
    if not shape or shape[-1] is None:
        raise ValueError(
            f"An adapter needs to know the {whose}'s number of channels, and its shape is {shape}."
        )
    return int(shape[-1])


class Projection(keras.layers.Layer):
    """A 1x1 convolution (a Dense layer on the last axis) from the student's width to the teacher's.

    Args:
      width: channels of the teacher's feature.
      name: of the layer.

    Example:
      >>> import numpy as np
      >>> tuple(Projection(5)(np.ones((2, 4, 4, 3))).shape)
      (2, 4, 4, 5)

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2 (the regressor, with a 1x1 kernel).
    """

    def __init__(self, width: int, *, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.width = width
        self.dense = keras.layers.Dense(width, dtype="float32", name="projection")

    def build(self, input_shape: Shape) -> None:
        self.dense.build(input_shape)

    def call(self, student_features: Tensor) -> Tensor:
        return self.dense(student_features)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.width)


class VariationalHead(keras.layers.Layer):
    """The mean and the spread that a student's feature predicts for the teacher's.

    Three 1x1 convolutions with ReLU between them give the mean; the spread is one number per channel.

    Args:
      width: channels of the teacher's feature.
      initial_variance: variance that every channel starts from.
      name: of the layer.

    Example:
      >>> import numpy as np
      >>> mean, log_scale = VariationalHead(5, initial_variance=5.0)(np.ones((2, 4, 4, 3)))
      >>> tuple(mean.shape), tuple(log_scale.shape)
      ((2, 4, 4, 5), (5,))

    Source: Ahn et al. 2019, arXiv:1904.05835, section 3.2.
    """

    #: Least variance; the same number stands in `losses.gaussian_nll`.
    epsilon = 1e-5

    def __init__(self, width: int, *, initial_variance: float = 5.0, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        if not initial_variance > self.epsilon:
            raise ValueError(
                f"initial_variance must be greater than {self.epsilon}, got {initial_variance!r}."
            )
        self.width = width
        self.initial_variance = initial_variance
        self.hidden_1 = keras.layers.Dense(width, activation="relu", dtype="float32", name="hidden_1")
        self.hidden_2 = keras.layers.Dense(width, activation="relu", dtype="float32", name="hidden_2")
        self.mean = keras.layers.Dense(width, dtype="float32", name="mean")

    def build(self, input_shape: Shape) -> None:
        hidden_shape = (*input_shape[:-1], self.width)
        self.hidden_1.build(input_shape)
        self.hidden_2.build(hidden_shape)
        self.mean.build(hidden_shape)
        # The inverse of softplus, so that softplus(log_scale) + epsilon is initial_variance.
        start = math.log(math.expm1(self.initial_variance - self.epsilon))
        self.log_scale = self.add_weight(
            shape=(self.width,), initializer=keras.initializers.Constant(start), name="log_scale"
        )

    def call(self, student_features: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(self.hidden_2(self.hidden_1(student_features)))
        return mean, ops.convert_to_tensor(self.log_scale)


def projection_if_needed(teacher_shape: Shape, student_shape: Shape, *, name: str) -> Projection | None:
    """A built `Projection` where the widths differ, else None."""
    teacher_width, student_width = _width(teacher_shape, "teacher"), _width(student_shape, "student")
    if teacher_width == student_width:
        return None
    layer = Projection(teacher_width, name=name)
    layer.build((None, *student_shape[1:]))
    layer.built = True
    return layer


def variational_head(
    teacher_shape: Shape, student_shape: Shape, *, initial_variance: float, name: str
) -> VariationalHead:
    """A built `VariationalHead` from the student's width to the teacher's."""
    _width(student_shape, "student")
    layer = VariationalHead(_width(teacher_shape, "teacher"), initial_variance=initial_variance, name=name)
    layer.build((None, *student_shape[1:]))
    layer.built = True
    return layer
