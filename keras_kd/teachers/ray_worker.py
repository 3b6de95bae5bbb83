"""What runs in Ray's worker processes: reading the data, asking the teacher, storing shards."""

import functools
import os
import pathlib
import pickle
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_kd.teachers import cache_build, cache_store, cache_teachers
from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError
from keras_kd.teachers.ray_parcel import Parcel, read_parcel

# Versions that decide what a shard holds; Ray itself compares the versions of Python and of Ray.
COMPARED = ("keras_kd", "keras", "tensorflow", "numpy")


def differing_versions(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Which packages a worker has in another version than the driver, as phrases.

    Example:
      >>> differing_versions({"keras": "3.15.1", "numpy": "2.4.6"}, {"keras": "3.14.0", "numpy": "2.4.6"})
      ['keras 3.14.0 instead of 3.15.1']
    """
    return [
        f"{name} {theirs.get(name)} instead of {mine[name]}"
        for name in COMPARED
        if name in mine and theirs.get(name) != mine[name]
    ]


def report(folder: str, parcel: str) -> dict[str, Any]:
    """What a node is: its name, its versions, and whether it sees the folder of the cache."""
    return {
        "host": socket.gethostname(),
        "versions": cache_build.versions(),
        "sees": pathlib.Path(folder, parcel).is_file(),
    }


@functools.lru_cache(maxsize=1)
def _known_parcel(folder: str, parcel: str) -> Parcel:
    return read_parcel(folder, parcel)


def digest(folder: str, parcel: str, start: int, stop: int) -> tuple[dict[str, Any], bytes]:
    """Block digests of a range of the data, see `Source.digests`."""
    return _known_parcel(folder, parcel).source.digests(start, stop)


def checksum(folder: str, shard: int) -> str | None:
    """SHA-256 of a shard as it lies on the disk; None where it is not there."""
    path = cache_store.shard_path(pathlib.Path(folder), shard)
    return cache_store.file_checksum(path) if path.is_file() else None


def limit_threads(count: int) -> None:
    """Let TensorFlow use as many threads as the worker was given processors."""
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)  # several workers may share one
    except RuntimeError:
        pass  # TensorFlow has begun, in a process that Ray reuses: it was limited then


class Labeller:
    """A worker: the teacher is loaded once, then labels one shard after the other.

    Args:
      folder: of the cache.
      parcel: name of the parcel in it.
      versions: of the driver.
      threads: for TensorFlow.

    Raises:
      CacheError: other versions than the driver's, or a folder that is not shared.
      CacheMismatchError: the teacher is not what it was in the driver.
    """

    def __init__(self, folder: str, parcel: str, versions: Mapping[str, str], threads: int):
        differing = differing_versions(versions, cache_build.versions())
        if differing:
            raise CacheError(f"The worker on {socket.gethostname()} has {', '.join(differing)}.")
        limit_threads(threads)
        self._folder = pathlib.Path(folder)
        self._job = job = read_parcel(folder, parcel)
        assert job.teacher is not None and job.manifest is not None and job.views is not None
        import keras

        with keras.saving.custom_object_scope(job.own_classes):
            teacher = pickle.loads(job.teacher)
        self._teacher = cache_teachers.as_cached_teacher(teacher, job.layers, job.preprocessing)
        self._manifest, self._views = job.manifest, job.views
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        answers = self._teacher.probe(cache_build.first_examples(job.source))[2]
        problems = cache_teachers.differences(self._manifest.teacher, answers)
        if problems:
            raise CacheMismatchError(f"On {socket.gethostname()} {' '.join(problems)}")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label the shards of these numbers; a row for each: its number, its SHA-256, who made it."""
        shards = [int(shard) for shard in batch["shard"]]
        sums = [self._label(shard) for shard in shards]
        return {
            "shard": np.array(shards),
            "sha256": np.array(sums),
            "worker": np.array([self._name] * len(shards)),
        }

    def _label(self, shard: int) -> str:
        # A process that is killed leaves its half-written file, and so tells who comes after it.
        name = cache_store.shard_path(self._folder, shard).name
        died = sorted(self._folder.glob(f"{name}.*{cache_store.TEMPORARY}"))
        if len(died) >= self._job.max_attempts:
            raise CacheError(f"{len(died)} workers died, one after the other, while they made shard {shard}.")
        view, start, stop = self._manifest.span(shard)
        rows = max(self._job.batch_size, self._teacher.rows_per_call or 0)
        batches = self._views.batches(self._job.source, view, [(start, stop)], rows)
        attempt = uuid.uuid4().hex[:8]
        return cache_build.write_shard(
            self._folder, self._manifest, shard, batches, self._teacher, lambda _: None, attempt
        )
