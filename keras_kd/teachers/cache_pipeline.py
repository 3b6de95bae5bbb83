"""A cache as training data: shuffled batches, another view each epoch, the targets beside the inputs."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd.data_options import without_autotuning
from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_layout import Layout
from keras_kd.teachers.cache_sources import Source, StreamSource
from keras_kd.teachers.cache_store import ShardReader
from keras_kd.teachers.cache_views import Views
from keras_kd.teachers.epochs import EpochCounter
from keras_kd.teachers.nests import assemble, leaves, map_leaves, skeleton
from keras_kd.teachers.targets import pack

# Of a stream, which cannot be read at random: as many examples in a row are shuffled among themselves.
SHUFFLE_BUFFER = 10_000


class Order:
    """The order of the examples in an epoch, drawn from the seed and the epoch."""

    def __init__(self, count: int, seed: int, shuffle: bool):
        self._count, self._seed, self._shuffle = count, seed, shuffle
        self._lock = threading.Lock()
        self._latest: tuple[int, np.ndarray] | None = None

    def __call__(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Indices of the examples at these places."""
        if not self._shuffle:
            return np.arange(start, min(stop, self._count))
        with self._lock:
            if self._latest is None or self._latest[0] != epoch:
                generator = np.random.default_rng([self._seed, epoch])
                self._latest = epoch, generator.permutation(np.arange(self._count, dtype=np.int64))
            return self._latest[1][start:stop]


def training_dataset(
    source: Source,
    views: Views,
    reader: ShardReader,
    layout: Layout,
    *,
    num_views: int,
    y: Any,
    sample_weight: Any,
    batch_size: int,
    shuffle: bool,
    seed: int,
    counter: EpochCounter,
    classes: int | None,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Batches of `(packed inputs[, labels[, weights]])`; its cardinality is the number of batches of an epoch.

    `part` is (which, of how many): an equal share of every batch, for one of several workers.
    """
    steps = -(-source.count // batch_size)
    if source.count % batch_size and source.count % batch_size < part[1]:
        steps -= 1  # a last batch too small to give everyone something
    finish = _Finisher(counter, steps)
    if isinstance(source, StreamSource):
        epoch_of_batches = _streamed(source, views, batch_size, shuffle, seed, num_views)
    else:
        epoch_of_batches = _gathered(
            source, views, y, sample_weight, batch_size, shuffle, seed, num_views, steps, part
        )
    flat_shapes = layout.decoded_shapes()

    def read(view: np.ndarray, indices: np.ndarray) -> list[np.ndarray]:
        return layout.decode(reader.rows(int(view), indices))

    def complete(batch: dict[str, Any]) -> tuple[Any, ...]:
        x, share = views.apply(batch)
        decoded = tf.numpy_function(
            read, [batch["view"], batch["indices"]], [tf.float32] * len(flat_shapes), stateful=False
        )
        for tensor, shape in zip(decoded, flat_shapes):
            tensor.set_shape((None, *shape))
        parts: list[Any] = [pack(x, layout.targets(decoded))]
        if "y" in batch:
            labels = batch["y"]
            if share is not None:
                labels = mixed_labels(labels, batch["partner_y"], share, classes)
            parts.append(labels)
        if "sample_weight" in batch:
            parts.append(batch["sample_weight"])
        return tuple(parts)

    def one_epoch(_: tf.Tensor) -> tf.data.Dataset:
        epoch = tf.numpy_function(lambda: np.int64(counter.begin()), [], tf.int64, stateful=True)
        epoch.set_shape(())
        prepared = epoch_of_batches(epoch).map(complete, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
        return tf.data.Dataset.zip((tf.data.Dataset.range(steps), prepared)).map(
            lambda step, batch: finish(step, epoch, batch)
        )

    dataset = tf.data.Dataset.range(1).flat_map(one_epoch)
    options = without_autotuning()
    # Behind the counter nothing may be fetched ahead.
    options.experimental_optimization.inject_prefetch = False
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).with_options(options)


class _Finisher:
    """Tells the counter when an epoch's last batch is taken."""

    def __init__(self, counter: EpochCounter, steps: int):
        self._counter, self._steps = counter, steps

    def __call__(self, step: Any, epoch: Any, batch: Any) -> Any:
        def report(number: np.ndarray) -> np.ndarray:
            self._counter.finished(int(number))
            return np.int64(0)

        done = tf.cond(
            tf.equal(step, self._steps - 1),
            lambda: tf.numpy_function(report, [epoch], tf.int64, stateful=True),
            lambda: tf.constant(0, tf.int64),
        )
        with tf.control_dependencies([done]):
            return tf.nest.map_structure(tf.identity, batch)


def _gathered(
    source: Source,
    views: Views,
    y: Any,
    sample_weight: Any,
    batch_size: int,
    shuffle: bool,
    seed: int,
    num_views: int,
    steps: int,
    part: tuple[int, int],
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Batches by random access: only the order is shuffled, no example waits in memory."""
    order = Order(source.count, seed, shuffle)
    given = {"y": y, "sample_weight": sample_weight}
    arrays = {name: values for name, values in given.items() if values is not None}

    def fetch(epoch: Any, step: Any) -> dict[str, Any]:
        view = int(epoch) % num_views
        indices = order(int(epoch), int(step) * batch_size, (int(step) + 1) * batch_size)
        share = len(indices) // part[1]
        indices = indices[part[0] * share : (part[0] + 1) * share]
        batch = {
            "indices": indices,
            "view": np.int64(view),
            **views.parts(source, view, indices, source.gather(indices)),
        }
        for name, values in arrays.items():
            batch[name] = map_leaves(lambda leaf: leaf[indices], values)
        if views.mix is not None and y is not None:
            partners = views.partners(view, indices)
            batch["partner_y"] = map_leaves(lambda leaf: leaf[partners], y)
        return batch

    example = fetch(0, 0)
    frame = skeleton(example)
    flat = [np.asarray(leaf) for leaf in leaves(example)]

    def fetch_in_graph(epoch: tf.Tensor, step: tf.Tensor) -> dict[str, Any]:
        fetched = tf.numpy_function(
            lambda e, s: [np.asarray(leaf, order="C") for leaf in leaves(fetch(e, s))],
            [epoch, step],
            [leaf.dtype for leaf in flat],
            stateful=False,
        )
        for tensor, leaf in zip(fetched, flat):
            tensor.set_shape((None, *leaf.shape[1:]) if leaf.ndim else ())
        return assemble(frame, fetched)

    def batches(epoch: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(steps).map(
            lambda step: fetch_in_graph(epoch, step), num_parallel_calls=tf.data.AUTOTUNE
        )

    return batches


def _streamed(
    source: StreamSource, views: Views, batch_size: int, shuffle: bool, seed: int, num_views: int
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Batches of a stream, which is shuffled block by block after every example got its number."""
    stream = source.x if isinstance(source.x, tf.data.Dataset) else _from_pydataset(source)
    names = ("x", "y", "sample_weight")

    def batches(epoch: tf.Tensor) -> tf.data.Dataset:
        examples = stream.map(lambda *parts: dict(zip(names, _as_parts(parts)))).unbatch().enumerate()
        if shuffle:
            # Block by block, each block in an order drawn from seed, epoch and block: tf.data's own shuffle would
            # reshuffle by how often the data were looked at.
            def block_in_order(number: tf.Tensor, block: Any) -> tf.data.Dataset:
                first = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int64), epoch)
                places = tf.range(tf.shape(tf.nest.flatten(block)[0])[0])
                order = tf.random.experimental.stateless_shuffle(
                    places, tf.random.experimental.stateless_fold_in(first, number)
                )
                return tf.data.Dataset.from_tensor_slices(
                    tf.nest.map_structure(lambda leaf: tf.gather(leaf, order), block)
                )

            blocks = examples.batch(SHUFFLE_BUFFER).enumerate()
            examples = blocks.flat_map(lambda number, block: block_in_order(number, block))

        def number(indices: tf.Tensor, batch: dict[str, Any]) -> dict[str, Any]:
            view = epoch % num_views
            seeds = tf.numpy_function(
                lambda v, i: views.seeds(int(v), i), [view, indices], tf.int32, stateful=False
            )
            seeds.set_shape((None, 2))
            return {**batch, "indices": indices, "view": view, "seeds": seeds}

        return examples.batch(batch_size).map(number, num_parallel_calls=tf.data.AUTOTUNE)

    return batches


def _as_parts(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return parts[0] if len(parts) == 1 and isinstance(parts[0], tuple) else parts


def _from_pydataset(source: StreamSource) -> tf.data.Dataset:
    def batches() -> Any:
        for batch in source.batches_with_labels():
            yield tuple(map_leaves(np.asarray, part) for part in batch)

    first = next(iter(batches()))
    signature = tf.nest.map_structure(lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), first)
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def mixed_labels(labels: Any, partners: Any, share: tf.Tensor, classes: int | None) -> Any:
    """Share * labels + (1 - share) * partners; class numbers become one-hot rows first."""

    def one(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        if first.dtype.is_integer and (first.shape.rank == 1 or first.shape[-1] == 1):
            if classes is None:
                raise CacheError("Mixed labels need one output of classes, to be one-hot rows.")
            flat = [tf.reshape(part, [-1]) for part in (first, second)]
            first, second = (tf.one_hot(part, classes) for part in flat)
        first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
        wide = tf.reshape(share, [-1] + [1] * (first.shape.rank - 1))
        return wide * first + (1.0 - wide) * second

    return tf.nest.map_structure(one, labels, partners)
