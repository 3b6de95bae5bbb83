"""A cache's folder: numbered shards of fixed-size records, and the manifest that describes them.

    manifest.json       everything about the cache, and a SHA-256 for every shard that is finished
    shard-000000.bin    records of consecutive examples in one view
    data.blocks         a digest for every 1024 examples of the data
    build.lock          held by the process that builds

A shard or manifest is written under a temporary name, flushed to the disk, and renamed: at every moment the folder
holds whole files only, and a shard counts when the manifest knows its checksum.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError, CacheLockedError, CorruptShardError
from keras_kd.teachers.cache_layout import Layout

FORMAT = "keras_kd.teacher_cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BLOCKS = "data.blocks"
LOCK = "build.lock"
TEMPORARY = ".tmp"
_CHUNK_BYTES = 1 << 20
# A shard is what a killed build loses at most, and what a repair rebuilds.
_SHARD_EXAMPLES = 16384
_SHARD_BYTES = 256 << 20
_MAX_SHARDS = 4096
# Each mapped shard keeps a file open, of which a process may have 1024 by default on Linux. A view of more shards is
# read all the same: the file that was not read for longest is closed and opened again.
_OPEN_SHARDS = 512
# Fields of the manifest that JSON holds as they are.
_PLAIN = (
    "examples",
    "views",
    "seed",
    "batch_size",
    "examples_per_shard",
    "teacher",
    "data",
    "augment",
    "mix",
    "versions",
)


@dataclass
class Manifest:
    """What `manifest.json` holds.

    Attributes:
      layout: of a record.
      examples, views, seed, batch_size: as the cache was built.
      examples_per_shard: of every shard but the last of a view.
      teacher, data, augment, mix: who and what it was built with, see `cache_identity` and `cache_sources`.
      versions: of the software that built it.
      shards: {shard number: SHA-256} of the finished shards.
    """

    layout: Layout
    examples: int
    views: int
    seed: int
    batch_size: int
    examples_per_shard: int
    teacher: dict[str, Any]
    data: dict[str, Any]
    augment: dict[str, Any] | None
    mix: dict[str, Any] | None
    versions: dict[str, str]
    shards: dict[int, str] = field(default_factory=dict)

    @property
    def shards_per_view(self) -> int:
        """Shards that one view takes."""
        return -(-self.examples // self.examples_per_shard)

    @property
    def num_shards(self) -> int:
        """Shards of the whole cache."""
        return self.shards_per_view * self.views

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are not finished."""
        return [number for number in range(self.num_shards) if number not in self.shards]

    def span(self, shard: int) -> tuple[int, int, int]:
        """(view, first example, one past the last example) of a shard."""
        view, part = divmod(shard, self.shards_per_view)
        start = part * self.examples_per_shard
        return view, start, min(start + self.examples_per_shard, self.examples)

    def shard_bytes(self, shard: int) -> int:
        """Size of a shard's file."""
        _, start, stop = self.span(shard)
        return (stop - start) * self.layout.record.itemsize

    @property
    def payload_bytes(self) -> int:
        """Size of all records."""
        return self.examples * self.views * self.layout.record.itemsize

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "versions": self.versions,
            "examples": self.examples,
            "views": self.views,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "examples_per_shard": self.examples_per_shard,
            "record_bytes": self.layout.record.itemsize,
            "layout": self.layout.to_json(),
            "teacher": self.teacher,
            "data": self.data,
            "augment": self.augment,
            "mix": self.mix,
            "shards": {str(number): self.shards[number] for number in sorted(self.shards)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """From JSON."""
        return cls(
            layout=Layout.from_json(data["layout"]),
            shards={int(number): checksum for number, checksum in data["shards"].items()},
            **{name: data[name] for name in _PLAIN},
        )


def examples_per_shard(record_bytes: int, examples: int, views: int, batch_size: int) -> int:
    """A number of whole batches, so that an interrupted build sees the batches that an uninterrupted one sees.

    Example:
      >>> examples_per_shard(record_bytes=20, examples=60_000, views=8, batch_size=256)
      16384
    """
    wanted = min(_SHARD_EXAMPLES, max(1, _SHARD_BYTES // record_bytes))
    per_view = max(1, _MAX_SHARDS // views)
    wanted = max(wanted, -(-examples // per_view))
    return max(1, wanted // batch_size) * batch_size


def shard_path(folder: pathlib.Path, shard: int) -> pathlib.Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:06d}.bin"


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that its name never stands for half of it."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _rename(temporary, path)


def _rename(temporary: pathlib.Path, path: pathlib.Path) -> None:
    temporary.replace(path)
    if hasattr(os, "O_DIRECTORY"):
        # The new name itself has to reach the disk, too.
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    write_atomically(folder / MANIFEST, (json.dumps(manifest.to_json(), indent=1) + "\n").encode())


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Read `manifest.json`.

    Raises:
      CacheError: there is none, it is not readable, or of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "is not a folder" if not folder.is_dir() else f"holds no {MANIFEST}"
        raise CacheError(
            f"There is no teacher cache at {str(folder)!r}: it {what}. TeacherCache.build makes one."
        )
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise KeyError("format")
        version = data["format_version"]
        if version > FORMAT_VERSION:
            raise CacheError(
                f"The cache at {str(folder)!r} has format {version}; this version of keras_kd reads up to "
                f"{FORMAT_VERSION}. Use a later keras_kd, or build the cache again."
            )
        return Manifest.from_json(data)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"{str(path)!r} is not the manifest of a teacher cache ({error!r}).") from error


class ShardWriter:
    """Writes one shard under a temporary name; `commit` gives it its own.

    Args:
      folder: the cache's.
      shard: its number.
      attempt: a word in the temporary name, where several processes may write the same shard.
    """

    def __init__(self, folder: pathlib.Path, shard: int, attempt: str = ""):
        self._path = shard_path(folder, shard)
        middle = f".{attempt}" if attempt else ""
        self._temporary = self._path.with_name(f"{self._path.name}{middle}{TEMPORARY}")
        self._file = self._temporary.open("wb")
        self._digest = hashlib.sha256()

    def write(self, rows: np.ndarray) -> None:
        """Append records."""
        content = rows.tobytes()
        self._digest.update(content)
        self._file.write(content)

    def commit(self) -> str:
        """Finish the shard; returns its SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        _rename(self._temporary, self._path)
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class ShardReader:
    """Random access to the records through the page cache: shards are mapped into memory when first asked for."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self._folder, self._manifest = folder, manifest
        self._record = manifest.layout.record
        # Records are copied as bytes: NumPy copies field by field what it knows the fields of.
        self._bytes = np.dtype((np.void, self._record.itemsize))
        self._lock = threading.Lock()  # of the map of maps; batches are read in several threads
        self._maps: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def rows(self, view: int, examples: np.ndarray) -> np.ndarray:
        """Records of these examples, in their order."""
        # A batch of a large cache touches nearly as many shards as it has rows: in order, each is one slice.
        order = np.argsort(examples)
        parts, places = np.divmod(examples[order], self._manifest.examples_per_shard)
        firsts = np.flatnonzero(np.diff(parts, prepend=-1))
        found = np.empty(len(examples), dtype=self._bytes)
        for first, last in zip(firsts, [*firsts[1:], len(examples)]):
            shard = view * self._manifest.shards_per_view + int(parts[first])
            found[first:last] = self._map(shard)[places[first:last]]
        rows = np.empty_like(found)
        rows[order] = found
        return rows.view(self._record)

    def _map(self, shard: int) -> np.ndarray:
        with self._lock:
            mapped = self._maps.get(shard)
            if mapped is None:
                path = shard_path(self._folder, shard)
                # A plain array: each index of a memmap makes another memmap.
                mapped = self._maps[shard] = np.asarray(np.memmap(path, dtype=self._bytes, mode="r"))
                while len(self._maps) > _OPEN_SHARDS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return mapped


def file_checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def damaged_shards(
    folder: pathlib.Path, manifest: Manifest, shards: Iterable[int], *, content: bool
) -> dict[int, str]:
    """What is wrong with which finished shard.

    Args:
      folder: the cache's.
      manifest: its manifest.
      shards: which to look at.
      content: read and compare the checksums, not the sizes only.

    Returns:
      {shard number: one sentence}.
    """

    def problem(shard: int) -> str | None:
        path = shard_path(folder, shard)
        expected = manifest.shard_bytes(shard)
        if not path.is_file():
            return f"{path.name} is missing."
        size = path.stat().st_size
        if size != expected:
            return f"{path.name} has {size:,} bytes instead of {expected:,}: it was truncated or replaced."
        if content and file_checksum(path) != manifest.shards[shard]:
            return f"{path.name} was altered: its checksum differs from the manifest's."
        return None

    numbers = sorted(shards)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return {number: text for number, text in zip(numbers, pool.map(problem, numbers)) if text}


def raise_if_damaged(folder: pathlib.Path, problems: Mapping[int, str]) -> None:
    """Raises CorruptShardError that names every damaged shard."""
    if problems:
        raise CorruptShardError(
            f"The teacher cache at {str(folder)!r} is damaged:"
            + "".join(f"\n  - shard {number}: {text}" for number, text in problems.items())
            + "\ncache.repair(teacher, x) rebuilds just that.",
            tuple(problems),
        )


@contextlib.contextmanager
def build_lock(folder: pathlib.Path) -> Iterator[None]:
    """Hold the right to write into a cache; the operating system takes it back when the process dies.

    Raises:
      CacheLockedError: another process has it.
    """
    path = folder / LOCK
    with path.open("a+") as file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            owner = file.read().strip()
            raise CacheLockedError(
                f"Another process{f' (pid {owner})' if owner else ''} is building the teacher cache at "
                f"{str(folder)!r}. Wait for it to finish, or build at another path."
            )
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
