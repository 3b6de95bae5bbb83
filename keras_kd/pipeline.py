"""The whole chain in one call: distil, compress, convert, and measure every stage."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_kd.balancing import BALANCED_REFUSAL, holds_balanced
from keras_kd.compression.recipe import CompressionRecipe
from keras_kd.defaults import compiled_setting, default_loss
from keras_kd.errors import raise_all
from keras_kd.progress import StageClock
from keras_kd.stages import Stages
from tflite_tools.report import Report, Stage


@dataclasses.dataclass(frozen=True)
class PipelineResult:
    """What `distill_to_tflite` made and measured.

    Attributes:
      stages: one `tflite_tools.Stage` per row of the table, teacher first, `.tflite` last.
      student: the distilled student, an ordinary `keras.Model`, before compression.
      compressed: the `keras_kd.CompressedModel`.
      artifact: the `tflite_tools.TFLiteArtifact` that ships.
      agreement: the comparison of the file with the compressed Keras model, from `tflite_tools.compare`.
      histories: per-epoch logs of each fit, `{stage: {log: [values]}}`.
      output_dir: where the files were written, or None.
    """

    stages: tuple[Stage, ...]
    student: keras.Model
    compressed: Any
    artifact: Any
    agreement: Any
    histories: dict[str, dict[str, list[float | None]]]
    output_dir: pathlib.Path | None
    _report: Report

    def report(self, path: str | pathlib.Path | None = None) -> Report:
        """The report; written as one self-contained HTML page if a path is given."""
        if path is not None:
            self._report.write_html(path)
        return self._report

    def __str__(self) -> str:
        return str(self._report)


def distill_to_tflite(
    teacher: keras.Model,
    student: keras.Model,
    x: Any,
    y: Any = None,
    *,
    recipe: str | CompressionRecipe = "prune75-int8",
    validation_data: tuple[Any, Any] | None = None,
    test_data: tuple[Any, Any] | None = None,
    epochs: int = 10,
    compress_epochs: int | None = None,
    batch_size: int = 32,
    distillation_losses: Any = None,
    distillation_loss_weights: Any = None,
    student_loss_weight: float | None = None,
    loss: Any = None,
    optimizer: Any = None,
    compress_optimizer: Any = None,
    metrics: Any = None,
    calibration: Any = None,
    student_alone: bool = False,
    class_names: Sequence[str] | None = None,
    latency: bool = True,
    output_dir: str | pathlib.Path | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> PipelineResult:
    """Teach a student, compress it while the teacher goes on teaching, convert it, and measure every stage.

    The student is trained in place. Accuracy is measured on `test_data`; without it on `validation_data`,
    which also chose the best epoch of the compression, and the report says so.

    Args:
      teacher: a trained `keras.Model`, a list of them, or a `keras_kd.TeacherEnsemble`. Its weights stay as they are.
      student: a built `keras.Model`.
      x: inputs [examples, ...], or a batched `tf.data.Dataset` of (x, y) that reshuffles itself.
      y: labels, sparse [examples] or one-hot [examples, classes]; None with a dataset.
      recipe: a `CompressionRecipe` or its name, such as `"prune75-int8"`.
      validation_data: (x, y) arrays; needed unless `test_data` is given.
      test_data: (x, y) arrays that nothing was chosen by.
      epochs: passes over the data in which the student is distilled (and trained alone, if asked).
      compress_epochs: passes over the data in each phase of compression; a third of `epochs` if None.
      batch_size: for arrays.
      distillation_losses: as in `Distiller`, for every phase. If None, `LogitsDistillation()` (T = 3) while distilling
        and the default of `compress`, T = 1, while compressing.
      distillation_loss_weights: as in `compress`.
      student_loss_weight: weight of the labels' loss, in [0, 1], for every phase. If None, 0.1 while distilling and the
        default of `compress`, 0.5, while compressing.
      loss: loss on the labels; the student's compiled one, or crossentropy that fits the labels, if None.
      optimizer: optimizer of the distillation; the student's compiled one, or Adam at 1e-3, if None.
      compress_optimizer: optimizer of each phase of the compression; Adam with a cosine decay from 1e-3 if None.
      metrics: metrics of the fits; accuracy if None.
      calibration: inputs for the converter; a seeded sample of `x` if None.
      student_alone: also train the same student, from the same initial weights, for the same number of
        steps without a teacher, to see what the teacher is worth.
      class_names: names of the classes, for the report.
      latency: whether to measure latency on this host.
      output_dir: where to write `student.keras`, `student.tflite`, `model.h`, `model.cc`, `report.html`,
        `report.json` and the plots; nothing is written if None.
      seed: of everything random.
      verbose: 0 prints nothing; 1 prints lines of progress.

    Returns:
      A `PipelineResult`.

    Raises:
      ValueError: arguments that do not fit; all problems are listed, before anything is trained.

    Example:
      >>> def network(units):
      ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, activation="relu"),
      ...                              keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
      >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
      >>> y = (x.sum(axis=1) > 0).astype("int64")
      >>> result = distill_to_tflite(network(32), network(8), x, y, validation_data=(x, y),
      ...                            epochs=1, latency=False, verbose=0)
      >>> [stage.name for stage in result.stages]
      ['teacher', 'distilled', 'distilled + prune75', 'int8 .tflite']
    """
    recipe = CompressionRecipe.from_name(recipe) if isinstance(recipe, str) else recipe
    folder = pathlib.Path(output_dir) if output_dir is not None else None
    if holds_balanced(distillation_loss_weights):
        raise ValueError(BALANCED_REFUSAL)
    _check(teacher, student, x, y, validation_data, test_data, epochs, compress_epochs, batch_size, folder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is known before the work
    x_test, y_test = (np.asarray(part) for part in test_data or validation_data or ())
    teaching = {
        "distillation_losses": distillation_losses,
        "distillation_loss_weights": distillation_loss_weights,
        "student_loss_weight": student_loss_weight,
    }
    run = Stages(
        teacher=teacher,
        student=student,
        data=(x, y),
        validation_data=validation_data,
        test_data=(x_test, y_test),
        recipe=recipe,
        epochs=epochs,
        compress_epochs=compress_epochs or max(1, -(-epochs // 3)),
        batch_size=batch_size,
        teaching={name: value for name, value in teaching.items() if value is not None},
        loss=loss or compiled_setting(student, "loss") or default_loss(student, y_test),
        optimizer=optimizer or compiled_setting(student, "optimizer") or "adam",
        compress_optimizer=compress_optimizer,
        metrics=["accuracy"] if metrics is None else metrics,
        calibration=calibration,
        class_names=class_names,
        latency=latency,
        folder=folder,
        seed=seed,
        clock=StageClock(4 + bool(student_alone), enabled=verbose > 0),
    )
    run.measure_teacher()
    if student_alone:
        run.train_alone()
    run.distill()
    run.compress()
    run.convert()
    if test_data is None:
        run.notes.append(
            "Accuracy is on the validation data, which also chose the best epochs of the compression."
        )
    report = run.report()
    run.write(report)
    return PipelineResult(
        stages=tuple(run.rows),
        student=student,
        compressed=run.compressed,
        artifact=run.artifact,
        agreement=run.agreement,
        histories=run.histories,
        output_dir=folder,
        _report=report,
    )


def _check(
    teacher: Any,
    student: Any,
    x: Any,
    y: Any,
    validation_data: Any,
    test_data: Any,
    epochs: Any,
    compress_epochs: Any,
    batch_size: Any,
    folder: pathlib.Path | None,
) -> None:
    """Everything that can be known before the first step, in one error."""
    problems = []
    if not isinstance(student, keras.Model):
        problems.append(
            f"student must be a keras.Model, got {type(student).__module__}.{type(student).__name__}."
        )
    elif not student.built:
        problems.append("student has no weights yet: build it, or call it once on a batch.")
    if isinstance(teacher, keras.Model) and teacher is student:
        problems.append("teacher and student are the same object.")
    if validation_data is None and test_data is None:
        problems.append(
            "validation_data or test_data is needed, a pair of arrays (x, y): every stage is measured on it."
        )
    for name, pair in (("validation_data", validation_data), ("test_data", test_data)):
        if pair is not None and not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            problems.append(f"{name} must be a pair of arrays (x, y), got {type(pair).__name__}.")
        elif pair is not None and len(pair[0]) != len(pair[1]):
            problems.append(f"{name} has {len(pair[0])} inputs and {len(pair[1])} labels.")
        elif pair is not None:
            problems.extend(_misfits(name, student, *pair))
    for name, count in (("epochs", epochs), ("compress_epochs", compress_epochs), ("batch_size", batch_size)):
        if count is not None and (not isinstance(count, int) or count < 1):
            problems.append(f"{name} must be an integer of 1 or more, got {count!r}.")
    if isinstance(x, (np.ndarray, list)):
        if y is None:
            problems.append("y is missing: labels for the array x.")
        elif len(x) != len(y):
            problems.append(f"x has {len(x)} examples and y has {len(y)}.")
        else:
            problems.extend(_misfits("x and y", student, x, y))
    if folder is not None:
        missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
        if missing:
            problems.append(
                f"output_dir asks for a report, which needs {' and '.join(missing)}: pip install 'keras-kd[report]'."
            )
    raise_all(problems, subject="distill_to_tflite cannot start")


def _misfits(name: str, student: Any, x: Any, y: Any) -> list[str]:
    """What is wrong with inputs and labels for a student with one input and one output of classes."""
    problems: list[str] = []
    expected, outputs = getattr(student, "input_shape", None), getattr(student, "output_shape", None)
    shape = np.shape(x)
    if isinstance(expected, tuple) and not any(isinstance(part, tuple) for part in expected):
        fits = len(shape) == len(expected) and all(
            want is None or want == got for want, got in zip(expected[1:], shape[1:])
        )
        if not fits:
            problems.append(f"{name}: the student takes inputs of shape {expected}, these have {shape}.")
    labels = np.asarray(y)
    if isinstance(outputs, tuple) and len(outputs) == 2 and labels.ndim == 1 and labels.dtype.kind in "iu":
        classes = outputs[1]
        if (
            classes
            and classes > 1
            and labels.size
            and not 0 <= int(labels.min()) <= int(labels.max()) < classes
        ):
            problems.append(
                f"{name}: labels run from {labels.min()} to {labels.max()}, and the student has {classes} outputs, "
                f"so they must be in 0..{classes - 1}."
            )
    return problems
