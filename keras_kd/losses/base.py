"""The contract of a distillation loss, and what the classes of this package share."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_kd.schedules import Schedule, is_number_or_schedule

Tensor = Any
Shape = tuple[int | None, ...]


class DistillationLoss(keras.distillation.DistillationLoss):
    """Base class of all distillation losses; a `keras.distillation.DistillationLoss` works in its place.

    Override `compute_loss(teacher_outputs, student_outputs, **kwargs)`. It may return one value per example,
    shape [batch], which the Distiller weights by `sample_weight` and averages, or a scalar (then set
    `per_example = False`). It is given by keyword, as far as its signature takes them:

    - `labels`: the batch's labels, or None;
    - `from_logits`: (teacher's, student's), True where the outputs are logits, False for probabilities;
    - `mask`: the Keras mask of the student's output (or the teacher's), or None;
    - `step`, `total_steps`: what schedules are evaluated at;
    - `adapter`: the trainable layer that `create_adapter` made, or None.

    Attributes:
      name: what the loss is called in the training log; None is the class's name in snake case.
      teacher_layer_name: the tapped layer of the teacher, None for the outputs (`teacher_layer_names` for several).
      student_layer_name: the tapped layer of the student, None for the outputs.
      output_name: in a model of several outputs, the one that the loss is for; None for all of them.
      per_example: False where the loss compares examples with each other and returns a scalar. Under a
        distribution strategy these are the examples of one replica, not of the whole batch.
      needs_labels: True where `labels` cannot be None.
      output_kind: "logits" where outputs are classes, "binary" for independent labels, "values" for anything
        else (no question of from_logits arises).
    """

    name: str | None = None
    teacher_layer_name: str | None = None
    student_layer_name: str | None = None
    output_name: str | None = None
    per_example: bool = True
    needs_labels: bool = False
    output_kind: str = "values"

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch: float [batch], or a scalar where `per_example` is False."""
        raise NotImplementedError(f"{type(self).__name__} does not override compute_loss.")

    def create_adapter(self, teacher_shape: Any, student_shape: Any) -> keras.layers.Layer | None:
        """The trainable layer this loss needs for features of these shapes, built; None for none."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, ready for JSON."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DistillationLoss":
        """The loss that `get_config` described."""
        return cls(**{key: unpack(value) for key, value in config.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


def snake_case(name: str) -> str:
    """Class name to log name.

    Example:
      >>> snake_case("LogitsDistillation")
      'logits_distillation'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def loss_name(loss: Any) -> str:
    """What a loss (ours, Keras's or a user's) is called in the log."""
    name = getattr(loss, "name", None)
    return name if isinstance(name, str) and name else snake_case(type(loss).__name__)


def tap_names(loss: Any, side: str) -> tuple[str, ...]:
    """The layers that a loss taps in the "teacher" or the "student"; empty where it uses the outputs."""
    several = getattr(loss, f"{side}_layer_names", None)
    if several:
        return tuple(several)
    one = getattr(loss, f"{side}_layer_name", None)
    return (one,) if one else ()


def pack(value: Any) -> Any:
    """A constructor argument in the form that JSON can hold."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, tuple):
        return [pack(item) for item in value]
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    return keras.saving.serialize_keras_object(value)


def unpack(value: Any) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            return keras.saving.deserialize_keras_object(value)
        return {key: unpack(item) for key, item in value.items()}
    return value


def check_weight(value: Any, name: str) -> Any:
    """`value` if it is a number or a schedule; else `ValueError`."""
    if not is_number_or_schedule(value):
        raise ValueError(f"{name} must be a number or a keras_kd.schedules.Schedule, got {value!r}.")
    return value


def check_positive(value: Any, name: str) -> Any:
    """`value` if it is a positive number or a schedule; else `ValueError`."""
    check_weight(value, name)
    if not isinstance(value, Schedule) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")
    return value


def check_layer_name(value: Any, name: str) -> str:
    """`value` if it names a layer; else `ValueError`."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be the name of a layer, got {value!r}.")
    return value


def check_from_logits(value: Any) -> Any:
    """`value` if it is "auto", a bool, or a (teacher's, student's) pair of these; else `ValueError`."""
    sides = value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) == 2 and all(side == "auto" or isinstance(side, bool) for side in sides):
        return tuple(value) if isinstance(value, (tuple, list)) else value
    raise ValueError(
        f"from_logits must be 'auto', True or False, or a pair of these for teacher and student, got {value!r}."
    )


def resolve_loss(loss: Any) -> Any:
    """Loss names to Keras's functions, through any nesting; None stays."""

    def one(item: Any) -> Any:
        if not isinstance(item, str):
            if item is not None and not callable(item):
                raise ValueError(
                    f"loss must be a name, a callable, a keras.losses.Loss or None, got {item!r}."
                )
            return item
        try:
            return keras.losses.get(item)
        except ValueError as error:
            raise ValueError(f"Unknown loss function: {item!r}.") from error

    resolved = map_nested(one, loss)
    if all(item is None for item in flatten_nested(resolved)):
        raise ValueError("At least one loss must be non-None.")
    return resolved


def map_nested(function: Callable[[Any], Any], structure: Any) -> Any:
    """`function` over the leaves of lists, tuples and dicts; None is a leaf."""
    if isinstance(structure, Mapping):
        return {key: map_nested(function, item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return type(structure)(map_nested(function, item) for item in structure)
    return function(structure)


def flatten_nested(structure: Any) -> list[Any]:
    """Leaves in Keras's order (dicts by sorted key); None is a leaf."""
    if isinstance(structure, Mapping):
        return [leaf for key in sorted(structure) for leaf in flatten_nested(structure[key])]
    if isinstance(structure, (list, tuple)):
        return [leaf for item in structure for leaf in flatten_nested(item)]
    return [structure]


def check_loss_structure(loss: Any, outputs: Any, name: str) -> None:
    """Raise `ValueError` unless a nested `loss` has the outputs' structure."""
    try:
        keras.tree.assert_same_structure(loss, outputs)
    except (ValueError, TypeError) as error:
        described = keras.tree.map_structure(lambda leaf: getattr(leaf, "shape", leaf), outputs)
        raise ValueError(
            f"{name}: the structure of its loss, {loss!r}, is not the structure of the outputs, {described}. Give a "
            "loss (or None) for each output in the same nesting, or name one output with output_name=."
        ) from error


def elementwise_loss(loss: Any, teacher: Tensor, student: Tensor) -> Tensor:
    """A Keras loss before its reduction: instances are asked for `call`, so that weights apply per example."""
    if isinstance(loss, keras.losses.Loss):
        return loss.call(teacher, student)
    return loss(teacher, student)
