"""Distillation losses and their weights as the user gives them: one, a list, or a dict of names."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_kd.errors import nearest, raise_all
from keras_kd.schedules import is_number_or_schedule


def listed_losses(losses: Any) -> tuple[list[Any], list[str | None]]:
    """The losses as a list, and the names that a dict gave them (None where there are none)."""
    if losses is None:
        raise ValueError(
            "'distillation_losses' cannot be None. Give one distillation loss (for example "
            "keras_kd.losses.LogitsDistillation()), or a list of them."
        )
    names: list[str | None]
    if isinstance(losses, Mapping):
        names, found = list(losses), list(losses.values())
    else:
        found = list(losses) if isinstance(losses, (list, tuple)) else [losses]
        names = [None] * len(found)
    problems = [] if found else ["the list is empty."]
    for index, loss in enumerate(found):
        if not callable(getattr(loss, "compute_loss", None)):
            problems.append(
                f"number {index} is {loss!r}, which has no compute_loss; expected a keras_kd.losses.DistillationLoss."
            )
    raise_all(problems, subject="'distillation_losses' is not a list of distillation losses")
    return found, names


def listed_weights(weights: Any, losses: Sequence[Any], names: Sequence[str | None]) -> list[Any]:
    """A weight for each loss, from None, a number, a list, or a dict by name."""
    if weights is None:
        return [1.0] * len(losses)
    if isinstance(weights, Mapping):
        unknown = [
            f"there is no loss {name!r}.{nearest(name, filter(None, names))}"
            for name in weights
            if name not in names
        ]
        raise_all(unknown, subject="'distillation_loss_weights' does not fit")
        weights = [weights.get(name, 1.0) for name in names]
    elif is_number_or_schedule(weights):
        weights = [weights]
    if len(weights) != len(losses):
        raise ValueError(
            f"Number of distillation_loss_weights ({len(weights)}) must match number of distillation_losses "
            f"({len(losses)})."
        )
    wrong = [
        f"number {index} is {weight!r}; expected a number or a keras_kd.schedules.Schedule."
        for index, weight in enumerate(weights)
        if not is_number_or_schedule(weight)
    ]
    raise_all(wrong, subject="'distillation_loss_weights' does not fit")
    return list(weights)


#: What the training log holds already.
RESERVED_NAMES = ("loss", "total_loss", "student_loss", "distillation_loss")


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names with `_1`, `_2` ... on repetitions, in order."""
    raise_all(
        [f"{name!r} is an entry of the log already." for name in names if name in RESERVED_NAMES],
        subject="A distillation loss needs another name",
    )
    counts: dict[str, int] = {}
    result = []
    for name in names:
        count = counts.get(name, 0)
        counts[name] = count + 1
        result.append(name if count == 0 else f"{name}_{count}")
    return result
