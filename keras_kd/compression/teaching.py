"""The teacher's part in fine-tuning: a Keras 3 teacher, or its cached answers, beside a tf_keras student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from keras_kd.compression.student import Student, feature_tensors
from keras_kd.errors import nearest
from keras_kd.losses import LogitsDistillation
from keras_kd.objective import DistillationObjective
from keras_kd.taps import TappedModel
from keras_kd.teachers.ensemble import TeacherEnsemble
from keras_kd.teachers.runner import outputs_of
from keras_kd.teachers.targets import PrecomputedTeacher

# A pruned student cannot follow a strong teacher's large logits in a few epochs; probabilities it can. Higher
# temperatures cost accuracy there (benchmarks/compress_with_teacher.py).
_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Teaching:
    """What the teacher adds to the loss.

    Args:
      forward: from (inputs, targets that came with the data or None) to (teacher's outputs, its tapped
        features
        by layer name). Runs the teacher as at prediction time.
      objective: the distillation losses, bound to both models.
      taps: tapped layers of the student: name in the student as handed in -> layer of the tf_keras student.
      student_loss_weight: weight of the labels' loss; the rest, up to 1, is the teacher's. A number or a schedule.
    """

    forward: Callable[[Any, Mapping[str, Any] | None], tuple[Any, Mapping[str, Any]]]
    objective: DistillationObjective
    taps: Mapping[str, str]
    student_loss_weight: Any

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """The adapters' variables, as TensorFlow's."""
        return [variable.value for variable in self.objective.trainable_variables]


def is_precomputed(teacher: Any) -> bool:
    """Whether the teacher's answers come with the data (a `TeacherCache`)."""
    return isinstance(teacher, PrecomputedTeacher) and not isinstance(teacher, keras.Model | tf_keras.Model)


def teach(
    teacher: Any,
    student: Student,
    *,
    distillation_losses: Any,
    distillation_loss_weights: Any,
    student_loss_weight: Any,
    preprocessing: Callable[[Any], Any] | None,
    batch: tuple[Any, Mapping[str, Any] | None],
) -> Teaching:
    """Binds the distillation losses to a teacher and a student.

    Args:
      teacher: a Keras 3 or tf_keras model, a list of Keras 3 models, a `TeacherEnsemble` or a `TeacherCache`.
      student: both forms of the student.
      distillation_losses: None is `LogitsDistillation(temperature=1.0)`.
      distillation_loss_weights: as for `Distiller`.
      student_loss_weight: share of the labels' loss.
      preprocessing: from the student's input batch to the teacher's.
      batch: one concrete batch (inputs, targets or None), to see what kind of outputs both have.

    Raises:
      ValueError: everything about teacher, losses and taps that does not fit.
    """
    if isinstance(teacher, list | tuple):
        teacher = TeacherEnsemble(teacher)
    losses = LogitsDistillation(_TEMPERATURE) if distillation_losses is None else distillation_losses
    objective = DistillationObjective(losses, distillation_loss_weights)
    taps = {name: student.layer_name(name) for name in objective.student_layer_names}
    original = student.original
    shapes = None
    if not isinstance(original, keras.Model):
        tensors = feature_tensors(student.model, taps.values())
        shapes = {name: tuple(tensors[layer].shape) for name, layer in taps.items()}
    forward, teacher_shapes = _forward(teacher, objective, preprocessing)
    objective.bind(
        None if isinstance(teacher, tf_keras.Model) else teacher,
        original if isinstance(original, keras.Model) else None,
        teacher_feature_shapes=teacher_shapes,
        student_feature_shapes=shapes,
    )
    if objective.needs_probe:
        inputs, targets = batch
        objective.probe(forward(inputs, targets)[0], student.model(inputs, training=False))
    return Teaching(forward, objective, taps, student_loss_weight)


def _forward(
    teacher: Any, objective: DistillationObjective, preprocessing: Callable[[Any], Any] | None
) -> tuple[Callable[..., Any], dict[str, Any] | None]:
    """How to run the teacher, and the shapes of its features where the objective cannot see them itself."""
    prepare = preprocessing or (lambda inputs: inputs)
    if is_precomputed(teacher):
        if preprocessing is not None:
            raise ValueError("teacher_preprocessing has nothing to do: the teacher's answers are cached")

        def replay(inputs: Any, targets: Mapping[str, Any] | None) -> tuple[Any, Mapping[str, Any]]:
            if targets is None:
                raise ValueError(
                    "the teacher is a cache, and the data carry no targets: use cache.dataset(x, y, ...)"
                )
            return outputs_of(teacher, targets), targets["features"]

        return replay, None
    if isinstance(teacher, TeacherEnsemble):
        return (lambda inputs, targets: (teacher.member_outputs(prepare(inputs)), {})), None
    if isinstance(teacher, keras.Model):
        tapped = TappedModel(teacher, objective.teacher_layer_names)
        return (lambda inputs, targets: tapped(prepare(inputs), training=False)), None
    if isinstance(teacher, tf_keras.Model):
        return _legacy_forward(teacher, objective.teacher_layer_names, prepare)
    raise ValueError(
        "teacher must be a Keras model, a list of them, a TeacherEnsemble or a TeacherCache, "
        f"got {type(teacher).__name__}"
    )


def _legacy_forward(
    teacher: Any, names: tuple[str, ...], prepare: Callable[[Any], Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A teacher that only tf_keras can load (a legacy `.h5`)."""
    layers = {layer.name: layer for layer in teacher.layers}
    missing = [
        f"the teacher has no layer {name!r}.{nearest(name, layers)}" for name in names if name not in layers
    ]
    if missing:
        raise ValueError(" ".join(missing))
    if not names:
        return (lambda inputs, targets: (teacher(prepare(inputs), training=False), {})), {}
    tensors = {name: layers[name].get_output_at(0) for name in names}
    tapped = tf_keras.Model(teacher.inputs, [teacher.outputs, list(tensors.values())])

    def run(inputs: Any, targets: Any) -> tuple[Any, dict[str, Any]]:
        outputs, features = tapped(prepare(inputs), training=False)
        return (outputs[0] if len(teacher.outputs) == 1 else outputs), dict(zip(names, features, strict=True))

    return run, {name: tuple(tensor.shape) for name, tensor in tensors.items()}
