"""A cache that is built by the workers of a Ray cluster.

Ray does the work of a cluster: Ray Data's pool of actors hands out the shards, and replaces workers whose node died.
What is done here is what only a cache knows: one row of the data set is the number of a shard, its bytes do not
depend on who makes it, and the manifest says which are finished, so that a driver that was killed goes on.
"""

import contextlib
import dataclasses
import pathlib
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras_kd.teachers import cache_build, cache_store, ray_cluster, ray_parcel, ray_worker
from keras_kd.teachers.cache_errors import CacheError, CorruptShardError
from keras_kd.teachers.cache_sources import BLOCK_EXAMPLES, Source
from keras_kd.teachers.cache_store import Manifest
from keras_kd.teachers.cache_teachers import CachedTeacher
from keras_kd.teachers.cache_views import Views
from keras_kd.teachers.file_sources import without_examples
from keras_kd.teachers.ray_options import RayOptions
from keras_kd.teachers.ray_parcel import Parcel
from keras_kd.teachers.ray_worker import Labeller

# A task that reads data or shards: long enough that starting it does not count.
_BLOCKS_PER_TASK = 64


def build(
    folder: pathlib.Path,
    source: Source,
    views: Views,
    teacher: CachedTeacher,
    *,
    given_teacher: Any,
    layers: tuple[str, ...],
    preprocessing: Any,
    options: Mapping[str, Any] | RayOptions | None,
    **arguments: Any,
) -> Manifest:
    """`cache_build.build` with Ray's workers; the driver asks the teacher about a few examples only.

    Args:
      folder: of the cache.
      source: the data.
      views: how the examples look.
      teacher: ready for the driver.
      given_teacher: as the caller gave it, for the workers.
      layers: as in `TeacherCache.build`.
      preprocessing: as in `TeacherCache.build`.
      options: see `RayOptions`.
      **arguments: the others of `cache_build.build`.

    Raises:
      CacheError: options or data that do not fit, workers with other versions, or a folder that is not shared.
      CorruptShardError: shards that were made twice and still differ on the disk.
    """
    settings = RayOptions.of(options)
    source = without_examples(source)
    folder = pathlib.Path(folder).resolve()
    with ray_cluster.connected(settings):
        if ray_cluster.is_client():
            # Ray Data's streams do not reach a client: the driver itself runs in the cluster.
            return _build_in_cluster(
                folder,
                source,
                views,
                given_teacher,
                layers,
                preprocessing,
                dataclasses.replace(settings, address="auto"),
                arguments,
            )
        engine = _Engine(folder, source, views, given_teacher, layers, preprocessing, settings)
        return cache_build.build(folder, source, views, teacher, engine=engine, **arguments)


class _Engine:
    """One build."""

    def __init__(
        self,
        folder: pathlib.Path,
        source: Source,
        views: Views,
        teacher: Any,
        layers: tuple[str, ...],
        preprocessing: Any,
        options: RayOptions,
    ):
        self._folder, self._source, self._views = folder, source, views
        self._teacher, self._layers, self._preprocessing = teacher, layers, preprocessing
        self._options = options

    def prepare(self) -> None:
        """The fingerprint of the data, worked out by all nodes together; first they say who they are."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with ray_parcel.parcel_file(self._folder, Parcel(self._source)) as parcel:
            ray_cluster.check_nodes(str(self._folder), parcel, self._options)
            count, step = self._source.count, BLOCK_EXAMPLES * _BLOCKS_PER_TASK
            ranges = [(start, min(start + step, count)) for start in range(0, count, step)]
            calls = [(str(self._folder), parcel, *limits) for limits in ranges]
            parts = ray_cluster.all_results(ray_worker.digest, calls, self._options)
        kinds = [(facts["specs"], facts["structure"]) for facts, _ in parts]
        for (start, stop), kind in zip(ranges, kinds):
            if kind != kinds[0]:
                raise CacheError(
                    f"All examples must have one shape and type; the first have {', '.join(kinds[0][0])}, some among "
                    f"the examples {start:,} to {stop - 1:,} have {', '.join(kind[0])}."
                )
        facts = {"examples": count, "specs": kinds[0][0], "structure": kinds[0][1]}
        self._source.set_fingerprint(facts, b"".join(blocks for _, blocks in parts))

    def make_shards(
        self,
        folder: pathlib.Path,
        manifest: Manifest,
        shards: Sequence[int],
        source: Source,
        views: Views,
        teacher: CachedTeacher,
        batch_size: int,
        *,
        verbose: bool,
    ) -> None:
        """In the place of `cache_build.build_shards`: label, then compare what lies on the disk."""
        if not shards:
            return
        cache_build.check_space(folder, manifest)
        job = Parcel(
            self._source,
            ray_parcel.pickled_teacher(self._teacher),
            ray_parcel.classes_of(self._teacher),
            self._layers,
            self._preprocessing,
            self._views,
            dataclasses.replace(manifest, shards={}),
            batch_size,
            self._options.max_attempts,
        )
        progress = _Progress(manifest, shards, verbose=verbose)
        with ray_parcel.parcel_file(folder, job) as parcel, _without_leftovers(folder):
            self._label(manifest, shards, parcel, progress)
            differing = self._differing(manifest, shards)
            if differing:
                progress.say(f"{_names(differing)} differ on the disk from what was written: made again")
                for shard in differing:
                    del manifest.shards[shard]
                self._label(manifest, differing, parcel, progress)
                differing = self._differing(manifest, differing)
            if differing:
                for shard in differing:  # so that the next build makes them
                    del manifest.shards[shard]
                cache_store.write_manifest(folder, manifest)
                raise CorruptShardError(
                    f"The cache at {str(folder)!r} was built, and {_names(differing)} differ on the disk from what the "
                    "workers wrote, twice: the file system, or a disk below it, loses data.",
                    tuple(differing),
                )
        progress.finish()

    def _label(self, manifest: Manifest, shards: Sequence[int], parcel: str, progress: "_Progress") -> None:
        try:
            for row in self._rows(shards, parcel):
                manifest.shards[row["shard"]] = row["sha256"]
                cache_store.write_manifest(self._folder, manifest)
                progress.add(row["shard"], row["worker"])
        except Exception as error:
            raise self._explained(error, manifest) from error

    def _rows(self, shards: Sequence[int], parcel: str) -> Iterator[dict[str, Any]]:
        """A row for every shard, as they are finished."""
        import ray.data

        options = self._options
        with ray_cluster.quiet_ray_data():
            data = ray.data.from_items(
                [{"shard": int(shard)} for shard in shards], override_num_blocks=len(shards)
            )
            labelled = data.map_batches(
                Labeller,
                batch_size=1,
                batch_format="numpy",
                fn_constructor_args=(
                    str(self._folder),
                    parcel,
                    cache_build.versions(),
                    max(1, int(options.num_cpus)),
                ),
                # One shard at a time for each, so that none waits behind a slow worker.
                compute=ray.data.ActorPoolStrategy(
                    size=min(options.num_workers or ray_cluster.capacity(options), len(shards)),
                    max_tasks_in_flight_per_actor=1,
                ),
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus or None,
                **ray_cluster.environment(options),
            )
            for batch in labelled.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
                for shard, sha256, worker in zip(batch["shard"], batch["sha256"], batch["worker"]):
                    yield {"shard": int(shard), "sha256": str(sha256), "worker": str(worker)}

    def _differing(self, manifest: Manifest, shards: Sequence[int]) -> list[int]:
        """The shards whose files are not what their workers wrote, read by other processes of the cluster."""
        calls = [(str(self._folder), shard) for shard in shards]
        found = ray_cluster.all_results(ray_worker.checksum, calls, self._options)
        return [shard for shard, sha256 in zip(shards, found) if sha256 != manifest.shards[shard]]

    def _explained(self, error: Exception, manifest: Manifest) -> Exception:
        """The worker's own error where it raised one of ours."""
        cause = ray_cluster.cause_of(error)
        if isinstance(cause, OSError) and cause.errno in cache_build.NO_SPACE:
            return cache_build.disk_full(self._folder, manifest, cause.errno)
        if isinstance(cause, CacheError):
            return type(cause)(str(cause))
        left = len(manifest.missing)
        return CacheError(
            f"A worker failed, {left} of {manifest.num_shards} shards are not made yet; build again with the same "
            f"arguments, and it goes on. {type(cause).__name__}: {cause}"
        )


class _Progress:
    """A line every few seconds: shards, rate, workers, what remains."""

    def __init__(self, manifest: Manifest, shards: Sequence[int], *, verbose: bool):
        self._sizes = {shard: manifest.span(shard)[2] - manifest.span(shard)[1] for shard in shards}
        self._verbose = verbose
        self._done: set[int] = set()
        self._examples = 0
        self._workers: dict[str, float] = {}  # when each was last heard of
        self._begin = self._first = self._last = time.monotonic()

    def add(self, shard: int, worker: str) -> None:
        now = time.monotonic()
        if self._done:
            self._examples += self._sizes[shard]
        else:
            self._first = (
                now  # before that the workers were loading the teacher: the rate is counted from here
            )
        self._done.add(shard)
        self._workers[worker] = now
        if now - self._last >= cache_build.LINE_EVERY_S:
            self._last = now
            self.say(self.line(now))

    def line(self, now: float) -> str:
        """Where the build stands."""
        seconds = max(now - self._first, 1e-9)
        rate = self._examples / seconds
        left = sum(size for shard, size in self._sizes.items() if shard not in self._done)
        # Who has given nothing for as long as four shards take is slow, or gone.
        patience = 4 * len(self._workers) * seconds / len(self._done) + cache_build.LINE_EVERY_S
        working = sum(now - heard < patience for heard in self._workers.values())
        text = f"{len(self._done):,} of {len(self._sizes):,} shards, {working} workers"
        if not rate:
            return text
        return f"{text}, {rate:,.0f} examples per second, about {cache_build.duration(left / rate)} left"

    def finish(self) -> None:
        seconds = time.monotonic() - self._begin
        self.say(
            f"{len(self._done):,} shards by {len(self._workers)} workers in {cache_build.duration(seconds)}"
        )

    def say(self, text: str) -> None:
        if self._verbose:
            print(f"teacher cache: {text}", flush=True)


def _build_in_cluster(
    folder: pathlib.Path,
    source: Source,
    views: Views,
    teacher: Any,
    layers: tuple[str, ...],
    preprocessing: Any,
    options: RayOptions,
    arguments: dict[str, Any],
) -> Manifest:
    import ray

    packed = ray_parcel.dumps(
        {
            "folder": folder,
            "source": source,
            "views": views,
            "given_teacher": ray_parcel.pickled_teacher(teacher),
            "classes": ray_parcel.classes_of(teacher),
            "layers": layers,
            "preprocessing": preprocessing,
            "options": options,
            "arguments": arguments,
        }
    )
    remote = ray.remote(num_cpus=0, max_retries=0)(_drive).options(**ray_cluster.environment(options))
    try:
        return ray.get(remote.remote(packed))
    except ray.exceptions.RayTaskError as error:
        cause = ray_cluster.cause_of(error)
        raise (type(cause)(str(cause)) if isinstance(cause, CacheError) else cause) from error


def _drive(packed: bytes) -> Manifest:
    """The driver, in a process of the cluster."""
    import keras

    from keras_kd.teachers.cache_teachers import as_cached_teacher

    given = pickle.loads(packed)
    with keras.saving.custom_object_scope(given["classes"]):
        teacher = pickle.loads(given["given_teacher"])
    runner = as_cached_teacher(teacher, given["layers"], given["preprocessing"])
    return build(
        given["folder"],
        given["source"],
        given["views"],
        runner,
        given_teacher=teacher,
        layers=given["layers"],
        preprocessing=given["preprocessing"],
        options=dataclasses.replace(given["options"], address=None, runtime_env=None),
        **given["arguments"],
    )


@contextlib.contextmanager
def _without_leftovers(folder: pathlib.Path) -> Iterator[None]:
    """Take away what workers have left that died."""
    try:
        yield
    finally:
        for leftover in folder.glob(f"shard-*{cache_store.TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def _names(shards: Sequence[int]) -> str:
    listed = ", ".join(str(shard) for shard in shards[:8]) + (" ..." if len(shards) > 8 else "")
    return f"{'shard' if len(shards) == 1 else 'shards'} {listed}"
