"""When to prune: the steps of a schedule, from the real length of a run."""

from __future__ import annotations

from dataclasses import dataclass

# Enough mask updates for a smooth ramp; more would cost time (each one sorts every kernel).
_MOST_UPDATES = 50


@dataclass(frozen=True)
class PruningSteps:
    """Steps, counted from 1, at which masks are renewed: begin, begin + frequency, ..., end.

    Args:
      begin: first step with a mask.
      end: last step at which masks change; the full sparsity is reached here.
      frequency: steps between two updates. ``end - begin`` is a multiple of it, so that the last update
        is never missed.
    """

    begin: int
    end: int
    frequency: int

    @property
    def updates(self) -> int:
        """How many times the masks are renewed."""
        return (self.end - self.begin) // self.frequency + 1

    def sparsity_at(self, step: int, final: float) -> float:
        """Sparsity asked for at a step: cubic from 0 at ``begin`` to ``final`` at ``end``.

        Example:
          >>> steps = PruningSteps(begin=1, end=11, frequency=5)
          >>> [round(steps.sparsity_at(step, 0.8), 6) for step in (0, 1, 6, 11, 99)]
          [0.0, 0.0, 0.7, 0.8, 0.8]

        Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
        """
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return final
        return final * (1 - (1 - (step - self.begin) / (self.end - self.begin)) ** 3)


def pruning_steps(total_steps: int, begin: float, end: float) -> PruningSteps:
    """Turns fractions of a run into steps that a run of this length really reaches.

    Args:
      total_steps: training steps of the run, at least 1.
      begin: fraction of the run before the first mask.
      end: fraction of the run at which the full sparsity is reached.

    Raises:
      ValueError: total_steps is below 1.

    Example:
      >>> pruning_steps(1000, 0.0, 0.6)
      PruningSteps(begin=1, end=595, frequency=11)
      >>> pruning_steps(3, 0.0, 0.6)
      PruningSteps(begin=1, end=2, frequency=1)
      >>> pruning_steps(1, 0.0, 0.6)
      PruningSteps(begin=1, end=1, frequency=1)
    """
    if total_steps < 1:
        raise ValueError(f"A pruning run needs at least one step, got total_steps={total_steps}.")
    first = min(max(1, round(begin * total_steps)), total_steps)
    last = min(max(first, round(end * total_steps)), total_steps)
    frequency = max(1, (last - first) // _MOST_UPDATES)
    # The last update must fall on `end` itself: a schedule that steps over it leaves the sparsity short.
    return PruningSteps(first, first + (last - first) // frequency * frequency, frequency)
