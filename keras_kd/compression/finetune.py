"""`compress`: prune, cluster and quantize a student while its teacher goes on teaching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.compression.recipe import CompressionRecipe
from keras_kd.compression.report import CompressionReport

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact

# What tflite_tools.convert calls each quantization. After QAT the trained ranges stand.
_CONVERSIONS = {
    None: None,
    "float16": "float16",
    "dynamic": "dynamic",
    "int8_qat": "int8",
    "int8_ptq": "int8",
    "int16x8": "int16x8",
}


@dataclass(frozen=True)
class CompressedModel:
    """What `compress` returns.

    Args:
      model: a tf_keras model, ready to convert: pruned and clustered weights in place, quantization wrappers
        around its layers after ``int8_qat``.
      report: one row per layer: what was asked, what was done, and why not.
      recipe: the recipe.
      calibration: the sample of inputs that `compress` kept.
      float_model: the tf_keras model before ``int8_qat``: pruned and clustered, still float. The same as `model`
        for other recipes.
      seed: the seed that `compress` was given.
    """

    model: Any
    report: CompressionReport
    recipe: CompressionRecipe
    calibration: Any
    float_model: Any
    seed: int = 0

    def to_tflite(
        self,
        calibration: Any = None,
        *,
        metadata: Mapping[str, Any] | bool | None = None,
        sparse_encoding: bool = False,
        **convert_kwargs: Any,
    ) -> TFLiteArtifact:
        """Converts to a ``.tflite``; int8 recipes give int8 inputs and outputs.

        Args:
          calibration: inputs to calibrate with; by default the seeded sample of the training inputs. After
            ``int8_qat`` the trained ranges stand, and calibration fills in those that were not trained.
          metadata: as for `tflite_tools.convert`. The recipe's name and the seed go into the file's provenance
            beside it, unless it is False.
          sparse_encoding: store pruned weights without their zeros, if that makes the file smaller, and it still
            runs here and answers the calibration sample as before; otherwise not, and the file's `notes` say why.
            With TensorFlow 2.21 float32 and float16 files gain, int8 files do not run.
          **convert_kwargs: further arguments of `tflite_tools.convert`, such as ``input_dtype``.
        """
        import tflite_tools

        quantization = _CONVERSIONS[self.recipe.quantization]
        if calibration is None and quantization in ("int8", "int16x8"):
            calibration = self.calibration
        if metadata is None or metadata is True:
            metadata = {}
        if isinstance(metadata, Mapping):
            metadata = {"recipe": str(self.recipe), "seed": self.seed, **metadata}

        def make(sparse: bool) -> TFLiteArtifact:
            return tflite_tools.convert(
                self.model,
                quantization=quantization,
                calibration=calibration,
                metadata=metadata,
                sparse_encoding=sparse,
                **convert_kwargs,
            )

        if not sparse_encoding:
            return make(False)
        from keras_kd.compression.sparse_file import sparse_if_it_helps

        return sparse_if_it_helps(make, self.calibration, self.report.sparsity)


def compress(
    student: Any,
    recipe: CompressionRecipe | str,
    x: Any,
    y: Any = None,
    *,
    teacher: Any = None,
    distillation_losses: Any = None,
    epochs: int | Mapping[str, int] = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    metrics: Any = None,
    seed: int = 0,
    distillation_loss_weights: Any = None,
    student_loss_weight: Any = 0.5,
    teacher_preprocessing: Any = None,
    backup_dir: Any = None,
    **fit_kwargs: Any,
) -> CompressedModel:
    """Prunes, clusters and quantizes a trained student through TF-MOT; the student itself is not changed.

    Each part of the recipe that needs training is a phase of `epochs` epochs: ``prune``, ``cluster``,
    ``quantize`` (only ``int8_qat`` trains; the other quantizations happen in the conversion). Every phase
    starts with a fresh optimizer and keeps its best epoch by validation (the first metric that is better when
    higher, or else the loss). Sparsity is checked after every phase.

    Args:
      student: a built Keras 3 or tf_keras model, Functional or Sequential.
      recipe: a `CompressionRecipe` or its name, such as ``"prune75-int8"``.
      x: inputs [examples, ...] (an array, or a list or dict of them), a batched `tf.data.Dataset` of
        (x, y[, weight]), or a `PyDataset`.
      y: labels for an array `x`. None trains on the teacher alone.
      teacher: a Keras model, a list of them, a `TeacherEnsemble` or a `TeacherCache`; it is run as at
        prediction time and left as it is. None fine-tunes on the labels alone.
      distillation_losses: as for `Distiller`; taps name layers of the teacher and of the student as handed
        in. None with a teacher is `LogitsDistillation(temperature=1.0)`: few epochs do not suffice for softer targets.
      epochs: epochs of every phase, or a dict by phase.
      batch_size: examples per step of an array `x`.
      validation_data: (x, y), (x, y, weight) or a dataset.
      loss: of the labels; by default the student's own. Keras 3 or tf_keras, object, function or name.
      optimizer: by default the student's own; Adam with a cosine decay from 1e-3 where it has none.
      metrics: by default the student's own.
      seed: of shuffling, dropout, and the calibration sample.
      distillation_loss_weights: as for `Distiller`, but no `GradientBalanced`, which needs the Distiller's own
        step. Schedules without a length span each phase.
      student_loss_weight: share of the labels' loss, a number or a schedule, as for `Distiller`.
      teacher_preprocessing: from the student's input batch to the teacher's.
      backup_dir: a directory in which every epoch is saved, and from which the same call takes an interrupted run
        up again. Its files are deleted at the end. State that is no variable (callbacks, dropout) starts anew.
      **fit_kwargs: callbacks, class_weight, sample_weight, steps_per_epoch, validation_freq, verbose; and of Keras's
        `compile`: loss_weights, weighted_metrics.

    Returns:
      A `CompressedModel`.

    Raises:
      ValueError: arguments that do not fit together; all problems found are listed, before any training.
      CompressionError: the sparsity asked for was not reached.

    Example:
      >>> import keras, numpy as np, keras_kd
      >>> Dense = keras.layers.Dense
      >>> student = keras.Sequential([keras.Input((4,)), Dense(16, "relu", name="a"),
      ...                             Dense(16, "relu", name="b"), Dense(2)])
      >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
      >>> compressed = keras_kd.compress(student, "prune50", x, (x[:, 0] > 0).astype("int32"), verbose=0,
      ...                                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
      >>> compressed.report.layer_sparsity["b"]
      0.5

    Source: Zhu and Gupta 2017, arXiv:1710.01878 (pruning); Jacob et al. 2018, arXiv:1712.05877
    (quantization).
    """
    from keras_kd.compression.preparation import Settings
    from keras_kd.compression.run import run

    settings = Settings(
        recipe=CompressionRecipe.from_name(recipe) if isinstance(recipe, str) else recipe,
        epochs=epochs,
        batch_size=batch_size,
        loss=loss,
        optimizer=optimizer,
        metrics=metrics,
        seed=seed,
        distillation_losses=distillation_losses,
        distillation_loss_weights=distillation_loss_weights,
        student_loss_weight=student_loss_weight,
        teacher_preprocessing=teacher_preprocessing,
        backup_dir=backup_dir,
        fit=fit_kwargs,
    )
    model, float_model, report, calibration = run(student, x, y, teacher, validation_data, settings)
    return CompressedModel(model, report, settings.recipe, calibration, float_model, seed)
