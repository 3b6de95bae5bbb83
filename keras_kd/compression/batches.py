"""Training data in any form a Keras user holds it, as batches (x, y, weight) of known number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from keras_kd.data_options import without_autotuning
from keras_kd.teachers.targets import unpack

# Enough for stable activation ranges; the accuracy of a calibrated model does not grow beyond it.
CALIBRATION_EXAMPLES = 200


class DataError(ValueError):
    """Training data that cannot be used; the message says which argument and why."""


@dataclass(frozen=True)
class Batches:
    """Batches of (x, y or None, weight or None) and how many of them make an epoch.

    Args:
      dataset: endless batches from a given epoch on; a resumed run sees the order that it would have seen
        (of arrays; a dataset shuffles itself).
      steps: batches per epoch.
      has_labels: whether y is there.
    """

    dataset: Callable[[int], tf.data.Dataset]
    steps: int
    has_labels: bool


def training_batches(
    x: Any, y: Any, *, sample_weight: Any = None, batch_size: int, steps_per_epoch: int | None, seed: int
) -> Batches:
    """Shuffled batches of an array, or the batches of a dataset.

    Args:
      x: an array, a list or dict of arrays, a batched `tf.data.Dataset`, a `PyDataset` or a tf_keras
        `Sequence`.
      y: labels for an array `x`; datasets carry their own.
      sample_weight: one weight per example of an array `x`.
      batch_size: examples per batch of an array `x`.
      steps_per_epoch: batches per epoch; None is all of them.
      seed: of the shuffle, which differs from epoch to epoch.

    Raises:
      DataError: lengths differ, a dataset's length is unknown, or y comes beside a dataset.
    """
    if is_dataset(x):
        if y is not None or sample_weight is not None:
            raise DataError(
                "x is a dataset and yields its own labels and weights; y and sample_weight must be None"
            )
        dataset, length = _as_dataset(x, "x")
        steps = steps_per_epoch or length
        if steps is None:
            raise DataError("x is a dataset of unknown length; pass steps_per_epoch")
        whole = endless(dataset)
        return Batches(lambda epoch: whole, steps, whole.element_spec[1] is not None)
    count = _length(x, "x")
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if value is not None and _length(value, name) != count:
            raise DataError(f"x has {count} examples and {name} has {_length(value, name)}")
    if sample_weight is not None and y is None:
        raise DataError("sample_weight without y has nothing to weight")
    if batch_size < 1:
        raise DataError(f"batch_size must be 1 or more, got {batch_size!r}")
    examples = tuple(
        tf.nest.map_structure(tf.convert_to_tensor, part) for part in _present(x, y, sample_weight)
    )

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        # Stateless, so that the order depends on nothing but the seed and the epoch.
        order = tf.argsort(
            tf.random.stateless_uniform([count], seed=tf.stack([tf.cast(seed, tf.int64), epoch]))
        )
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

    def gather(chosen: tf.Tensor) -> tuple[Any, Any, Any]:
        return _triple(*tf.nest.map_structure(lambda rows: tf.gather(rows, chosen), examples))

    def from_epoch(epoch: int) -> tf.data.Dataset:
        # Not `Dataset.counter`, whose functions TensorFlow 2.21 keeps until the process ends.
        indices = tf.data.Dataset.range(epoch, tf.int64.max).flat_map(one_epoch)
        return indices.map(gather, num_parallel_calls=1).prefetch(2).with_options(without_autotuning())

    return Batches(from_epoch, steps_per_epoch or -(-count // batch_size), y is not None)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The batches of a data set as (x, y, weight), over and over."""
    return dataset.map(_triple).repeat()


def validation_batches(data: Any, *, batch_size: int) -> tf.data.Dataset | None:
    """Batches (x, y, weight) of `validation_data` as Keras takes it: (x, y), (x, y, weight) or a dataset.

    Raises:
      DataError: another form, or lengths that differ.
    """
    if data is None:
        return None
    if is_dataset(data):
        return _as_dataset(data, "validation_data")[0].map(_triple)
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise DataError(
            f"validation_data must be (x, y), (x, y, sample_weight) or a dataset, got {type(data).__name__}"
        )
    x, y, *weight = data
    count = _length(x, "validation_data[0]")
    for index, value in enumerate(data[1:], start=1):
        if _length(value, f"validation_data[{index}]") != count:
            raise DataError(
                f"validation_data[0] has {count} examples, validation_data[{index}] has another number"
            )
    parts = tuple(tf.nest.map_structure(tf.convert_to_tensor, part) for part in _present(x, y, *weight))
    dataset = tf.data.Dataset.from_tensor_slices(parts)
    return dataset.batch(batch_size).map(_triple).prefetch(2).with_options(without_autotuning())


def calibration_sample(x: Any, *, seed: int, count: int = CALIBRATION_EXAMPLES) -> Any:
    """A few inputs to calibrate with: drawn by the seed from an array, the first ones of a dataset.

    Returns:
      An array, or the list or dict of arrays that one batch of inputs is; at most `count` examples.
    """
    if is_dataset(x):
        dataset, _ = _as_dataset(x, "x")
        parts, seen = [], 0
        for batch in dataset.map(_triple):
            parts.append(_arrays(unpack(batch[0])[0]))
            seen += _length(parts[-1], "x")
            if seen >= count:
                break
        return tf.nest.map_structure(lambda *rows: np.concatenate(rows)[:count], *parts)
    total = _length(x, "x")
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    return tf.nest.map_structure(lambda rows: np.asarray(rows)[chosen], x)


def is_dataset(data: Any) -> bool:
    """Whether data come in batches by themselves: a tf.data dataset, a `PyDataset`, a tf_keras `Sequence`."""
    return isinstance(data, tf.data.Dataset | keras.utils.PyDataset | tf_keras.utils.Sequence)


def _as_dataset(data: Any, name: str) -> tuple[tf.data.Dataset, int | None]:
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return data, cardinality if cardinality >= 0 else None
    count = data.num_batches if isinstance(data, keras.utils.PyDataset) else len(data)
    if count is None:
        raise DataError(f"{name} is a PyDataset without a length; give it num_batches")

    def batches() -> Iterator[Any]:
        for index in range(count):
            yield tuple(_arrays(part) for part in _present(*_tuple(data[index])))
        end = getattr(data, "on_epoch_end", None)
        if end is not None:
            end()

    signature = tf.nest.map_structure(
        _free_batch_size, tuple(_arrays(part) for part in _present(*_tuple(data[0])))
    )
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(count)), count


def _arrays(part: Any) -> Any:
    return tf.nest.map_structure(np.asarray, part)


def _tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _free_batch_size(array: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec((None, *array.shape[1:]), array.dtype)


def _triple(*batch: Any) -> tuple[Any, Any, Any]:
    """(x,), (x, y) or (x, y, weight) as a triple; a missing part is None."""
    parts = batch if len(batch) > 1 else _tuple(batch[0]) if isinstance(batch[0], tuple) else batch
    padded = (*parts, None, None)
    return padded[0], padded[1], padded[2]


def _present(*parts: Any) -> tuple[Any, ...]:
    """tf.data takes no None; trailing ones are cut here and put back by `_triple`."""
    return tuple(_without_lists(part) for part in parts if part is not None)


def _without_lists(structure: Any) -> Any:
    """Lists as tuples: tf.data would stack a list into one tensor."""
    if isinstance(structure, dict):
        return {name: _without_lists(part) for name, part in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(_without_lists(part) for part in structure)
    return structure


def _length(structure: Any, name: str) -> int:
    lengths = {int(np.shape(part)[0]) if np.ndim(part) else -1 for part in tf.nest.flatten(structure)}
    if len(lengths) != 1 or lengths == {-1}:
        raise DataError(f"{name} must hold arrays of one length, got lengths {sorted(lengths)}")
    (length,) = lengths
    if length == 0:
        raise DataError(f"{name} is empty")
    return length
