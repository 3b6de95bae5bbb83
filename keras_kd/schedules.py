"""Weights and temperatures that change while a student learns.

Wherever keras_kd takes a weight or a temperature it takes a number or a `Schedule`. A schedule is a
function of the optimizer's step and is evaluated inside the compiled training step, from
`optimizer.iterations`: it costs nothing, needs no callback, and goes on where it was when training resumes.
"""

import math
from typing import Any, cast

import keras
from keras import ops

Scalar = Any  # a Python number or a scalar tensor


class Schedule:
    """A number that depends on the optimizer's step.

    Subclass it, override `__call__` and `get_config`, and register the class with
    `keras.saving.register_keras_serializable` if it is to be saved with a Distiller.
    """

    #: True where the schedule spans the whole fit, whose length has to be known before the first step.
    needs_total_steps: bool = False

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        """Value at `step`.

        Args:
          step: optimizer steps taken so far (0 at the first), a number or a scalar tensor.
          total_steps: length of the fit in optimizer steps; only needed if `needs_total_steps`.

        Returns:
          float32 scalar tensor.
        """
        raise NotImplementedError(f"{type(self).__name__} does not override __call__.")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """The schedule that `get_config` described."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(repr(self))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _steps(value: Any, *, optional: bool) -> int | None:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        expected = "an integer of at least 1" + (" or None (the length of the fit)" if optional else "")
        raise ValueError(f"steps must be {expected}, got {value!r}.")
    return value


@keras.saving.register_keras_serializable(package="keras_kd")
class Constant(Schedule):
    """The same value at every step.

    Example:
      >>> float(Constant(2.0)(step=7))
      2.0
    """

    def __init__(self, value: float):
        self.value = _number("value", value)

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        return ops.convert_to_tensor(self.value, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {"value": self.value}


class _Ramp(Schedule):
    """From `initial` at step 0 to `final` at step `steps` and after it."""

    def __init__(self, initial: float, final: float, steps: int | None = None):
        self.initial = _number("initial", initial)
        self.final = _number("final", final)
        self.steps = _steps(steps, optional=True)
        self.needs_total_steps = self.steps is None

    def _progress(self, step: Scalar, total_steps: Scalar | None) -> Any:
        span = self.steps if self.steps is not None else total_steps
        if span is None:
            raise ValueError(
                f"{self!r} spans the whole fit, and the length of the fit is not known here. "
                "Give it steps=..., or a data set of known length (or steps_per_epoch) to fit."
            )
        fraction = ops.cast(step, "float32") / ops.maximum(ops.cast(span, "float32"), 1.0)
        return ops.clip(fraction, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"initial": self.initial, "final": self.final, "steps": self.steps}


@keras.saving.register_keras_serializable(package="keras_kd")
class Linear(_Ramp):
    """A straight line from `initial` to `final` over `steps` optimizer steps, then `final`.

    Args:
      initial: value at step 0.
      final: value at `steps` and after.
      steps: optimizer steps of the ramp; None is the length of the fit.

    Example:
      >>> [round(float(Linear(4.0, 1.0, steps=3)(step)), 4) for step in range(5)]
      [4.0, 3.0, 2.0, 1.0, 1.0]
    """

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        return self.initial + (self.final - self.initial) * self._progress(step, total_steps)


@keras.saving.register_keras_serializable(package="keras_kd")
class Cosine(_Ramp):
    """Half a cosine from `initial` to `final` over `steps` optimizer steps, then `final`.

    Args:
      initial: value at step 0.
      final: value at `steps` and after.
      steps: optimizer steps of the ramp; None is the length of the fit.

    Example:
      >>> [round(float(Cosine(1.0, 0.0, steps=4)(step)), 4) for step in range(6)]
      [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        falling = 0.5 * (1.0 + ops.cos(math.pi * self._progress(step, total_steps)))
        return self.final + (self.initial - self.final) * falling


@keras.saving.register_keras_serializable(package="keras_kd")
class WarmUp(Schedule):
    """A straight line from 0 to `target` over `steps` optimizer steps, then `target`.

    Example:
      >>> [round(float(WarmUp(1.0, steps=4)(step)), 4) for step in (0, 1, 4, 9)]
      [0.0, 0.25, 1.0, 1.0]
    """

    def __init__(self, target: float, steps: int):
        self.target = _number("target", target)
        self.steps = cast(int, _steps(steps, optional=False))

    def __call__(self, step: Scalar, total_steps: Scalar | None = None) -> Any:
        return self.target * ops.clip(ops.cast(step, "float32") / float(self.steps), 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"target": self.target, "steps": self.steps}


def is_number_or_schedule(value: Any) -> bool:
    """Whether `value` can stand where keras_kd takes a weight or a temperature."""
    return isinstance(value, Schedule) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def value_at(value: "float | Schedule", step: Scalar | None, total_steps: Scalar | None = None) -> Any:
    """The number itself, or the schedule's value at `step` (step 0 where there is no step).

    Example:
      >>> value_at(0.25, step=None)
      0.25
      >>> float(value_at(WarmUp(1.0, steps=2), step=1))
      0.5
    """
    if isinstance(value, Schedule):
        return value(0 if step is None else step, total_steps)
    return value


# Last, because it is a Schedule and needs the class.
from keras_kd.balancing import GradientBalanced  # noqa: E402, F401
