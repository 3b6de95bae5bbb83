"""Distillation weights that find themselves, from the sizes of the gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd.schedules import Schedule

Scalar = Any


@keras.saving.register_keras_serializable(package="keras_kd")
class GradientBalanced(Schedule):
    """A weight that keeps a distillation loss's gradient at a set size beside the label loss's.

    weight = ratio * ||gradient of the label loss|| / ||gradient of this loss||, both over all trainable weights of
    the student, as a moving geometric mean over the steps so far. It replaces the search for
    `distillation_loss_weights`; `student_loss_weight` acts on top of it as always.

    Every training step costs one more backward pass for the label loss and one for each loss balanced so. The
    measurements are not saved: a reloaded Distiller begins them anew. Give each loss an instance of its own.

    Args:
      ratio: size of this loss's gradient over the label loss's, greater than 0.
      momentum: how much of the mean stays at each step, in [0, 1); 0 takes the last step alone.
      initial: the weight of the very first step, before anything is measured.

    Raises:
      ValueError: an argument out of its range; from the Distiller where there is no label loss to measure against.

    Example:
      >>> weight = GradientBalanced(ratio=0.5, momentum=0.0)
      >>> float(weight(step=0))
      1.0
      >>> weight.update(label_norm=4.0, own_norm=0.2)
      >>> round(float(weight(step=1)), 4)
      10.0

    Source: the balance of gradient norms of Chen et al. 2018 (GradNorm), arXiv:1711.02257, solved directly
    instead of descended to, as between reconstruction and adversary in Esser et al. 2021, arXiv:2012.09841, equation 7.
    """

    def __init__(self, ratio: float = 1.0, momentum: float = 0.9, initial: float = 1.0):
        for name, value, fits in (
            ("ratio", ratio, lambda number: number > 0),
            ("momentum", momentum, lambda number: 0 <= number < 1),
            ("initial", initial, lambda number: number > 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
                wanted = "a number in [0, 1)" if name == "momentum" else "a number greater than 0"
                raise ValueError(f"{name} must be {wanted}, got {value!r}.")
        self.ratio, self.momentum, self.initial = float(ratio), float(momentum), float(initial)
        self._value = keras.Variable(self.initial, dtype="float32", trainable=False, name="balanced_weight")
        self._measured = keras.Variable(0.0, dtype="float32", trainable=False, name="balanced_steps")

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        return ops.convert_to_tensor(self._value)

    def update(self, label_norm: Scalar, own_norm: Scalar) -> None:
        """Take in the gradient norms of one step; a step in which one of them is zero or not finite changes nothing."""
        label_norm, own_norm = ops.cast(label_norm, "float32"), ops.cast(own_norm, "float32")
        usable = ops.logical_and(label_norm > 0.0, own_norm > 0.0)
        usable = ops.logical_and(usable, ops.isfinite(label_norm + own_norm))
        target = self.ratio * ops.where(usable, label_norm, 1.0) / ops.where(usable, own_norm, 1.0)
        # The first measurement is the mean so far: `initial` is a guess and does not count.
        share = ops.where(ops.convert_to_tensor(self._measured) > 0.0, self.momentum, 0.0)
        mean = ops.exp(share * ops.log(ops.convert_to_tensor(self._value)) + (1.0 - share) * ops.log(target))
        self._value.assign(ops.where(usable, mean, ops.convert_to_tensor(self._value)))
        self._measured.assign_add(ops.cast(usable, "float32"))

    def get_config(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "momentum": self.momentum, "initial": self.initial}


# Compression trains by a step of its own, which measures no gradients.
BALANCED_REFUSAL = (
    "distillation_loss_weights holds a GradientBalanced, which compression cannot take: its weight is measured in "
    "the Distiller's training step. Give numbers or other schedules."
)


def holds_balanced(weights: Any) -> bool:
    """Whether weights as the user gives them (one, a list, a dict, None) hold a `GradientBalanced`."""
    return any(isinstance(weight, GradientBalanced) for weight in keras.tree.flatten(weights))


def balanced_weights(
    names: Sequence[str], weights: Sequence[Any], student_loss_weight: Any
) -> dict[str, GradientBalanced]:
    """The balanced ones among the weights of distillation losses, by the names of their losses.

    Raises:
      ValueError: there is no label loss to measure against, or two losses share an instance.
    """
    found = {name: weight for name, weight in zip(names, weights) if isinstance(weight, GradientBalanced)}
    if found and not isinstance(student_loss_weight, Schedule) and student_loss_weight == 0:
        raise ValueError(
            "GradientBalanced measures against the label loss, and with student_loss_weight=0 there is none. Give "
            "numbers as distillation_loss_weights, or a student_loss_weight greater than 0."
        )
    if len({id(weight) for weight in found.values()}) < len(found):
        raise ValueError(
            f"The losses {', '.join(map(repr, found))} share a GradientBalanced: give each one its own."
        )
    return found


def rebalance(
    tape: tf.GradientTape,
    balanced: Mapping[str, GradientBalanced],
    losses: Mapping[str, Any],
    variables: Sequence[Any],
) -> None:
    """Measure the gradients of one step and update the weights for the next.

    Args:
      tape: persistent, having recorded the losses.
      balanced: of `balanced_weights`.
      losses: "student_loss" and the balanced losses, unweighted scalars.
      variables: the student's trainable ones.
    """
    sources = [variable.value if isinstance(variable, keras.Variable) else variable for variable in variables]

    def norm(loss: Any) -> Any:
        gradients = tape.gradient(loss, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return tf.linalg.global_norm([tf.cast(gradient, tf.float32) for gradient in gradients])

    label_norm = norm(losses["student_loss"])
    for name, weight in balanced.items():
        weight.update(label_norm, norm(losses[name]))
