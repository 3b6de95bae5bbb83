"""Which layers of a teacher are worth teaching, and to which layers of the student."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_kd.errors import raise_all
from keras_kd.measure import classification_accuracy
from keras_kd.selection.candidates import candidate_shapes, compatible
from keras_kd.selection.cka import FEWEST_EXAMPLES, StreamingCKA
from keras_kd.selection.contribution import ProbeRuns, every_layer
from keras_kd.selection.examples_of import batches_of, sample_of
from keras_kd.selection.label_loss import chosen_loss
from keras_kd.selection.layer_ranking import LayerRanking, RankedPair
from keras_kd.selection.probes import LinearProbe
from keras_kd.taps import TappedModel

#: Examples of `x` that are looked at.
SAMPLE = 2048
_BATCH = 64
# Every fifth example measures what was fitted on the other four.
_HELD_OUT = 5


def rank_layers(
    teacher: keras.Model,
    student: keras.Model,
    x: Any,
    y: Any = None,
    *,
    loss: Any = None,
    validation_data: Any = None,
    seed: int = 0,
    teacher_layers: Sequence[str] | None = None,
    student_layers: Sequence[str] | None = None,
    probe_pairs: int = 6,
    probe_steps: int = 50,
    verbose: int = 0,
) -> LayerRanking:
    """Measure which teacher layers are worth teaching, and to which student layers.

    Every pair of layers with the same axes gets its linear CKA on real inputs; every teacher layer the accuracy of a
    linear classifier on it; and the most promising pairs a short training run each, whose validation loss is compared
    with the run without the pair. Neither model is changed.

    Args:
      teacher: Functional or Sequential, built.
      student: the same, as it is before distillation.
      x: inputs: arrays, or a batched data set of (x, y); up to 2048 examples are looked at.
      y: labels. Without them the teacher's most likely classes take their place.
      loss: on labels, for the probe runs; None takes the student's own or the cross-entropy that fits.
      validation_data: (x, y) to measure on; None holds out every fifth example.
      seed: of the probe runs, which repeat exactly with the same seed.
      teacher_layers: taps to consider; None takes the outputs of activations and merging layers.
      student_layers: the same of the student.
      probe_pairs: how many pairs get a probe run.
      probe_steps: optimizer steps of 64 examples in each run; 0 makes none, and then contributions are None.
      verbose: 1 prints a line for each stage.

    Returns:
      A `LayerRanking`.

    Raises:
      ValueError: everything that is wrong with the arguments, in one message.

    Example:
      >>> def network(*widths, name):
      ...     layers = [keras.layers.Dense(width, "relu", name=f"{name}_{width}") for width in widths]
      ...     return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)], name=name)
      >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
      >>> ranking = rank_layers(network(16, 8, name="t"), network(6, name="s"), x, probe_steps=0)
      >>> [(pair.student_layer, pair.contribution) for pair in ranking.pairs(1)]
      [('s_6', None)]

    Source: Kornblith et al. 2019, arXiv:1905.00414 (linear CKA); Alain and Bengio 2016, arXiv:1610.01644 (probes).
    """
    problems = [
        f"{name} must be an integer of at least 0, got {value!r}."
        for name, value in (("probe_pairs", probe_pairs), ("probe_steps", probe_steps), ("seed", seed))
        if isinstance(value, bool) or not isinstance(value, int) or value < 0
    ]
    shapes = {}
    for side, model, names in (("teacher", teacher, teacher_layers), ("student", student, student_layers)):
        try:
            shapes[side] = candidate_shapes(model, names, side)
        except ValueError as error:
            problems.append(str(error))
    raise_all(problems, subject="The layers cannot be ranked")
    train, held_out = _split(x, y, validation_data)
    if len(keras.tree.flatten(train[0])[0]) < FEWEST_EXAMPLES:
        raise ValueError(f"The layers cannot be ranked: x must hold at least {FEWEST_EXAMPLES + 1} examples.")

    say = print if verbose else (lambda *_: None)
    say(f"Looking at {len(shapes['teacher'])} teacher layers and {len(shapes['student'])} student layers")
    similarity, worth, scales = _looked_at(teacher, student, shapes, train, held_out)
    pairs = [
        RankedPair(
            teacher_layer=teacher_layer,
            student_layer=student_layer,
            teacher_index=row,
            student_index=column,
            similarity=float(similarity[row, column]),
            worth=worth[row],
            contribution=None,
            loss_weight=1.0 / max(scales[row], 1e-12),
        )
        for row, (teacher_layer, teacher_shape) in enumerate(shapes["teacher"].items())
        for column, (student_layer, student_shape) in enumerate(shapes["student"].items())
        if compatible(teacher_shape, student_shape)
    ]
    if not pairs:
        raise ValueError(
            "The layers cannot be ranked: no two layers of teacher and student have the same axes."
        )
    off = None
    if probe_steps and probe_pairs:
        pairs, off = _probed(
            teacher, student, pairs, train, held_out, loss, seed, probe_pairs, probe_steps, say
        )
    return LayerRanking(
        teacher_layers=tuple(shapes["teacher"]),
        student_layers=tuple(shapes["student"]),
        all_pairs=tuple(pairs),
        loss_without=off,
        examples=len(keras.tree.flatten(train[0])[0]),
        seed=seed,
    )


def _split(x: Any, y: Any, validation_data: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    inputs, labels = sample_of(x, y, count=SAMPLE)
    if validation_data is not None:
        given = validation_data[:2] if isinstance(validation_data, (tuple, list)) else (validation_data,)
        return (inputs, labels), sample_of(*given, count=SAMPLE)
    total = len(keras.tree.flatten(inputs)[0])
    measured = np.arange(total) % _HELD_OUT == _HELD_OUT - 1
    return _rows((inputs, labels), ~measured), _rows((inputs, labels), measured)


def _rows(structure: Any, mask: np.ndarray) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[mask], structure)


def _looked_at(
    teacher: keras.Model, student: keras.Model, shapes: dict[str, Any], train: Any, held_out: Any
) -> tuple[np.ndarray, list[float | None], list[float]]:
    """(CKA of every pair, worth of every teacher layer, mean square of every teacher layer's features)."""
    tapped_teacher, tapped_student = (
        TappedModel(model, shapes[side]) for side, model in (("teacher", teacher), ("student", student))
    )
    names = list(shapes["teacher"])
    cka = StreamingCKA(names, list(shapes["student"]))
    probes: dict[str, LinearProbe] = {}
    squares = np.zeros(len(names))
    inputs, labels = train
    batches = batches_of(inputs, _BATCH)
    given = [None] * len(batches) if labels is None else batches_of(labels, _BATCH)
    for batch, batch_labels in zip(batches, given):
        outputs, features = _numpy(tapped_teacher(batch))
        cka.update(features, _numpy(tapped_student(batch))[1])
        squares += len(keras.tree.flatten(batch)[0]) * np.array(
            [np.mean(np.square(features[name])) for name in names]
        )
        found = _classes(outputs, batch_labels)
        if found is not None:
            for name in names:
                probes.setdefault(name, LinearProbe(found[1])).update(features[name], found[0])
    worth = _accuracies(tapped_teacher, probes, names, held_out)
    return cka.result(), worth, (squares / len(keras.tree.flatten(inputs)[0])).tolist()


def _accuracies(tapped: TappedModel, probes: Any, names: list[str], held_out: Any) -> list[float | None]:
    if not probes:
        return [None] * len(names)
    inputs, labels = held_out
    right, total = np.zeros(len(names)), 0
    batches = batches_of(inputs, _BATCH)
    given = [None] * len(batches) if labels is None else batches_of(labels, _BATCH)
    for batch, batch_labels in zip(batches, given):
        outputs, features = _numpy(tapped(batch))
        found = _classes(outputs, batch_labels)
        assert found is not None  # the same kind of labels as before
        right += [np.sum(probes[name].predict(features[name]) == found[0]) for name in names]
        total += len(found[0])
    return (right / max(total, 1)).tolist()


def _classes(outputs: Any, labels: Any) -> tuple[np.ndarray, int] | None:
    """(class of each example, number of classes), None where this is no classification into one class each."""
    flat = keras.tree.flatten(outputs)
    if len(flat) != 1 or flat[0].ndim != 2 or flat[0].shape[1] < 2:
        return None
    count = flat[0].shape[1]
    if labels is None:
        return flat[0].argmax(-1), count
    labels = np.asarray(labels)
    if classification_accuracy(flat[0], labels) is None:
        return None
    one_hot = labels.ndim == 2 and labels.shape[1] == count
    return (labels.argmax(-1) if one_hot else labels.reshape(-1)).astype(int), count


def _numpy(structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda value: np.asarray(keras.ops.convert_to_numpy(value), np.float32), structure
    )


def _probed(
    teacher: keras.Model,
    student: keras.Model,
    pairs: list[RankedPair],
    train: Any,
    held_out: Any,
    loss: Any,
    seed: int,
    count: int,
    steps: int,
    say: Any,
) -> tuple[list[RankedPair], float]:
    """The pairs, the most promising with their contribution; and the loss without any pair."""
    inputs, labels = train
    fit_loss = None
    if labels is not None:
        few = keras.tree.map_structure(lambda array: array[:8], inputs)
        fit_loss = chosen_loss(student, loss, labels, student(few, training=False))
    trainable = [(layer, layer.trainable) for layer in every_layer(teacher)]
    try:
        runs = ProbeRuns(
            teacher, student, inputs, labels, held_out, fit_loss=fit_loss, steps=steps, seed=seed
        )
        say(f"Without a pair the validation loss ends at {runs.off:.4f}")
        chosen = _shortlist(pairs, count)
        gains = {}
        for pair in chosen:
            gains[pair.names] = runs.gain(*pair.names, pair.loss_weight)
            say(f"{pair.teacher_layer} -> {pair.student_layer}: {gains[pair.names]:+.2%}")
        return [pair.with_contribution(gains.get(pair.names)) for pair in pairs], runs.off
    finally:
        for layer, flag in trainable:
            layer.trainable = flag


def _shortlist(pairs: list[RankedPair], count: int) -> list[RankedPair]:
    """The best pairs, but of every student layer its best before any gets a second."""
    ordered = sorted(pairs, key=lambda pair: -pair.score)
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, RankedPair]] = []
    for pair in ordered:
        turns.append((seen.get(pair.student_layer, 0), len(turns), pair))
        seen[pair.student_layer] = seen.get(pair.student_layer, 0) + 1
    return [pair for _, _, pair in sorted(turns, key=lambda turn: turn[:2])[:count]]
