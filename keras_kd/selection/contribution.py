"""What a pair of layers contributes to a student: short probe runs with the pair switched on and off."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_kd.distiller import Distiller
from keras_kd.losses.feature_classes import FeatureDistillation
from keras_kd.losses.output_classes import LogitsDistillation

_BATCH = 64


class ProbeRuns:
    """Trains copies of a student for a few steps, always from the same weights on the same batches.

    Args:
      teacher: the teacher; the runs freeze it.
      student: never trained; copies of it are.
      x: examples to train on.
      y: their labels, or None to learn from the teacher's outputs alone.
      validation: (inputs, labels or None) that the loss is measured on.
      fit_loss: the loss on labels; None without labels, where the divergence from the teacher's outputs is measured.
      steps: optimizer steps of each run.
      seed: of the order of the examples, and of dropout.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        x: Any,
        y: Any,
        validation: tuple[Any, Any | None],
        *,
        fit_loss: Any,
        steps: int,
        seed: int,
    ):
        self._teacher, self._student = teacher, student
        self._validation = validation
        self._fit_loss, self._steps = fit_loss, steps
        generator = np.random.default_rng(seed)
        total = len(keras.tree.flatten(x)[0])
        epochs = -(-steps * _BATCH // total)
        order = np.concatenate([generator.permutation(total) for _ in range(epochs)])[: steps * _BATCH]
        self._x = keras.tree.map_structure(lambda array: array[order], x)
        self._y = None if y is None else keras.tree.map_structure(lambda array: array[order], y)
        self._seed = seed
        self._off: float | None = None

    @property
    def off(self) -> float:
        """The validation loss of the student that is taught without any pair."""
        if self._off is None:
            self._off = self._run([], [])
        return self._off

    def gain(self, teacher_layer: str, student_layer: str, weight: float) -> float:
        """How much lower the validation loss ends with the pair switched on, as a fraction of the loss without.

        Args:
          teacher_layer: tap of the teacher.
          student_layer: tap of the student.
          weight: of the pair's `FeatureDistillation`.
        """
        pair = FeatureDistillation(teacher_layer_name=teacher_layer, student_layer_name=student_layer)
        return (self.off - self._run([pair], [weight])) / max(abs(self.off), 1e-12)

    def _hurry_statistics(self, model: keras.Model) -> None:
        """Let moving statistics keep up with a short run.

        With Keras's momentum of 0.99 they are still two thirds what they were at the start after 40 steps, and the
        validation loss then measures that and not what the student has learned.
        """
        fastest = max(0.0, 1.0 - 4.0 / self._steps)
        for layer in every_layer(model):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = min(layer.momentum, fastest)

    def _run(self, pairs: Sequence[Any], weights: Sequence[float]) -> float:
        keras.utils.set_random_seed(self._seed)
        copy = keras.models.clone_model(self._student)
        copy.set_weights(self._student.get_weights())
        copy.trainable = True
        self._hurry_statistics(copy)
        # The teacher's outputs teach in every run: the question is what the pair adds to that.
        losses = [LogitsDistillation(loss="kl_divergence", name="outputs"), *pairs]
        share = 0.0 if self._fit_loss is None else 0.5
        distiller = Distiller(self._teacher, copy, losses, [1.0, *weights], student_loss_weight=share)
        distiller.compile(keras.optimizers.Adam(1e-3), self._fit_loss, evaluate_distillation=True)
        distiller.fit(self._x, self._y, batch_size=_BATCH, epochs=1, shuffle=False, verbose=0)
        results = distiller.evaluate(*self._validation, batch_size=_BATCH, verbose=0, return_dict=True)
        return float(results["outputs" if self._fit_loss is None else "student_loss"])


def every_layer(model: Any) -> list[Any]:
    """The model and all layers in it; the outer ones first, because setting theirs sets what is inside."""
    return [model, *(inner for layer in getattr(model, "layers", []) for inner in every_layer(layer))]
