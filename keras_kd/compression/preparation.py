"""The arguments of a compression, checked and adapted before any work begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_kd.balancing import BALANCED_REFUSAL, holds_balanced
from keras_kd.compression import adapt, batches
from keras_kd.compression.backup import Backup
from keras_kd.compression.recipe import CompressionRecipe
from keras_kd.compression.student import Student
from keras_kd.compression.teaching import Teaching, is_precomputed, teach
from keras_kd.distiller_checks import check_student_loss_weight
from keras_kd.errors import nearest, raise_all
from keras_kd.teachers.targets import unpack

PHASES = ("prune", "cluster", "quantize")
_FIT_ARGUMENTS = (
    "callbacks",
    "class_weight",
    "loss_weights",
    "sample_weight",
    "steps_per_epoch",
    "validation_freq",
    "verbose",
    "weighted_metrics",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The arguments of `compress` that are neither models nor data."""

    recipe: CompressionRecipe
    epochs: int | Mapping[str, int]
    batch_size: int
    loss: Any
    optimizer: Any
    metrics: Any
    seed: int
    distillation_losses: Any
    distillation_loss_weights: Any
    student_loss_weight: Any
    teacher_preprocessing: Any
    backup_dir: Any
    fit: Mapping[str, Any]


@dataclasses.dataclass
class Training:
    """Everything that a phase needs, checked and adapted."""

    data: batches.Batches | None
    validation: Any
    loss: Any
    loss_weights: Any
    optimizer: Any
    metrics: Any
    weighted_metrics: Any
    callbacks: list[Any]
    teaching: Teaching | None
    output_names: list[str]
    keyed_outputs: bool
    epochs: dict[str, int]
    fit: dict[str, Any]
    backup: Backup
    history: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    best: dict[str, int | None] = dataclasses.field(default_factory=dict)


def phases_of(recipe: CompressionRecipe) -> tuple[str, ...]:
    """The parts of a recipe that train.

    Example:
      >>> [phases_of(CompressionRecipe.from_name(name)) for name in ("prune75-int8", "int8_ptq")]
      [('prune', 'quantize'), ()]
    """
    wanted = (recipe.pruning is not None, recipe.clustering is not None, recipe.quantization == "int8_qat")
    return tuple(phase for phase, needed in zip(PHASES, wanted) if needed)


def prepare(
    student: Student,
    x: Any,
    y: Any,
    teacher: Any,
    validation_data: Any,
    settings: Settings,
    phases: tuple[str, ...],
) -> Training:
    """Checks and adapts every argument before any work; all problems come in one error."""
    problems: list[str] = []
    fit = dict(settings.fit)
    for name in fit:
        if name not in _FIT_ARGUMENTS:
            problems.append(f"compress takes no argument {name!r}.{nearest(name, _FIT_ARGUMENTS)}")
    compiled = adapt.compiled_settings(student.original)

    def attempt(action: Any, *args: Any) -> Any:
        try:
            return action(*args)
        except (adapt.AdaptationError, batches.DataError) as error:
            problems.append(str(error))
            return None

    # Outputs given as a dict go by its keys, as in Keras; they come in the order of the sorted keys.
    keyed = isinstance(student.model.output, Mapping)
    names = sorted(student.model.output) if keyed else list(student.model.output_names)
    loss = settings.loss if settings.loss is not None else compiled.get("loss")
    metrics = settings.metrics if settings.metrics is not None else compiled.get("metrics")
    own_loss, own_metrics = settings.loss is None, settings.metrics is None
    loss_weights = fit.pop("loss_weights", compiled.get("loss_weights") if own_loss else None)
    weighted = fit.pop("weighted_metrics", compiled.get("weighted_metrics") if own_metrics else None)
    optimizer = settings.optimizer if settings.optimizer is not None else compiled.get("optimizer")
    loss = attempt(lambda: adapt.by_output(adapt.adapt_loss(loss), names, "loss"))
    metrics = attempt(lambda: adapt.by_output(adapt.adapt_metrics(metrics), names, "metrics"))
    loss_weights = attempt(lambda: adapt.by_output(loss_weights, names, "loss_weights"))
    weighted = attempt(lambda: adapt.by_output(adapt.adapt_metrics(weighted), names, "weighted_metrics"))
    if optimizer is not None:
        attempt(adapt.adapt_optimizer, optimizer)
    callbacks = attempt(adapt.adapt_callbacks, fit.pop("callbacks", None)) or []
    epochs = attempt(_epochs, settings.epochs, phases) or {}
    replayed = None
    if is_precomputed(teacher) and not batches.is_dataset(x):
        weights = fit.pop("sample_weight", None)

        def replayed(epoch: int, x: Any = x, y: Any = y) -> Any:
            """The cache's own data set, from an epoch on; every pass over it is the next epoch."""
            options = {"batch_size": settings.batch_size, "seed": settings.seed, "sample_weight": weights}
            return teacher.dataset(x, y, initial_epoch=epoch, **options)

        x, y = replayed(0), None
    sample_weight, steps = fit.pop("sample_weight", None), fit.pop("steps_per_epoch", None)
    data = validation = None
    if phases:
        data = attempt(
            lambda: batches.training_batches(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=settings.batch_size,
                steps_per_epoch=steps,
                seed=settings.seed,
            )
        )
        validation = attempt(
            lambda: batches.validation_batches(validation_data, batch_size=settings.batch_size)
        )
        if data is not None and replayed is not None:
            data = dataclasses.replace(data, dataset=lambda epoch: batches.endless(replayed(epoch)))
        if data is not None and not data.has_labels and teacher is None:
            problems.append(f"{' and '.join(phases)} need training: pass labels y, or a teacher")
        if data is not None and data.has_labels and loss is None and not problems:
            problems.append("loss is missing: the student is not compiled, so pass loss=")
    problems += _wrong_weights(settings)
    raise_all(problems, subject="compress cannot start")
    fingerprint = {
        "recipe": str(settings.recipe),
        "epochs": epochs,
        "steps": data.steps if data is not None else None,
        "seed": settings.seed,
        "parameters": int(student.model.count_params()),
    }
    backup = Backup(settings.backup_dir if phases else None, fingerprint)
    teaching = None
    if teacher is not None and data is not None:
        teaching = teach(
            teacher,
            student,
            distillation_losses=settings.distillation_losses,
            distillation_loss_weights=settings.distillation_loss_weights,
            student_loss_weight=settings.student_loss_weight,
            preprocessing=settings.teacher_preprocessing,
            batch=unpack(next(iter(data.dataset(0)))[0]),
        )
    return Training(
        data,
        validation,
        loss,
        loss_weights,
        optimizer,
        metrics,
        weighted,
        callbacks,
        teaching,
        names,
        keyed,
        epochs,
        fit,
        backup,
    )


def _wrong_weights(settings: Settings) -> list[str]:
    """What is wrong with the shares of labels and teacher."""
    problems = []
    try:
        check_student_loss_weight(settings.student_loss_weight)
    except ValueError as error:
        problems.append(str(error))
    if holds_balanced(settings.distillation_loss_weights):
        problems.append(BALANCED_REFUSAL)
    return problems


def _epochs(epochs: int | Mapping[str, int], phases: tuple[str, ...]) -> dict[str, int]:
    if isinstance(epochs, Mapping):
        unknown = [name for name in epochs if name not in PHASES]
        missing = [name for name in phases if name not in epochs]
        if unknown or missing:
            raise adapt.AdaptationError(f"epochs: unknown phases {unknown}, missing phases {missing}")
        chosen = {phase: epochs[phase] for phase in phases}
    else:
        chosen = dict.fromkeys(phases, epochs)
    wrong = {phase: count for phase, count in chosen.items() if not isinstance(count, int) or count < 1}
    if wrong:
        raise adapt.AdaptationError(f"epochs must be integers of 1 or more, got {wrong}")
    return chosen
