"""Which epoch a pass over a cache's data set is: counted by the data set, and told by `fit` where there is one."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf


class EpochCounter:
    """The epoch that the next pass over a data set is; every batch of a pass has the epoch that it began with.

    By itself a pass counts when its last batch was taken: Keras and the Distiller look at a first batch before they
    train, and counting such looks would skip views. Whoever fetches ahead (`prefetch`, the replicas of a
    `MirroredStrategy`) can take the last of a few batches during a look, so that a `fit`, which knows what it
    trains on, holds the counter and says itself which pass it is at.

    Args:
      first: epoch of the first pass.

    Example:
      >>> counter = EpochCounter(5)
      >>> counter.begin(), counter.begin()
      (5, 5)
      >>> counter.finished(5)
      >>> counter.begin()
      6
    """

    def __init__(self, first: int):
        self._lock = threading.Lock()
        self._epoch = self._before = first
        self._held_at: int | None = None  # epoch of the first pass of the fit that holds it
        self._used = False  # by that fit

    def begin(self) -> int:
        """The epoch of a pass that begins now."""
        with self._lock:
            self._used = True
            return self._epoch

    def finished(self, epoch: int) -> None:
        """The last batch of this epoch was taken."""
        with self._lock:
            if self._held_at is None:
                self._epoch = max(self._epoch, int(epoch) + 1)

    def hold(self, first: int = 0) -> bool:
        """Count no more, until `release`; False where another fit holds it.

        Args:
          first: the pass that the fit begins with, for a data set that is at its beginning and so does not know.
        """
        with self._lock:
            if self._held_at is not None:
                return False
            self._before, self._used = self._epoch, False
            self._held_at = self._epoch = self._epoch or first
            return True

    def set_pass(self, number: int) -> None:
        """The fit that holds it is at this pass, counted from 0."""
        with self._lock:
            if self._held_at is not None:
                self._epoch = self._held_at + number

    def release(self) -> None:
        """Count again; a data set that the fit did not touch is where it was."""
        with self._lock:
            if self._held_at is not None and not self._used:
                self._epoch = self._before
            self._held_at = None


class EpochFollower(keras.callbacks.Callback):
    """Tells the counters which pass over its data a fit is at.

    Args:
      counters: that are held.
      batches: of a pass; None where a pass is an epoch of the fit.
      initial_epoch: argument of `fit`.
    """

    def __init__(self, counters: list[EpochCounter], batches: int | None, initial_epoch: int):
        super().__init__()
        self.counters = counters
        self._batches = batches
        self._initial_epoch = initial_epoch
        self._passes: int | None = None  # done; None before the first epoch
        self._seen = 0  # batches of the pass

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before Keras makes the iterator of this epoch."""
        if self._passes is None:
            # More than none where `BackupAndRestore` has put a killed fit back to where it was.
            done = epoch - self._initial_epoch
            self._passes = done if self._batches is None else done * self._batches_per_epoch // self._batches
        self._tell()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """With `steps_per_epoch` Keras goes on with the iterator that it has until all its batches are used."""
        if self._batches is not None:
            self._seen += self._batches_per_epoch
            if self._seen < self._batches:
                return
            self._seen = 0
        self._passes = (self._passes or 0) + 1
        self._tell()

    @property
    def _batches_per_epoch(self) -> int:
        at_once = int(getattr(self.model, "steps_per_execution", 1))
        return -(-int(self.params["steps"]) // at_once) * at_once

    def _tell(self) -> None:
        for counter in self.counters:
            counter.set_pass(self._passes or 0)


@contextlib.contextmanager
def epochs_of_fit(teacher: Any, arguments: Mapping[str, Any]) -> Iterator[EpochFollower | None]:
    """Hold the counters of a cache's data sets during a fit.

    Args:
      teacher: anything; a `TeacherCache` has `epoch_counters`.
      arguments: of `fit`, those that were given.

    Yields:
      A callback for the fit, None where there is nothing to tell.
    """
    counters = list(getattr(teacher, "epoch_counters", ()))
    initial_epoch = int(arguments.get("initial_epoch", 0))
    batches, first = None, initial_epoch
    if arguments.get("steps_per_epoch") is not None:
        x = arguments.get("x")
        batches = int(x.cardinality()) if isinstance(x, tf.data.Dataset) else -1
        if batches < 0:  # endless or unknown: one iterator, whose passes only the data set itself can count
            counters = []
        else:
            first = initial_epoch * int(arguments["steps_per_epoch"]) // max(batches, 1)
    held = [counter for counter in counters if counter.hold(first)]
    if not held:
        yield None
        return
    follower = EpochFollower(held, batches, initial_epoch)
    try:
        yield follower
    finally:
        follower.counters = []
        for counter in held:
            counter.release()
