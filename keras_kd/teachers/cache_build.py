"""Building a cache: the teacher looks at every example in every view once, and its targets are stored."""

import errno
import itertools
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from keras_kd.teachers import cache_store, cache_teachers, cache_views
from keras_kd.teachers.cache_errors import CacheDiskFullError, CacheError, CacheMismatchError
from keras_kd.teachers.cache_layout import Layout
from keras_kd.teachers.cache_sources import Source
from keras_kd.teachers.cache_store import Manifest
from keras_kd.teachers.cache_teachers import CachedTeacher
from keras_kd.teachers.cache_views import Views
from keras_kd.teachers.nests import map_leaves

LINE_EVERY_S = 5.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Engine(Protocol):
    """What makes shards elsewhere, such as the workers of a cluster."""

    def prepare(self) -> None:
        """Called first, with the right to write into the folder; may set the fingerprint of the data."""

    def make_shards(self, *args: Any, **kwargs: Any) -> None:
        """In the place of `build_shards`, with its arguments."""


def build(
    folder: pathlib.Path,
    source: Source,
    views: Views,
    teacher: CachedTeacher,
    *,
    num_views: int,
    batch_size: int,
    top_k: int | None,
    dtype: str,
    resume: bool,
    verbose: bool,
    check: Callable[[Manifest], None],
    engine: Engine | None = None,
) -> Manifest:
    """Build what is missing of a cache, and return its manifest.

    `engine` reads the data and makes the shards elsewhere than in this process.

    Raises:
      CacheError: something in the folder was made otherwise, or is no cache.
      CacheLockedError: another process is at it.
      CacheDiskFullError: the disk is too full; what was built stays.
    """
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"path is {str(folder)!r}, which is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry.name for entry in folder.iterdir() if not _ours(entry.name)]
    if foreign and not (folder / cache_store.MANIFEST).is_file():
        raise CacheError(
            f"path is {str(folder)!r}, which holds other files ({', '.join(sorted(foreign)[:3])} ...) and no cache."
        )
    with cache_store.build_lock(folder):
        if engine is not None:
            engine.prepare()
        wanted = _new_manifest(source, views, teacher, num_views, batch_size, top_k, dtype)
        check(wanted)
        if not resume:
            _clear(folder)
        if (folder / cache_store.MANIFEST).is_file():
            manifest = _resumed(folder, wanted)
        else:
            manifest = wanted
            check_space(folder, manifest)
            # Without the digests of the data a manifest would be of no use: they come first.
            cache_store.write_atomically(folder / cache_store.BLOCKS, source.fingerprint()[1])
            cache_store.write_manifest(folder, manifest)
        for leftover in folder.glob(f"*{cache_store.TEMPORARY}"):
            leftover.unlink()
        make = engine.make_shards if engine is not None else build_shards
        make(folder, manifest, manifest.missing, source, views, teacher, batch_size, verbose=verbose)
    return manifest


def _ours(name: str) -> bool:
    return name in (cache_store.MANIFEST, cache_store.BLOCKS, cache_store.LOCK) or name.endswith(
        (".bin", cache_store.TEMPORARY)
    )


def _clear(folder: pathlib.Path) -> None:
    # The manifest goes first: shards without one are nothing, a manifest without shards is damage.
    (folder / cache_store.MANIFEST).unlink(missing_ok=True)
    for shard in folder.glob("shard-*.bin"):
        shard.unlink()


def _new_manifest(
    source: Source,
    views: Views,
    teacher: CachedTeacher,
    num_views: int,
    batch_size: int,
    top_k: int | None,
    dtype: str,
) -> Manifest:
    """The manifest of this cache before its first shard; the teacher answers a few examples for it."""
    augment, mix = views.probe(source)
    facts, _ = source.fingerprint()
    outputs, features, teacher_facts = teacher.probe(first_examples(source))
    if augment is not None or mix is not None:
        # The augmentation may change the size of an example.
        seen = next(views.batches(source, 0, [(0, min(source.count, 8))], 8))[1]
        outputs, features = teacher(seen)
    kinds = list(teacher.kinds)
    layout = Layout.of(outputs, features, top_k=top_k, dtype=dtype)
    teacher_facts.update(
        kinds=["logits" if k else kind for kind, k in zip(kinds, layout.top_k)],
        log_of=[bool(k) and kind == "softmax" for kind, k in zip(kinds, layout.top_k)],
        output_names=teacher.output_names,
        member_weights=teacher.member_weights,
    )
    size = cache_store.examples_per_shard(layout.record.itemsize, facts["examples"], num_views, batch_size)
    return Manifest(
        layout=layout,
        examples=facts["examples"],
        views=num_views,
        seed=views.seed,
        batch_size=batch_size,
        examples_per_shard=size,
        teacher=teacher_facts,
        data=facts,
        augment=augment,
        mix=mix,
        versions=versions(),
    )


def first_examples(source: Source) -> Any:
    """The first few examples as they are."""
    count = min(source.count, cache_teachers.PROBE_EXAMPLES)
    return next(source.batches([(0, count)], count))[1]


def _resumed(folder: pathlib.Path, wanted: Manifest) -> Manifest:
    """The manifest in the folder, if it is of the cache that is wanted."""
    found = cache_store.read_manifest(folder)
    problems = []
    for name in ("examples", "views", "seed"):
        here, there = getattr(wanted, name), getattr(found, name)
        if here != there and name != "examples":
            problems.append(f"the cache was made with {name}={there}, and {name}={here} is asked for.")
    if found.layout.to_json() != wanted.layout.to_json():
        problems.append("the cache was made with other outputs, layers, top_k or dtype.")
    problems += cache_teachers.differences(found.teacher, wanted.teacher)
    problems += cache_views.differences("augment", found.augment, wanted.augment)
    problems += cache_views.differences("mix", found.mix, wanted.mix)
    if found.data["digest"] != wanted.data["digest"]:
        problems.append("the cache was made from other data (count, order or content).")
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise CacheMismatchError(
            f"There is another cache at {str(folder)!r}:{listed}\nBuild at another path, or with resume=False, which "
            "deletes it."
        )
    lost = cache_store.damaged_shards(folder, found, list(found.shards), content=False)
    for shard in lost:
        del found.shards[shard]
    return found


def check_space(folder: pathlib.Path, manifest: Manifest) -> None:
    """Refuse to begin what will not fit."""
    needed = sum(manifest.shard_bytes(shard) for shard in manifest.missing)
    if needed > shutil.disk_usage(folder).free:
        raise disk_full(folder, manifest)


def disk_full(folder: pathlib.Path, manifest: Manifest, code: int | None = None) -> CacheDiskFullError:
    """The error that says how much is needed."""
    needed = sum(manifest.shard_bytes(shard) for shard in manifest.missing)
    free = shutil.disk_usage(folder).free
    return CacheDiskFullError(
        code or errno.ENOSPC,
        f"The teacher cache at {str(folder)!r} needs {needed:,} more bytes, and {free:,} are free there. What was "
        "built stays valid: free some space and build again, and it goes on. Fewer views or top_k need less",
    )


def build_shards(
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
    """Compute and store these shards; after each of them the manifest knows it."""
    if not shards:
        return
    check_space(folder, manifest)
    progress = Progress(
        sum(stop - start for _, start, stop in map(manifest.span, shards)), manifest, verbose=verbose
    )
    rows = max(batch_size, teacher.rows_per_call or 0)
    for view, group in itertools.groupby(sorted(shards), key=lambda shard: manifest.span(shard)[0]):
        numbers = list(group)
        ranges = [manifest.span(shard)[1:] for shard in numbers]
        batches = views.batches(source, view, ranges, rows)
        for shard in numbers:
            try:
                checksum = write_shard(folder, manifest, shard, batches, teacher, progress.add)
                manifest.shards[shard] = checksum
                cache_store.write_manifest(folder, manifest)
            except OSError as error:
                if error.errno not in NO_SPACE:
                    raise
                manifest.shards.pop(shard, None)
                raise disk_full(folder, manifest, error.errno) from error
    progress.finish()


def write_shard(
    folder: pathlib.Path,
    manifest: Manifest,
    shard: int,
    batches: Iterator[tuple[np.ndarray, Any]],
    teacher: CachedTeacher,
    done: Callable[[int], None],
    attempt: str = "",
) -> str:
    """Compute and store one shard; returns its SHA-256.

    Args:
      folder: of the cache.
      manifest: of the cache.
      shard: its number.
      batches: of the examples of this shard; no more than them are taken.
      teacher: who answers.
      done: told after every batch how many examples it had.
      attempt: tells processes apart that may be at the same shard.
    """
    _, start, stop = manifest.span(shard)
    writer = cache_store.ShardWriter(folder, shard, attempt)
    log_of = manifest.teacher["log_of"]
    try:
        while start < stop:
            item = next(batches, None)
            if item is None:
                raise CacheMismatchError("x yielded fewer examples than when it was read first.")
            outputs, features = teacher(item[1])
            if any(log_of):
                outputs = _logarithms(outputs, log_of)
            writer.write(manifest.layout.encode(outputs, features))
            start += len(item[0])
            done(len(item[0]))
        return writer.commit()
    except BaseException:
        writer.abandon()
        raise


def _logarithms(outputs: Any, log_of: Sequence[bool]) -> Any:
    """Probabilities as logits, where only the largest are kept: the rest is a log-sum-exp."""
    flags = iter(log_of)
    return map_leaves(lambda leaf: np.log(np.maximum(leaf, 1e-30)) if next(flags) else leaf, outputs)


def versions() -> dict[str, str]:
    """Of what decides what a shard holds."""
    from tflite_tools.version import __version__

    found = {"keras_kd": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("keras", "tensorflow"):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


class Progress:
    """A line every few seconds: how far, how fast, how long still."""

    def __init__(self, total: int, manifest: Manifest, *, verbose: bool):
        self._total, self._verbose = total, verbose
        self._done = 0
        self._begin = self._last = time.monotonic()
        self._bytes = manifest.layout.record.itemsize

    def add(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            rate = self._done / (now - self._begin)
            self._say(
                f"{self._done:,} of {self._total:,} ({self._done / self._total:.0%}), {rate:,.0f} per second, about "
                f"{duration((self._total - self._done) / rate)} left"
            )

    def finish(self) -> None:
        seconds = time.monotonic() - self._begin
        if seconds >= LINE_EVERY_S:
            self._say(f"{self._done:,} targets, {self._done * self._bytes:,} bytes, in {duration(seconds)}")

    def _say(self, text: str) -> None:
        if self._verbose:
            print(f"teacher cache: {text}", flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    Example:
      >>> duration(42.3), duration(4000)
      ('42 s', '1 h 6 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
