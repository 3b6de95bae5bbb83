"""Teacher assistants: from a large teacher to a small student in several steps."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_kd.distiller import Distiller
from keras_kd.errors import raise_all


class ChainStage(NamedTuple):
    """One model of a chain: `model` and the `history` of its training (None for the first teacher)."""

    model: keras.Model
    history: Any


def distill_chain(
    models: Sequence[keras.Model],
    x: Any = None,
    y: Any = None,
    *,
    distillation_losses: Any = None,
    distillation_loss_weights: Any = None,
    student_loss_weight: Any = 0.5,
    loss: Any = None,
    optimizer: Any = "adam",
    metrics: Any = None,
    on_stage: Callable[[int, Distiller], None] | None = None,
    **fit_kwargs: Any,
) -> list[ChainStage]:
    """Distill each model into the next: teacher to assistant, assistant to student.

    Args:
      models: the trained teacher first, then the assistants, the student last; at least two.
      x: training inputs, as `fit` takes them.
      y: labels, or None with `student_loss_weight=0`.
      distillation_losses: for every step: a loss, a list, or a callable from the step's number (from 0) to these;
        None is `LogitsDistillation()`.
      distillation_loss_weights: as in `Distiller`.
      student_loss_weight: as in `Distiller`.
      loss: the loss on the labels; may be None with `student_loss_weight=0`.
      optimizer: a name or an instance, which is copied for each step.
      metrics: names or functions; metric objects keep state and belong to one model.
      on_stage: called with the step's number and its Distiller before the step trains.
      **fit_kwargs: epochs, batch_size, validation_data, callbacks, ... for every step.

    Returns:
      A `ChainStage` for each model, the teacher's without a history.

    Raises:
      ValueError: fewer than two models, one that is no model, or the same one twice.

    Example:
      >>> import numpy as np
      >>> make = lambda width: keras.Sequential([keras.Input((4,)), keras.layers.Dense(width), keras.layers.Dense(3)])
      >>> stages = distill_chain([make(16), make(8), make(4)], np.ones((8, 4)), student_loss_weight=0, verbose=0)
      >>> [stage.model.count_params() for stage in stages], [stage.history is None for stage in stages]
      ([131, 67, 35], [True, False, False])

    Source: Mirzadeh et al. 2020, arXiv:1902.03393.
    """
    from keras_kd.losses import LogitsDistillation

    models = list(models)
    problems = [f"there have to be at least two models, got {len(models)}."] if len(models) < 2 else []
    problems += [
        f"models[{index}] is a {type(model).__name__}, not a keras.Model."
        for index, model in enumerate(models)
        if not isinstance(model, keras.Model)
    ]
    if len({id(model) for model in models}) < len(models):
        problems.append("a model stands in the list more than once.")
    raise_all(problems, subject="This is no chain of teachers and students")
    optimizer_config = keras.optimizers.serialize(keras.optimizers.get(optimizer))
    stages = [ChainStage(models[0], None)]
    for index, (teacher, student) in enumerate(itertools.pairwise(models)):
        losses = distillation_losses(index) if _is_factory(distillation_losses) else distillation_losses
        distiller = Distiller(
            teacher,
            student,
            LogitsDistillation() if losses is None else losses,
            distillation_loss_weights,
            student_loss_weight,
            save_teacher="none",
        )
        distiller.compile(keras.optimizers.deserialize(optimizer_config), loss, metrics)
        if on_stage is not None:
            on_stage(index, distiller)
        history = distiller.fit(x, y, **fit_kwargs)
        stages.append(ChainStage(student, history))
    return stages


def _is_factory(losses: Any) -> bool:
    return callable(losses) and not hasattr(losses, "compute_loss")
