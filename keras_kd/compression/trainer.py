"""One phase of fine-tuning: a tf_keras `fit` in which a Keras 3 teacher goes on teaching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from keras_kd.compression.adapt import better
from keras_kd.compression.masks import MaskedKernels
from keras_kd.compression.teaching import Teaching
from keras_kd.compression.tfmot import trained_variables
from keras_kd.schedules import value_at
from keras_kd.teachers.targets import unpack


class _Untracked:
    """Holds what is no part of the model that is trained."""

    def __init__(self, teaching: Teaching | None, masks: MaskedKernels | None, total_steps: int):
        self.teaching, self.masks, self.total_steps = teaching, masks, total_steps
        self.means: dict[str, Any] = {}


class FineTuner(tf_keras.Model):
    """Trains a student that is wrapped for pruning or quantization; weights live in the student.

    Logs ``loss``, and with a teacher ``student_loss``, ``distillation_loss`` and one entry per named loss.
    Validation runs no teacher: ``val_loss`` is the student's own loss.

    Args:
      student: the model to train.
      teaching: the teacher's part, or None.
      has_labels: whether the data carry labels.
      feature_tensors: the student's tapped tensors by name.
      masks: what is to stay zero, or None.
      total_steps: of this phase.
      output_names: of the student, in the order of its outputs.
      keyed: the outputs are a dict by these names.
    """

    def __init__(
        self,
        student: Any,
        *,
        teaching: Teaching | None,
        has_labels: bool,
        feature_tensors: Mapping[str, Any],
        masks: MaskedKernels | None,
        total_steps: int,
        output_names: Sequence[str],
        keyed: bool = False,
    ):
        super().__init__(name="fine_tuner")
        self._output_order, self._keyed = tuple(output_names), keyed
        self.student = student
        self._has_labels = has_labels
        # Plain objects behind a callable: tf_keras must neither track the Keras 3 teacher as part of this
        # model, nor report the training means below in validation.
        self._untracked = _Untracked(teaching, masks, total_steps)
        self._feature_names = tuple(feature_tensors)
        self._tapped = (
            tf_keras.Model(
                student.inputs, [student.outputs, [feature_tensors[n] for n in self._feature_names]]
            )
            if feature_tensors
            else None
        )

    def call(self, x: Any, training: bool | None = None) -> Any:
        """See tf_keras."""
        return self._ordered(self._named(self.student(x, training=training)))

    def _named(self, outputs: Any) -> Any:
        """Outputs as the student as handed in gives them; TF-MOT's wrapping makes lists of dicts."""
        return (
            dict(zip(self._output_order, tf.nest.flatten(outputs), strict=True)) if self._keyed else outputs
        )

    def _forward_with_features(self, x: Any) -> tuple[Any, dict[str, Any]]:
        if self._tapped is None:
            return self._named(self.student(x, training=True)), {}
        outputs, features = self._tapped(x, training=True)
        if len(self.student.outputs) == 1:
            outputs = outputs[0]
        return self._named(outputs), dict(zip(self._feature_names, features, strict=True))

    def train_step(self, data: Any) -> dict[str, Any]:
        """See tf_keras."""
        packed, y, weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        x, targets = unpack(packed)
        labels, y, weight = y, self._ordered(y), self._ordered(weight)
        teaching, masks = self._untracked.teaching, self._untracked.masks
        # Outside the tape: the teacher's activations need not be kept for a gradient nobody asks for.
        taught, teacher_features = teaching.forward(x, targets) if teaching else (None, {})
        with tf.GradientTape() as tape:
            named_outputs, features = self._forward_with_features(x)
            outputs = self._ordered(named_outputs)
            # With no labels this is the sum of the layers' own losses (regularizers, activity).
            total = (
                self.compute_loss(x, y, outputs, weight)
                if self._has_labels
                else tf.add_n([0.0, *self.losses])
            )
            logs: dict[str, Any] = {}
            if teaching:
                distilled, named = teaching.objective(
                    taught,
                    named_outputs,
                    teacher_features,
                    features,
                    labels=labels,
                    sample_weight=weight,
                    step=self.optimizer.iterations,
                    total_steps=self._untracked.total_steps,
                )
                logs = {"student_loss": total, "distillation_loss": distilled, **named}
                if self._has_labels:
                    share = tf.cast(
                        value_at(
                            teaching.student_loss_weight,
                            self.optimizer.iterations,
                            self._untracked.total_steps,
                        ),
                        total.dtype,
                    )
                    total = share * total + (1.0 - share) * distilled
                else:
                    total += distilled
        adapters = teaching.trainable_variables if teaching else []
        self._update(tape, total, [*trained_variables(self.student), *adapters])
        if masks is not None:
            masks.apply(tf.cast(self.optimizer.iterations, tf.int64))
        metrics = self.compute_metrics(x, y, outputs, weight) if self._has_labels else {}
        return {**metrics, **self._averaged({"loss": total, **logs})}

    def _update(self, tape: tf.GradientTape, total: Any, variables: list[Any]) -> None:
        """One step of the optimizer."""
        if isinstance(self.optimizer, tf_keras.optimizers.legacy.Optimizer) or not _is_one_replica():
            self.optimizer.minimize(total, variables, tape=tape)
            return
        # With one replica there is nothing to sum up. TensorFlow 2.21 enters the sum's gradient, and with it the whole
        # graph of this step, into a registry that nothing leaves, for each `fit` of a new model.
        gradients = self.optimizer.compute_gradients(total, variables, tape)
        self.optimizer.apply_gradients(gradients, skip_gradients_aggregation=True)

    def test_step(self, data: Any) -> dict[str, Any]:
        """See tf_keras."""
        x, y, weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        return super().test_step((unpack(x)[0], self._ordered(y), self._ordered(weight)))

    def _ordered(self, structure: Any) -> Any:
        """A dict by output name as a list, which is how the losses are given: wrapped layers change their names."""
        if isinstance(structure, Mapping):
            return [structure[name] for name in self._output_order if name in structure]
        return structure

    def _averaged(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Means over the epoch so far, which is what progress bars and histories show."""
        means = self._untracked.means
        if not means:
            with tf.init_scope():
                means.update({name: tf_keras.metrics.Mean(name=name) for name in values})
        for name, value in values.items():
            means[name].update_state(value)
        return {name: means[name].result() for name in values}

    def reset_metrics(self) -> None:
        """Called by `fit` at the start of an epoch."""
        super().reset_metrics()
        for mean in self._untracked.means.values():
            mean.reset_state()


def _is_one_replica() -> bool:
    return tf.distribute.get_strategy().num_replicas_in_sync == 1


class BestEpoch(tf_keras.callbacks.Callback):
    """Keeps the weights of the best epoch among those that count, and puts them back at the end.

    Best is the highest of the first metric that is better when higher (an accuracy, say), or else the
    lowest validation loss. Without validation data nothing is kept and the last epoch stands.

    Args:
      first: index of the first epoch that counts; before it the sparsity is still growing.
    """

    def __init__(self, first: int):
        super().__init__()
        self.first = first
        self.epoch: int | None = None
        self.value: float | None = None
        self.monitor: str | None = None
        self._weights: list[Any] | None = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """See tf_keras."""
        validated = [name for name in logs or () if name.startswith("val_")]
        if not validated or epoch < self.first:
            return
        rising = [name for name in validated if better(name) == "max"]
        self.monitor = (rising or ["val_loss"])[0]
        value = float((logs or {})[self.monitor])
        if self.value is None or (value > self.value if rising else value < self.value):
            self.epoch, self.value = epoch, value
            self._weights = [variable.numpy() for variable in self.model.student.variables]

    def state(self) -> tuple[dict[str, Any], list[Any]]:
        """What to save of this callback: plain values, and the weights it keeps."""
        plain = {"epoch": self.epoch, "value": self.value, "monitor": self.monitor}
        return plain, list(self._weights or [])

    def restore(self, state: Mapping[str, Any], weights: list[Any]) -> None:
        """The inverse of `state`."""
        self.epoch, self.value, self.monitor = state["epoch"], state["value"], state["monitor"]
        self._weights = weights or None

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """See tf_keras."""
        if self._weights is not None:
            for variable, value in zip(self.model.student.variables, self._weights, strict=True):
                variable.assign(value)
