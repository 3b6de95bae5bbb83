"""Training on several workers, under `tf.distribute.MultiWorkerMirroredStrategy`.

Every worker runs the same script; TF_CONFIG tells each who it is. `Distiller.fit` works there through `MultiWorkerFit`,
which goes around two faults of Keras's own `fit`; a plain Keras model gets them, too, by this base class.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_kd.callbacks import BackupAndRestore

# What collective operations end with on the workers that are left when one is gone.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)


class WorkerLostError(RuntimeError):
    """Another worker has gone, and training cannot go on without it."""


def number_of_workers(strategy: Any) -> int:
    """Workers of a strategy; 1 for everything that is not a `MultiWorkerMirroredStrategy` on several.

    Example:
      >>> number_of_workers(tf.distribute.get_strategy())
      1
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return max(1, len(cluster.get("chief", [])) + len(cluster.get("worker", [])))


def is_chief(strategy: Any) -> bool:
    """Whether this worker is the one that writes files.

    Example:
      >>> is_chief(tf.distribute.get_strategy())
      True
    """
    if number_of_workers(strategy) == 1:
        return True
    resolver = strategy.cluster_resolver
    if resolver.task_type == "chief":
        return True
    return resolver.task_id == 0 and "chief" not in resolver.cluster_spec().as_dict()


class MultiWorkerFit(keras.Model):
    """A Keras model whose `fit` and `evaluate` work on several workers.

    Keras 3.15.1 fails there for every model, in two places:

    - before the first step `_maybe_symbolic_build` reduces the workers' batches with `strategy.reduce(..., axis=None)`
      and makes a tensor of what is still one value for each replica: "Attempt to convert a value (PerReplica...". Here
      it gets this worker's own batch, of which only shapes and types are looked at;
    - after each step `reduce_per_replica` reduces the logs with `axis=0`, which scalars do not have. Here the logs
      have an axis of length one.

    On one worker nothing is changed.
    """

    @property
    def _on_several_workers(self) -> bool:
        return number_of_workers(self.distribute_strategy) > 1

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None and self._on_several_workers:
            for _, _, batches in iterator:
                data_batch = local_batch(self.distribute_strategy, next(batches))
                break
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _make_function(self, step_function: Callable[[Any], Any]) -> Any:
        if self._on_several_workers:
            original = step_function

            @functools.wraps(original)
            def step_function(data: Any) -> Any:
                return tf.nest.map_structure(lambda value: tf.expand_dims(value, 0), original(data))

        return super()._make_function(step_function)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.fit`; a worker that is lost ends it with one clear error."""
        try:
            return super().fit(*args, **kwargs)
        except _LOST as error:
            if not self._on_several_workers:
                raise
            raise WorkerLostError(
                f"One of the {number_of_workers(self.distribute_strategy)} workers is gone, and the others cannot "
                "train without it. Start all of them again: with keras_kd.distributed.SharedBackup among the "
                f"callbacks the run goes on from its last epoch. TensorFlow says: {_first_sentence(error)}"
            ) from error


def local_batch(strategy: Any, batch: Any) -> Any:
    """Of a distributed batch what this worker's first replica gets."""
    return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], batch)


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]


def training_data(
    cache: Any, x: Any, y: Any = None, *, batch_size: int, strategy: Any = None, **kwargs: Any
) -> Any:
    """`TeacherCache.dataset` for several workers: each reads its own part of every batch, and nothing else.

    The batches are those of one worker, so that training ends in the same weights. Of the last batch of an epoch, if
    it is smaller, as many examples are left out as do not go round evenly.

    Args:
      cache: a `TeacherCache` that every worker sees.
      x: as in `TeacherCache.dataset`; best as files, of which a worker reads what it needs.
      y: as in `TeacherCache.dataset`.
      batch_size: of all workers together.
      strategy: a `MultiWorkerMirroredStrategy`; None is the one whose scope this is.
      **kwargs: the other arguments of `TeacherCache.dataset`.

    Returns:
      A distributed data set for `fit`; on one worker the data set itself.

    Raises:
      ValueError: the batch does not divide evenly, or a worker has several replicas.
    """
    strategy = strategy or tf.distribute.get_strategy()
    workers = number_of_workers(strategy)
    if workers == 1:
        return cache.dataset(x, y, batch_size=batch_size, **kwargs)
    if strategy.num_replicas_in_sync != workers:
        raise ValueError(
            f"There are {strategy.num_replicas_in_sync} replicas on {workers} workers. Start one worker for each GPU "
            "(CUDA_VISIBLE_DEVICES), each with its own entry in TF_CONFIG."
        )
    if batch_size % workers:
        raise ValueError(f"batch_size must be a multiple of the {workers} workers, got {batch_size}.")

    def part(context: Any) -> Any:
        which = (context.input_pipeline_id, context.num_input_pipelines)
        return cache.dataset(x, y, batch_size=batch_size, part=which, **kwargs)

    return strategy.distribute_datasets_from_function(part)


class SharedBackup(BackupAndRestore):
    """`keras_kd.callbacks.BackupAndRestore` for several workers: one writes, all of them restore.

    Were each worker to have its own, those of a killed run could be from different epochs.

    Args:
      backup_dir: a folder that every worker sees.
      strategy: a `MultiWorkerMirroredStrategy`; None is the one whose scope this is.
      **kwargs: as of `BackupAndRestore`.
    """

    def __init__(self, backup_dir: Any, strategy: Any = None, **kwargs: Any):
        super().__init__(backup_dir, **kwargs)
        self._writes = is_chief(strategy or tf.distribute.get_strategy())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Back up, on the chief."""
        if self._writes:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Back up, on the chief."""
        if self._writes:
            super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the backup away, on the chief."""
        if self._writes:
            super().on_train_end(logs)
