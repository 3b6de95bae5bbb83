"""A teacher that is the moving average of its own student."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_kd")
class MovingAverageTeacher(keras.Model):
    """Self-distillation: the teacher's weights follow the student's, one small step after each optimizer step.

    teacher ← momentum · teacher + (1 − momentum) · student, for weights and for BatchNormalization's statistics.

    Args:
      student: the model that the Distiller trains; a copy of it, weights included, is the first teacher. Give the
        same object to the Distiller.
      momentum: in [0, 1); 0.999 averages over about the last thousand steps.
      name: of the model.

    Raises:
      ValueError: the momentum is outside [0, 1), the student is not built, or it cannot be copied.

    Example:
      >>> import numpy as np
      >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
      >>> student.set_weights([np.array([[1.0], [1.0]])])
      >>> teacher = MovingAverageTeacher(student, momentum=0.75)
      >>> student.set_weights([np.array([[5.0], [1.0]])])
      >>> teacher.follow(student)
      >>> teacher.get_weights()[0].tolist()
      [[2.0], [1.0]]

    Source: Tarvainen and Valpola 2017, arXiv:1703.01780, section 2.
    """

    def __init__(
        self,
        student: keras.Model,
        momentum: float = 0.999,
        *,
        name: str = "moving_average_teacher",
        _copy: bool = True,
        **kwargs: Any,
    ):
        if not isinstance(student, keras.Model):
            raise ValueError(f"student must be a keras.Model, got {type(student).__name__}.")
        if not isinstance(momentum, (int, float)) or not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum!r}.")
        if _copy and not student.built:
            raise ValueError(
                "student has no weights to average yet: begin it with a keras.Input, or call it on a batch."
            )
        super().__init__(name=name, dtype=student.dtype_policy, **kwargs)
        self.momentum = float(momentum)
        self.model = _copy_of(student) if _copy else student
        self.trainable = False
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The averaged model's outputs, in inference mode."""
        return self.model(inputs, training=False)

    def follow(self, student: keras.Model) -> None:
        """Move one step towards the student; the Distiller does it after each optimizer step."""
        for average, weight in zip(_floats(self.model), _floats(student)):
            average.assign(
                self.momentum * average + (1.0 - self.momentum) * keras.ops.cast(weight, average.dtype)
            )

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.model),
            "momentum": self.momentum,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "MovingAverageTeacher":
        """The teacher that `get_config` described."""
        student = keras.saving.deserialize_keras_object(config["student"], custom_objects=custom_objects)
        return cls(student, config["momentum"], name=config["name"], _copy=False)


def _floats(model: keras.Model) -> list[Any]:
    """The weights that can be averaged; the counters of random seeds cannot."""
    return [weight for weight in model.weights if "float" in str(weight.dtype)]


def _copy_of(student: keras.Model) -> keras.Model:
    serialized = keras.saving.serialize_keras_object(student)
    try:
        copy = keras.saving.deserialize_keras_object(
            serialized, custom_objects={type(student).__name__: type(student)}, safe_mode=False
        )
        copy.set_weights(student.get_weights())
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"The student {student.name!r} cannot be copied from its configuration ({error}). A subclassed model needs "
            "get_config, and has to create its weights when it is built from it."
        ) from error
    return copy
