"""The stages of `distill_to_tflite`, one method each, and what they leave for one another."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tflite_tools
from keras_kd import measure
from keras_kd.compression.recipe import CompressionRecipe
from keras_kd.defaults import fresh_metrics, fresh_optimizer
from keras_kd.distiller import Distiller
from keras_kd.losses import LogitsDistillation
from keras_kd.progress import ProgressLines, StageClock
from tflite_tools.report import Report, Stage

# While distilling, soft targets carry nearly all of the loss; the labels keep a small say, which corrects the teacher.
# The few epochs of a compression want more of the labels and targets that are not softened: `compress` has its own.
STUDENT_LOSS_WEIGHT = 0.1


@dataclasses.dataclass
class Stages:
    """The settings of one call, and what its stages leave for the next ones."""

    teacher: Any
    student: keras.Model
    data: tuple[Any, Any]
    validation_data: tuple[Any, Any] | None
    test_data: tuple[np.ndarray, np.ndarray]
    recipe: CompressionRecipe
    epochs: int
    compress_epochs: int
    batch_size: int
    teaching: dict[str, Any]
    loss: Any
    optimizer: Any
    compress_optimizer: Any
    metrics: Any
    calibration: Any
    class_names: Sequence[str] | None
    latency: bool
    folder: pathlib.Path | None
    seed: int
    clock: StageClock
    rows: list[Stage] = dataclasses.field(default_factory=list)
    histories: dict[str, dict[str, list[float | None]]] = dataclasses.field(default_factory=dict)
    confusions: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    compressed: Any = None
    artifact: Any = None
    agreement: Any = None

    def measure_teacher(self) -> None:
        """Row one: what there is to reach."""
        self.clock.start("measuring the teacher")
        if isinstance(self.teacher, keras.Model):
            self._measure("teacher", self.teacher)
        else:
            # Several networks are not one row: there is no file and no latency that would be theirs.
            self.notes.append("The teacher is not a single Keras model, so it has no row of its own.")

    def train_alone(self) -> None:
        """The same student from the same weights for the same steps, without its teacher."""
        self.clock.start(f"training the student alone, {self.epochs} epochs")
        alone = keras.models.clone_model(self.student)
        alone.set_weights(self.student.get_weights())
        self._fit("student alone", alone)
        self._measure("student alone", alone)

    def distill(self) -> None:
        """Train the student with its teacher; it stays an ordinary Keras model."""
        self.clock.start(f"distilling the student, {self.epochs} epochs")
        teaching = {
            "distillation_losses": LogitsDistillation(),
            "student_loss_weight": STUDENT_LOSS_WEIGHT,
            **self.teaching,
        }
        distiller = Distiller(self.teacher, self.student, save_teacher="none", **teaching)
        self._fit("distilled", distiller)
        self._measure("distilled", self.student)
        if self.folder is not None:
            self.student.save(self.folder / "student.keras")

    def compress(self) -> None:
        """Prune, cluster, quantize, in the order of the recipe."""
        self.clock.start(
            f"compressing it ({self.recipe}), {self.compress_epochs} epochs a phase, still with its teacher"
        )
        # TF-MOT is loaded here: nobody needs it before.
        from keras_kd.compression.finetune import compress

        self.compressed = compress(
            self.student,
            self.recipe,
            *self.data,
            teacher=self.teacher,
            epochs=self.compress_epochs,
            batch_size=self.batch_size,
            validation_data=self.validation_data,
            loss=self.loss,
            optimizer=self.compress_optimizer,
            metrics=fresh_metrics(self.metrics),
            seed=self.seed,
            verbose=0,
            callbacks=[ProgressLines(self.clock, show=("loss", "accuracy", "val_accuracy"))],
            **self.teaching,
        )
        self.histories.update(self.compressed.report.history)
        if self.recipe.pruning is not None or self.recipe.clustering is not None:
            self._measure_unquantized()

    def _measure_unquantized(self) -> None:
        """The row between: pruned or clustered, and still float. The weights travel back to a Keras 3 model."""
        from keras_kd.compression.bridge import copy_weights_back

        parts = dataclasses.replace(self.recipe, quantization=None, equalize=False, correct_bias=False)
        model = keras.models.clone_model(self.student)
        copy_weights_back(self.compressed.float_model, model)
        self._measure(f"distilled + {parts}", model)

    def convert(self) -> None:
        """Make the file, and judge the file itself."""
        self.clock.start("converting, checking and measuring the .tflite")
        metadata = None if self.class_names is None else {"class_names": list(self.class_names)}
        self.artifact = artifact = self.compressed.to_tflite(self.calibration, metadata=metadata)
        x, y = self.test_data
        self.agreement = tflite_tools.compare(self.compressed.model, artifact, x)
        outputs = tflite_tools.predict(artifact, x)
        facts = tflite_tools.inspect(artifact)
        name = f"{facts.quantization_scheme} .tflite"
        accuracy = measure.classification_accuracy(outputs, y)
        if accuracy is not None:
            self.confusions[name] = measure.confusion(outputs, y)
            self.clock.say(f"{name}: accuracy {accuracy:.2%}")
        self.rows.append(
            Stage(
                name=name,
                accuracy=accuracy,
                parameters=self.student.count_params(),
                sparsity=facts.sparsity,
                size_bytes=artifact.size_bytes,
                gzip_bytes=artifact.gzip_bytes,
                latency_us=measure.median_latency_us(artifact) if self.latency else None,
                macs=facts.macs,
            )
        )
        agreement = self.agreement.top1_agreement
        if agreement is not None:
            self.notes.append(
                f"The .tflite and the compressed Keras model agree on the top class of {agreement:.2%} "
                f"of {len(x)} examples."
            )

    def report(self) -> Report:
        """Everything measured so far, as one report."""
        notes = list(self.notes)
        notes.append(
            "The bytes of Keras models are those of their .keras files without the optimizer's state."
        )
        if self.latency:
            notes.append(
                "Latency is the median on this host, one thread; Keras models are timed as float32 .tflite files."
            )
        return Report(
            f"{self.student.name}: {self.recipe}",
            tuple(self.rows),
            curves=self.histories,
            layer_sparsity=self.compressed.report.layer_sparsity,
            confusion=self.confusions or None,
            class_names=tuple(self.class_names) if self.class_names is not None else None,
            notes=(*notes, *self.compressed.report.notes),
        )

    def write(self, report: Report) -> None:
        """Write the files and the report to the output folder."""
        if self.folder is None:
            return
        self.artifact.save(self.folder / "student.tflite")
        tflite_tools.c_array(self.artifact, self.folder)
        report.write_html(self.folder / "report.html")
        report.write_json(self.folder / "report.json")
        report.write_plots(self.folder)

    def _fit(self, name: str, model: keras.Model) -> None:
        # The same seed before each fit: the same order of examples and the same dropout for every student.
        keras.utils.set_random_seed(self.seed)
        model.compile(
            loss=self.loss, metrics=fresh_metrics(self.metrics), optimizer=fresh_optimizer(self.optimizer)
        )
        show = ("loss", "accuracy", "val_accuracy")
        history = model.fit(
            self._batches(),
            validation_data=self.validation_data,
            epochs=self.epochs,
            verbose=0,
            shuffle=False,  # datasets shuffle themselves, and Keras warns if it is asked to
            callbacks=[ProgressLines(self.clock, show=show)],
        )
        self.histories[name] = {key: [float(v) for v in values] for key, values in history.history.items()}

    def _batches(self) -> Any:
        x, y = self.data
        if y is None:
            return x
        # Not `fit(x, y)`: after `set_random_seed` Keras 3.15 shuffles arrays the same way every epoch.
        data = tf.data.Dataset.from_tensor_slices((x, y))
        return data.shuffle(len(y), seed=self.seed).batch(self.batch_size).prefetch(2)

    def _measure(self, name: str, model: keras.Model) -> None:
        row, outputs = measure.keras_stage(name, model, *self.test_data, latency=self.latency)
        self.rows.append(row)
        if row.accuracy is None:
            self.clock.say(f"{name}: measured")
        else:
            self.confusions[name] = measure.confusion(outputs, self.test_data[1])
            self.clock.say(f"{name}: accuracy {row.accuracy:.2%}")
