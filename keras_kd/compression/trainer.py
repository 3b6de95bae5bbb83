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
    ):
        super().__init__(name="fine_tuner")
        self._output_order = tuple(output_names)
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
        return self.student(x, training=training)

    def _forward_with_features(self, x: Any) -> tuple[Any, dict[str, Any]]:
        if self._tapped is None:
            return self(x, training=True), {}
        outputs, features = self._tapped(x, training=True)
        if len(self.student.outputs) == 1:
            outputs = outputs[0]
        return outputs, dict(zip(self._feature_names, features, strict=True))

    def train_step(self, data: Any) -> dict[str, Any]:
        """See tf_keras."""
        packed, y, weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        x, targets = unpack(packed)
        labels, y, weight = y, self._ordered(y), self._ordered(weight)
        teaching, masks = self._untracked.teaching, self._untracked.masks
        # Outside the tape: the teacher's activations need not be kept for a gradient nobody asks for.
        taught, teacher_features = teaching.forward(x, targets) if teaching else (None, {})
        with tf.GradientTape() as tape:
            outputs, features = self._forward_with_features(x)
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
                    outputs,
                    teacher_features,
                    features,
                    labels=labels,
                    sample_weight=weight,
                    step=self.optimizer.iterations,
                    total_steps=self._untracked.total_steps,
                )
                logs = {"student_loss": total, "distillation_loss": distilled, **named}
                share = teaching.student_loss_weight if self._has_labels else 0.0
                total = (share * total if self._has_labels else total) + (1.0 - share) * distilled
        adapters = teaching.trainable_variables if teaching else []
        self.optimizer.minimize(total, [*trained_variables(self.student), *adapters], tape=tape)
        if masks is not None:
            masks.apply(tf.cast(self.optimizer.iterations, tf.int64))
        metrics = self.compute_metrics(x, y, outputs, weight) if self._has_labels else {}
        return {**metrics, **self._averaged({"loss": total, **logs})}

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
