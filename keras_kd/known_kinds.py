"""What is known of two networks' outputs, logits or probabilities, and how it comes to be known."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_kd.output_kinds import OutputKind, probed_kind, seen_kinds
from keras_kd.teachers.ensemble import MemberOutputs
from keras_kd.teachers.targets import PrecomputedTeacher

SIDES = ("teacher", "student")

Kinds = list[OutputKind | None]


class KnownKinds:
    """The kind of every output of a teacher, its members if it is an ensemble, and a student.

    Args:
      losses: the distillation losses, whose `from_logits` may say what the outputs are.

    Attributes:
      of: {"teacher" or "student": the kind of each output}; empty where nothing is known.
      of_members: the same of each member of an ensemble.
    """

    def __init__(self, losses: Sequence[Any]):
        self._losses = losses
        self.of: dict[str, Kinds] = {side: [] for side in SIDES}
        self.of_members: list[Kinds] = []

    def look_at(self, teacher: Any, student: Any) -> None:
        """Take what the last activations of the models show; None is a model that is not at hand."""
        for side, model in (("teacher", teacher), ("student", student)):
            if model is not None:
                self.of[side] = list(model.output_kinds) if is_cache(model) else seen_kinds(model)
        self.of_members = _of_members(teacher)

    @property
    def incomplete(self) -> bool:
        """Whether an output that matters to a loss is of an unknown kind."""
        return any(self._unknown(loss, side) for loss in self._losses for side in SIDES)

    def _unknown(self, loss: Any, side: str) -> bool:
        if getattr(loss, "output_kind", "values") == "values" or _flag(loss, side) != "auto":
            return False
        if side == "teacher" and self.of_members:
            return any(not kinds or None in kinds for kinds in self.of_members)
        return not self.of[side] or None in self.of[side]

    @property
    def _binary(self) -> bool:
        return any(getattr(loss, "output_kind", "") == "binary" for loss in self._losses)

    def say(self, side: str, are_logits: bool) -> None:
        """All outputs of a side are logits, or none is."""
        self.of[side] = ["logits" if are_logits else ("sigmoid" if self._binary else "softmax")]

    def probe(self, teacher_outputs: Any = None, student_outputs: Any = None) -> None:
        """Fill in what is not known from one batch of concrete outputs."""
        if isinstance(teacher_outputs, MemberOutputs):
            seen = self.of_members or [[] for _ in teacher_outputs.outputs]
            self.of_members = [
                _filled(kinds, outputs, self._binary) for kinds, outputs in zip(seen, teacher_outputs.outputs)
            ]
        elif teacher_outputs is not None:
            self.of["teacher"] = _filled(self.of["teacher"], teacher_outputs, self._binary)
        if student_outputs is not None:
            self.of["student"] = _filled(self.of["student"], student_outputs, self._binary)

    def are_logits(self, loss: Any, side: str, indices: Sequence[int], *, member: int | None = None) -> Any:
        """True or False, or a list of these for several outputs, for the outputs that `loss` gets."""
        flag = _flag(loss, side)
        if flag != "auto":
            return flag
        if member is None:
            kinds = self.of[side]
        else:
            kinds = self.of_members[member] if self.of_members else []
        if not kinds:
            raise RuntimeError(
                f"It is not known whether the {side}'s outputs are logits or probabilities. Call the objective's "
                "probe with one batch of outputs, or set from_logits in the loss."
            )
        flags = [(kinds[index] if index < len(kinds) else kinds[0]) == "logits" for index in indices]
        return flags[0] if len(flags) == 1 else flags

    def asked_for(self, loss: Any, side: str) -> bool:
        """Whether `loss` leaves it to us, and nothing is known yet."""
        return _flag(loss, side) == "auto" and not self.of[side]


def is_cache(model: Any) -> bool:
    """Whether a teacher ran beforehand and its targets come with the data."""
    return isinstance(model, PrecomputedTeacher) and not isinstance(model, keras.Model)


def _flag(loss: Any, side: str) -> Any:
    value = getattr(loss, "from_logits", "auto")
    return value[SIDES.index(side)] if isinstance(value, (tuple, list)) else value


def _of_members(teacher: Any) -> list[Kinds]:
    if is_cache(teacher):
        weights, kinds = teacher.member_weights or (), list(teacher.output_kinds)
        each = len(kinds) // max(len(weights), 1)
        return [kinds[number * each :][:each] for number in range(len(weights))]
    return [list(seen_kinds(member)) for member in getattr(teacher, "models", [])]


def _filled(kinds: Sequence[OutputKind | None], outputs: Any, binary: bool) -> Kinds:
    flat = keras.tree.flatten(outputs)
    known = list(kinds) if len(kinds) == len(flat) else [None] * len(flat)
    return [kind or probed_kind(tensor, binary=binary) for kind, tensor in zip(known, flat)]
