"""The distillation part of a training step: which features each loss gets, and how the losses are summed.

`DistillationObjective` holds no model and runs none. It is given outputs and features, as plain tensors, by
whoever runs the two networks: the Distiller's training step, or the fine-tuning of a compressed student.

    objective = DistillationObjective([LogitsDistillation(), FeatureDistillation(...)], [1.0, 0.5])
    objective.bind(teacher, student)               # checks names and shapes, makes the adapters
    if objective.needs_probe:                      # outputs whose activation cannot be seen
        objective.probe(teacher_outputs, student_outputs)      # of one concrete batch
    total, values = objective(teacher_outputs, student_outputs, teacher_features, student_features, labels=y)
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_kd.errors import UnknownNameError, nearest, raise_all
from keras_kd.known_kinds import SIDES, KnownKinds, is_cache
from keras_kd.loss_lists import distinct_names, listed_losses, listed_weights
from keras_kd.losses.base import flatten_nested, loss_name, tap_names
from keras_kd.losses.tensors import check_same_shape
from keras_kd.schedules import Schedule, value_at
from keras_kd.shape_checks import is_shape, shape_problem
from keras_kd.taps import TappedModel, has_graph
from keras_kd.teachers.ensemble import MemberOutputs, mean_of_members

Tensor = Any


class DistillationObjective:
    """The weighted sum of distillation losses.

    Args:
      distillation_losses: one loss, a list of them, or a dict {name in the log: loss}. A loss is a
        `keras_kd.losses.DistillationLoss`, or anything with Keras's `compute_loss`, `validate_outputs` and
        `validate_model_compatibility`.
      distillation_loss_weights: a number or a `Schedule` for each; None is 1.0 for all.

    Attributes:
      losses, names, weights: lists in one order.
      teacher_layer_names, student_layer_names: the features that a call needs, without repetition.
      adapters: {loss name: trainable layer}, filled by `bind`.
      adapter_shapes: {loss name: (teacher's shape, student's shape)} that they were made for.

    Raises:
      ValueError: no loss, a thing that is not a loss, a weight that is not a number, or their numbers differ.
    """

    def __init__(self, distillation_losses: Any, distillation_loss_weights: Any = None):
        self.losses, names = listed_losses(distillation_losses)
        self.weights = listed_weights(distillation_loss_weights, self.losses, names)
        self.names = distinct_names([name or loss_name(loss) for loss, name in zip(self.losses, names)])
        self.teacher_layer_names = _union(tap_names(loss, "teacher") for loss in self.losses)
        self.student_layer_names = _union(tap_names(loss, "student") for loss in self.losses)
        self.adapters: dict[str, keras.layers.Layer] = {}
        self.adapter_shapes: dict[str, Any] = {}
        self._keywords = [_accepted_keywords(loss.compute_loss) for loss in self.losses]
        self._output_names: dict[str, list[str]] = {side: [] for side in SIDES}
        self._kinds = KnownKinds(self.losses)
        self._warned_about_weights = False

    # What the losses need to know before the first step.

    @property
    def needs_labels(self) -> bool:
        """Whether a loss cannot do without labels."""
        return any(getattr(loss, "needs_labels", False) for loss in self.losses)

    @property
    def needs_total_steps(self) -> bool:
        """Whether a schedule spans the whole fit."""
        return any(schedule.needs_total_steps for schedule in self.schedules)

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules among the weights, and among the numbers of the losses."""
        values = [*self.weights, *(value for loss in self.losses for value in vars(loss).values())]
        return [value for value in values if isinstance(value, Schedule)]

    @property
    def trainable_variables(self) -> list[Any]:
        """The adapters' variables (`keras.Variable`)."""
        return [variable for adapter in self.adapters.values() for variable in adapter.trainable_variables]

    def bind(
        self,
        teacher: Any = None,
        student: Any = None,
        *,
        teacher_feature_shapes: Mapping[str, Any] | None = None,
        student_feature_shapes: Mapping[str, Any] | None = None,
        adapter_shapes: Mapping[str, Any] | None = None,
    ) -> None:
        """Look at the models: check every name and shape that can be checked, and make the adapters.

        Args:
          teacher: a Keras model, an ensemble, a cache, or None where only shapes are known.
          student: the Keras model whose layers the losses name (after compression, the original one).
          teacher_feature_shapes: {layer name: shape}; read from the teacher where it is None.
          student_feature_shapes: the same of the student.
          adapter_shapes: {loss name: (teacher's shape, student's shape)}, what `self.adapter_shapes` was when the
            adapters were made; for adapters whose teacher is not at hand.

        Raises:
          ValueError: everything that does not fit, in one message.
        """
        problems: list[str] = []
        for name, (teacher_shape, student_shape) in (adapter_shapes or {}).items():
            if name in self.names:
                self._make_adapter(name, _as_shape(teacher_shape), _as_shape(student_shape))
        shapes = {"teacher": teacher_feature_shapes, "student": student_feature_shapes}
        for side, model in (("teacher", teacher), ("student", student)):
            wanted = self.teacher_layer_names if side == "teacher" else self.student_layer_names
            if shapes[side] is None:
                shapes[side], found = _feature_shapes(model, wanted, side)
                problems.extend(found)
            if model is not None:
                self._output_names[side] = list(getattr(model, "output_names", None) or [])
        self._kinds.look_at(teacher, student)
        for loss in self.losses:
            if isinstance(teacher, keras.Model) and isinstance(student, keras.Model):
                problems.extend(_said_by(loss.validate_model_compatibility, teacher, student))
            problems.extend(self._check_output_name(loss))
        raise_all(list(dict.fromkeys(problems)), subject="The distillation losses do not fit the models")
        for loss, name in zip(self.losses, self.names):
            problems.extend(self._bind_one(loss, name, shapes, teacher, student))
        raise_all(list(dict.fromkeys(problems)), subject="The distillation losses do not fit the models")

    def _bind_one(
        self, loss: Any, name: str, shapes: Mapping[str, Any], teacher: Any, student: Any
    ) -> list[str]:
        taps = {side: tap_names(loss, side) for side in SIDES}
        models = {"teacher": teacher, "student": student}
        found: dict[str, Any] = {}
        for side in SIDES:
            if taps[side]:
                features = [(shapes[side] or {}).get(tap) for tap in taps[side]]
                found[side] = features[0] if len(features) == 1 else tuple(features)
            else:
                found[side] = self._output_shape(loss, models[side], side)
        known = is_shape(found["teacher"]) and is_shape(found["student"])
        on_outputs = not taps["teacher"] and not taps["student"]
        try:
            if known:
                self._make_adapter(name, found["teacher"], found["student"])
            if known and on_outputs and getattr(loss, "output_kind", "values") != "values":
                check_same_shape(_Shaped(found["teacher"]), _Shaped(found["student"]), "outputs")
        except ValueError as error:
            return [f"{name}: {error}"]
        if on_outputs:
            return []
        problem = shape_problem(loss, found["teacher"], found["student"], self.adapters.get(name))
        return [] if problem is None else [f"{name}: {problem}"]

    def _make_adapter(self, name: str, teacher_shape: Any, student_shape: Any) -> None:
        create = getattr(self.losses[self.names.index(name)], "create_adapter", None)
        if create is None or name in self.adapters:
            return
        adapter = create(teacher_shape, student_shape)
        if adapter is not None:
            self.adapters[name] = adapter
            self.adapter_shapes[name] = (teacher_shape, student_shape)

    def _output_shape(self, loss: Any, model: Any, side: str) -> Any:
        if has_graph(model):
            shapes = [tuple(output.shape) for output in model.outputs]
        elif is_cache(model):
            # Members of an ensemble have one shape each.
            shapes = list(model.output_shapes)[: 1 if model.member_weights else None]
        else:
            return None
        wanted = getattr(loss, "output_name", None)
        if wanted is None:
            return shapes[0] if len(shapes) == 1 else None
        names = self._output_names[side]
        return shapes[names.index(wanted)] if wanted in names and len(names) == len(shapes) else None

    def _check_output_name(self, loss: Any) -> list[str]:
        wanted = getattr(loss, "output_name", None)
        problems = []
        for side in SIDES:
            names = self._output_names[side]
            # A dict's keys are outputs' names too, and are not known before the model runs.
            if wanted is not None and names and wanted not in names and len(names) == 1:
                problems.append(f"the {side} has no output {wanted!r}.{nearest(wanted, names)}")
        return problems

    # Logits or probabilities.

    @property
    def needs_probe(self) -> bool:
        """Whether an output has to be looked at before it is known to be logits or probabilities."""
        return self._kinds.incomplete

    def resolve(
        self,
        *,
        teacher_outputs_are_logits: bool | None = None,
        student_outputs_are_logits: bool | None = None,
    ) -> None:
        """Say what the outputs are, where it is known; None leaves a side as it is."""
        known = (("teacher", teacher_outputs_are_logits), ("student", student_outputs_are_logits))
        for side, are_logits in known:
            if are_logits is not None:
                self._kinds.say(side, are_logits)

    def probe(self, teacher_outputs: Any = None, student_outputs: Any = None) -> None:
        """Find out from one batch of concrete outputs what cannot be seen in the models."""
        self._kinds.probe(teacher_outputs, student_outputs)

    # A step.

    def __call__(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        teacher_features: Mapping[str, Any] | None = None,
        student_features: Mapping[str, Any] | None = None,
        *,
        labels: Any = None,
        sample_weight: Any = None,
        step: Any = None,
        total_steps: Any = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of one batch.

        Args:
          teacher_outputs: the teacher's outputs in its own nesting, or `MemberOutputs` of an ensemble.
          student_outputs: the student's.
          teacher_features: {layer name: feature}, for `teacher_layer_names`.
          student_features: {layer name: feature}, for `student_layer_names`.
          labels: the batch's labels in the outputs' nesting, or None.
          sample_weight: [batch] or wider (averaged over its further axes); weights the losses that have a value
            per example. Reduced as Keras does: sum(loss * weight) / batch.
          step: optimizer steps taken so far, for the schedules.
          total_steps: length of the fit in optimizer steps, for the schedules that span it.

        Returns:
          (the sum of weight * loss, {loss name: its unweighted value}), scalars.
        """
        features = {"teacher": teacher_features or {}, "student": student_features or {}}
        if isinstance(labels, (list, tuple)) and len(labels) == 1:
            labels = labels[0]
        total: Any = 0.0
        values: dict[str, Tensor] = {}
        for index, (loss, name) in enumerate(zip(self.losses, self.names)):
            common = {"step": step, "total_steps": total_steps}
            teacher, teacher_flags = self._input(loss, "teacher", teacher_outputs, features, common)
            student, student_flags = self._input(loss, "student", student_outputs, features, common)
            loss.validate_outputs(teacher, student)
            offered = {
                **common,
                "labels": self._labels_for(loss, labels, student_outputs),
                "sample_weight": sample_weight,
                "from_logits": (teacher_flags, student_flags),
                "mask": _mask_of(student),
                "adapter": self.adapters.get(name),
            }
            accepted = self._keywords[index]
            keywords = {key: value for key, value in offered.items() if accepted is None or key in accepted}
            value = self._reduced(loss.compute_loss(teacher, student, **keywords), sample_weight)
            values[name] = value
            total = total + ops.cast(value_at(self.weights[index], step, total_steps), value.dtype) * value
        return total, values

    def _input(
        self, loss: Any, side: str, outputs: Any, features: Mapping[str, Any], common: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        """What a loss is given of one side, and whether it is logits."""
        taps = tap_names(loss, side)
        if taps:
            found = [features[side][tap] for tap in taps]
            return (found[0] if len(found) == 1 else tuple(found)), True
        if isinstance(outputs, MemberOutputs):
            return self._combined(loss, outputs, common), True
        selected, indices = self._selected(loss, outputs, side)
        if getattr(loss, "output_kind", "values") == "values":
            return selected, True
        if self._kinds.asked_for(loss, side) and _is_concrete(outputs):
            self.probe(**{f"{side}_outputs": outputs})
        return selected, self._kinds.are_logits(loss, side, indices)

    def _selected(self, loss: Any, outputs: Any, side: str) -> tuple[Any, list[int]]:
        """The outputs that a loss is for, and their places among the flattened outputs."""
        wanted = getattr(loss, "output_name", None)
        flat = keras.tree.flatten(outputs)
        if wanted is None:
            return outputs, list(range(len(flat)))
        if isinstance(outputs, Mapping):
            if wanted not in outputs:
                raise UnknownNameError(f"The {side} has no output {wanted!r}.{nearest(wanted, outputs)}")
            return outputs[wanted], [sorted(outputs).index(wanted)]
        names = self._output_names[side] or (["output"] if len(flat) == 1 else [])
        if wanted in names and len(names) == len(flat):
            return flat[names.index(wanted)], [names.index(wanted)]
        if len(flat) == 1:
            return flat[0], [0]  # the other network names its only output as it likes
        raise UnknownNameError(f"The {side} has no output {wanted!r}.{nearest(wanted, names)}")

    def _labels_for(self, loss: Any, labels: Any, student_outputs: Any) -> Any:
        wanted = getattr(loss, "output_name", None)
        if wanted is None or labels is None:
            return labels
        if isinstance(labels, Mapping):
            return labels.get(wanted)
        names = self._output_names["student"]
        if isinstance(labels, (list, tuple)) and wanted in names and len(names) == len(labels):
            return labels[names.index(wanted)]
        return labels

    def _combined(self, loss: Any, members: MemberOutputs, common: Mapping[str, Any]) -> Any:
        """Logits (or values) whose probabilities at the loss's temperature are the members' weighted mean."""
        temperature = value_at(getattr(loss, "temperature", 1.0), common["step"], common["total_steps"])
        kind = getattr(loss, "output_kind", "values")
        columns = []
        for member, outputs in enumerate(members.outputs):
            selected, indices = self._selected(loss, outputs, "teacher")
            flags = (
                True if kind == "values" else self._kinds.are_logits(loss, "teacher", indices, member=member)
            )
            columns.append((selected, flags))
        structure = columns[0][0]
        combined = [
            mean_of_members(
                [keras.tree.flatten(outputs)[place] for outputs, _ in columns],
                [flags[place] if isinstance(flags, list) else flags for _, flags in columns],
                members.weights,
                kind,
                temperature,
            )
            for place in range(len(keras.tree.flatten(structure)))
        ]
        return keras.tree.pack_sequence_as(structure, combined)

    def _reduced(self, value: Any, sample_weight: Any) -> Tensor:
        value = ops.convert_to_tensor(value)
        if len(value.shape) == 0:
            if sample_weight is not None and not self._warned_about_weights:
                self._warned_about_weights = True
                warnings.warn(
                    "A distillation loss that compares the examples of a batch, or returns a scalar, cannot take "
                    "sample weights: they apply to the other losses only.",
                    stacklevel=2,
                )
            return value
        if len(value.shape) > 1:
            value = ops.mean(value, axis=tuple(range(1, len(value.shape))))
        if sample_weight is not None:
            weight = ops.cast(flatten_nested(sample_weight)[0], value.dtype)
            if len(weight.shape) > 1:
                weight = ops.mean(weight, axis=tuple(range(1, len(weight.shape))))
            value = value * weight
        return ops.mean(value)


class _Shaped:
    """A shape where a function wants a tensor for its shape."""

    def __init__(self, shape: Any):
        self.shape = shape


def _union(groups: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _accepted_keywords(function: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword arguments that a function takes; None for all."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _as_shape(sizes: Any) -> Any:
    return tuple(sizes)


def _is_concrete(outputs: Any) -> bool:
    try:
        for tensor in keras.tree.flatten(outputs):
            ops.convert_to_numpy(tensor)
    except Exception:  # symbolic tensors say so in different ways
        return False
    return True


def _mask_of(outputs: Any) -> Any:
    # Keras has no public reader for the mask that travels on a tensor; this attribute is what its own guide
    # to custom layers names.
    masks = [getattr(tensor, "_keras_mask", None) for tensor in keras.tree.flatten(outputs)]
    if all(mask is None for mask in masks):
        return None
    return masks[0] if len(masks) == 1 else masks


def _feature_shapes(model: Any, names: Sequence[str], side: str) -> tuple[dict[str, Any], list[str]]:
    if not names or model is None:
        return {}, []
    if is_cache(model):
        shapes = dict(model.feature_shapes)
        missing = [name for name in names if name not in shapes]
        return shapes, [
            f"the teacher cache holds no layer {name!r}.{nearest(name, shapes)}" for name in missing
        ]
    if getattr(model, "models", None) is not None:
        return {}, [
            f"the layer(s) {', '.join(map(repr, names))} cannot be tapped in an ensemble of teachers, whose layers "
            "differ. Give one teacher, or losses on the outputs."
        ]
    tapped: dict[str, Any] = {}
    problems = []
    for name in names:
        try:
            tapped.update(TappedModel(model, [name]).feature_shapes)
        except ValueError as error:
            problems.append(f"in the {side}: {error}")
    return tapped, problems


def _said_by(check: Callable[..., Any], *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except ValueError as error:
        return [str(error)]
    return []
