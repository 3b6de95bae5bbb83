"""Distillation losses on the outputs of two networks: thin serialisable classes over `losses.logits`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_kd.losses import logits as functions
from keras_kd.losses.base import (
    DistillationLoss,
    check_from_logits,
    check_loss_structure,
    check_positive,
    check_weight,
    elementwise_loss,
    flatten_nested,
    pack,
    resolve_loss,
)
from keras_kd.losses.features import hint_distance
from keras_kd.losses.tensors import check_same_shape, per_example, sigmoid_logits, softmax_logits, to_float
from keras_kd.schedules import value_at

Tensor = Any


def _sides(from_logits: Any) -> tuple[Any, Any]:
    """(teacher's, student's); outside of a Distiller, which resolves "auto", outputs are taken for logits."""
    teacher, student = from_logits if isinstance(from_logits, (tuple, list)) else (from_logits, from_logits)
    return (True if teacher == "auto" else teacher), (True if student == "auto" else student)


def _item(values: Any, index: int) -> Any:
    """The value for output `index`: values may be one for all outputs or one for each."""
    return values[index] if isinstance(values, (list, tuple)) else values


class LogitsLoss(DistillationLoss):
    """Base of the losses on class or label logits: takes logits or probabilities, and knows which.

    Args:
      from_logits: what the outputs are. "auto" (default): the Distiller looks at the last activation, or at one
        batch before training; True: logits; False: probabilities; a pair for teacher and student apart.
      output_name: in a model of several outputs, the one this loss is for.
      name: in the log; None is the class's name in snake case.
    """

    output_kind = "logits"
    _numbers: tuple[str, ...] = ()  # the constructor's numbers, each of which may be a schedule

    def __init__(self, *, from_logits: Any = "auto", output_name: str | None = None, name: str | None = None):
        self.from_logits = check_from_logits(from_logits)
        self.output_name = output_name
        self.name = name

    def _logits(self, teacher: Tensor, student: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        teacher_flag, student_flag = _sides(kwargs.get("from_logits", self.from_logits))
        convert = sigmoid_logits if self.output_kind == "binary" else softmax_logits
        return convert(teacher, _item(teacher_flag, 0)), convert(student, _item(student_flag, 0))

    def _value(self, value: Any, kwargs: dict[str, Any]) -> Any:
        return value_at(value, kwargs.get("step"), kwargs.get("total_steps"))

    def _apply(
        self, function: Callable[..., Tensor], teacher: Any, student: Any, kwargs: dict[str, Any], **more: Any
    ) -> Tensor:
        """`function` of the two logits, the numbers at this step and the mask."""
        numbers = {name: self._value(getattr(self, name), kwargs) for name in self._numbers}
        logits = self._logits(self._single(teacher, "teacher"), self._single(student, "student"), kwargs)
        return function(*logits, **numbers, **more, mask=_item(kwargs.get("mask"), 0))

    def get_config(self) -> dict[str, Any]:
        return {
            **{name: pack(getattr(self, name)) for name in self._numbers},
            "from_logits": pack(self.from_logits),
            "output_name": self.output_name,
            "name": self.name,
        }

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raise `ValueError` unless both outputs have one structure and the same shapes."""
        super().validate_outputs(teacher_outputs, student_outputs)
        pairs = zip(keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs))
        for teacher, student in pairs:
            check_same_shape(teacher, student, "outputs")

    def _single(self, outputs: Any, whose: str) -> Tensor:
        if isinstance(outputs, (list, tuple, dict)):
            raise ValueError(
                f"{type(self).__name__} is for one output, and the {whose} has {len(outputs)}. "
                "Name the one that is meant with output_name=."
            )
        return outputs


def _labels(loss: DistillationLoss, labels: Any) -> Any:
    if labels is None:
        raise ValueError(f"{type(loss).__name__} needs labels, and this batch has none.")
    return labels


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitsDistillation(LogitsLoss):
    """Soft targets: the student matches the teacher's probabilities at a temperature.

    Args:
      temperature: T > 0, a number or a schedule; the same for teacher and student.
      loss: "kl_divergence" (default) or "categorical_crossentropy", by name or as an instance, are computed from
        the soft targets and scaled by T²; any other loss is applied to the logits divided by T. For several
        outputs, the same nesting as the outputs with None where nothing is taught.
      standardize: z-score the logits first (arXiv:2403.01427).
      from_logits: see `LogitsLoss`.
      output_name: see `LogitsLoss`.
      name: in the log.

    Raises:
      ValueError: the temperature is not positive, every loss is None, or a loss is unknown.

    Example:
      >>> import numpy as np
      >>> loss = LogitsDistillation(temperature=2.0)
      >>> ops.convert_to_numpy(loss.compute_loss(np.array([[2.0, 0.0]]), np.zeros((1, 2)))).round(4).tolist()
      [0.4438]

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """

    _numbers = ("temperature",)

    def __init__(
        self,
        temperature: Any = 3.0,
        loss: Any = "kl_divergence",
        *,
        standardize: bool = False,
        from_logits: Any = "auto",
        output_name: str | None = None,
        name: str | None = None,
    ):
        super().__init__(from_logits=from_logits, output_name=output_name, name=name)
        self._loss_argument = loss
        self.loss = resolve_loss(loss)
        self.temperature = check_positive(temperature, "temperature")
        self.standardize = bool(standardize)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raise `ValueError` unless outputs and losses have one structure and the outputs the same shapes."""
        keras.tree.assert_same_structure(teacher_outputs, student_outputs)
        check_loss_structure(self.loss, teacher_outputs, "LogitsDistillation")
        triples = zip(
            flatten_nested(self.loss),
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
        )
        for loss, teacher, student in triples:
            if loss is not None:
                check_same_shape(teacher, student, "outputs")

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]: the sum over the outputs that have a loss."""
        temperature = self._value(self.temperature, kwargs)
        teacher_flags, student_flags = _sides(kwargs.get("from_logits", self.from_logits))
        total = None
        triples = zip(
            flatten_nested(self.loss),
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
        )
        for index, (loss, teacher, student) in enumerate(triples):
            if loss is None:
                continue
            teacher = softmax_logits(teacher, _item(teacher_flags, index))
            student = softmax_logits(student, _item(student_flags, index))
            value = self._one(loss, teacher, student, temperature, _item(kwargs.get("mask"), index))
            total = value if total is None else total + value
        return total

    def _one(
        self, loss: Any, teacher: Tensor, student: Tensor, temperature: Any, mask: Tensor | None
    ) -> Tensor:
        if isinstance(loss, keras.losses.KLDivergence) or loss is keras.losses.kl_divergence:
            return functions.soft_target_kl(
                teacher, student, temperature=temperature, standardize=self.standardize, mask=mask
            )
        teacher = ops.stop_gradient(teacher)
        if self.standardize:
            teacher, student = functions.standardize_logits(teacher), functions.standardize_logits(student)
        if (
            isinstance(loss, keras.losses.CategoricalCrossentropy)
            or loss is keras.losses.categorical_crossentropy
        ):
            smoothing = (
                loss.get_config().get("label_smoothing", 0.0) if isinstance(loss, keras.losses.Loss) else 0.0
            )
            return functions.soft_target_crossentropy(
                teacher, student, temperature=temperature, label_smoothing=smoothing, mask=mask
            )
        values = ops.convert_to_tensor(elementwise_loss(loss, teacher / temperature, student / temperature))
        return per_example(values, mask if len(values.shape) > 1 else None)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "loss": pack(self._loss_argument),
            "standardize": self.standardize,
        }


@keras.saving.register_keras_serializable(package="keras_kd")
class DecoupledDistillation(LogitsLoss):
    """Soft targets split into the labelled class against the rest, and the rest among themselves.

    Args:
      alpha: weight of the labelled class against the rest; a number or a schedule.
      beta: weight of the other classes among themselves; a number or a schedule.
      temperature: T > 0, a number or a schedule.
      from_logits: see `LogitsLoss`.
      output_name: see `LogitsLoss`.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> loss = DecoupledDistillation(temperature=1.0)
      >>> teacher, student = np.array([[2.0, 1.0, 0.0]]), np.zeros((1, 3))
      >>> ops.convert_to_numpy(loss.compute_loss(teacher, student, labels=np.array([0]))).round(4).tolist()
      [1.1166]

    Source: Zhao et al. 2022, arXiv:2203.08679.
    """

    needs_labels = True
    _numbers = ("alpha", "beta", "temperature")

    def __init__(self, alpha: Any = 1.0, beta: Any = 8.0, temperature: Any = 4.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.alpha = check_weight(alpha, "alpha")
        self.beta = check_weight(beta, "beta")
        self.temperature = check_positive(temperature, "temperature")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, *, labels: Any = None, **kwargs: Any
    ) -> Tensor:
        """Float [batch]."""
        labels = _labels(self, labels)
        return self._apply(functions.decoupled_kl, teacher_outputs, student_outputs, kwargs, labels=labels)


@keras.saving.register_keras_serializable(package="keras_kd")
class NormalizedDistillation(LogitsLoss):
    """The labelled class weighted by the teacher's belief in it, and normalized soft targets for the others.

    Args:
      gamma: weight of the other classes; a number or a schedule.
      temperature: T > 0 of the other classes, a number or a schedule.
      from_logits: see `LogitsLoss`.
      output_name: see `LogitsLoss`.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[2.0, 1.0, 0.0]]), np.zeros((1, 3))
      >>> loss = NormalizedDistillation().compute_loss(teacher, student, labels=np.array([0]))
      >>> ops.convert_to_numpy(loss).round(4).tolist()
      [1.7706]

    Source: Yang et al. 2023, arXiv:2303.13005.
    """

    needs_labels = True
    _numbers = ("gamma", "temperature")

    def __init__(self, gamma: Any = 1.5, temperature: Any = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.gamma = check_weight(gamma, "gamma")
        self.temperature = check_positive(temperature, "temperature")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, *, labels: Any = None, **kwargs: Any
    ) -> Tensor:
        """Float [batch]."""
        labels = _labels(self, labels)
        return self._apply(functions.normalized_kd, teacher_outputs, student_outputs, kwargs, labels=labels)


@keras.saving.register_keras_serializable(package="keras_kd")
class CorrelationDistillation(LogitsLoss):
    """The student keeps the teacher's order of preferences, over classes and over examples.

    Args:
      beta: weight of the correlation over classes; a number or a schedule.
      gamma: weight of the correlation over the examples of the batch; a number or a schedule.
      temperature: T > 0, a number or a schedule.
      from_logits: see `LogitsLoss`.
      output_name: see `LogitsLoss`.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> teacher = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]])
      >>> abs(round(float(CorrelationDistillation().compute_loss(teacher, teacher)), 4))
      0.0

    Source: Huang et al. 2022, arXiv:2205.10536.
    """

    per_example = False
    _numbers = ("beta", "gamma", "temperature")

    def __init__(self, beta: Any = 1.0, gamma: Any = 1.0, temperature: Any = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.beta = check_weight(beta, "beta")
        self.gamma = check_weight(gamma, "gamma")
        self.temperature = check_positive(temperature, "temperature")

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float scalar."""
        return self._apply(functions.correlation_distance, teacher_outputs, student_outputs, kwargs)


@keras.saving.register_keras_serializable(package="keras_kd")
class BinaryLogitsDistillation(LogitsLoss):
    """Soft targets for labels that do not exclude each other: a sigmoid for each.

    Args:
      temperature: T > 0, a number or a schedule.
      from_logits: see `LogitsLoss`.
      output_name: see `LogitsLoss`.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> loss = BinaryLogitsDistillation()
      >>> ops.convert_to_numpy(loss.compute_loss(np.array([[2.0, -2.0]]), np.array([[0.0, 1.0]]))).round(4).tolist()
      [0.9436]

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, with a sigmoid for each label.
    """

    output_kind = "binary"
    _numbers = ("temperature",)

    def __init__(self, temperature: Any = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = check_positive(temperature, "temperature")

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]."""
        return self._apply(functions.soft_target_bce, teacher_outputs, student_outputs, kwargs)


@keras.saving.register_keras_serializable(package="keras_kd")
class RegressionDistillation(DistillationLoss):
    """The student's values follow the teacher's values, for outputs that are numbers and not classes.

    Args:
      loss: "mse" (default), another Keras loss by name, or an instance; applied to each value.
      output_name: in a model of several outputs, the one this loss is for.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> loss = RegressionDistillation()
      >>> ops.convert_to_numpy(loss.compute_loss(np.array([[1.0], [2.0]]), np.array([[1.0], [5.0]]))).tolist()
      [0.0, 9.0]

    Source: `losses.hint_distance`.
    """

    def __init__(self, loss: Any = "mse", *, output_name: str | None = None, name: str | None = None):
        self._loss_argument = loss
        self.loss = resolve_loss(loss)
        self.output_name = output_name
        self.name = name

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raise `ValueError` unless both outputs have one structure and the same shapes."""
        super().validate_outputs(teacher_outputs, student_outputs)
        check_loss_structure(self.loss, teacher_outputs, "RegressionDistillation")
        for teacher, student in zip(keras.tree.flatten(teacher_outputs), keras.tree.flatten(student_outputs)):
            check_same_shape(teacher, student, "outputs")

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]."""
        total = None
        triples = zip(
            flatten_nested(self.loss),
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
        )
        for index, (loss, teacher, student) in enumerate(triples):
            if loss is None:
                continue
            value = distance(loss, teacher, student, _item(kwargs.get("mask"), index))
            total = value if total is None else total + value
        return total

    def get_config(self) -> dict[str, Any]:
        return {"loss": pack(self._loss_argument), "output_name": self.output_name, "name": self.name}


def distance(loss: Any, teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> Tensor:
    """`loss` between two tensors of one shape, per example; the mean squared error by `hint_distance`."""
    if loss is keras.losses.mean_squared_error or isinstance(loss, keras.losses.MeanSquaredError):
        return hint_distance(teacher, student, mask=mask)
    check_same_shape(teacher, student, "features")
    values = ops.convert_to_tensor(
        elementwise_loss(loss, ops.stop_gradient(to_float(teacher)), to_float(student))
    )
    return per_example(values, mask if len(values.shape) > 1 else None)
