"""Data that every process reads by itself: array files, TFRecord files, a loader.

These sources hold paths and no examples. Pickled, they are a few hundred bytes, so that workers on other machines,
which see the same files under the same paths, can be given them.
"""

import functools
import hashlib
import mmap
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_sources import BLOCK_EXAMPLES, ArraySource, DirectorySource, Ranges, Source
from keras_kd.teachers.nests import leaves, map_leaves

_ZIP_HEADER = 30  # bytes before the name in a member's own header
_RECORD_FRAME = 16  # length (8), its checksum (4), the record, its checksum (4)
_OPEN_FILES = 16  # TFRecord files whose offsets are remembered


@dataclass(frozen=True)
class MappedArray:
    """Where an array lies in a file.

    Attributes:
      path: the file.
      offset: of the first value, in bytes.
      dtype, shape, order: as NumPy says them.
    """

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    order: str = "C"

    def open(self) -> np.memmap:
        """The array, of which only what is looked at comes into memory."""
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, self.order)  # type: ignore[call-overload]
        except (OSError, ValueError) as error:
            raise CacheError(f"{self.path!r} cannot be mapped into memory here: {error}") from error


class ArrayFiles(ArraySource):
    """Arrays in `.npy` or `.npz` files, mapped into memory.

    Args:
      files: a path, or a dict or tuple of paths; `MappedArray` in the place of a path is taken as it is.
      key: name of the array in a `.npz` file, which must not be compressed.

    Raises:
      CacheError: a file that is not there, holds no such array, or is compressed.

    Example:
      >>> import pickle, tempfile
      >>> path = f"{tempfile.mkdtemp()}/x.npy"
      >>> np.save(path, np.zeros((1000, 32, 32, 3), "uint8"))
      >>> source = ArrayFiles(path)
      >>> source.count, len(pickle.dumps(source)) < 1000
      (1000, True)
    """

    def __init__(self, files: Any, *, key: str = "x"):
        def located(file: Any) -> MappedArray:
            return file if isinstance(file, MappedArray) else _locate(pathlib.Path(file), key)

        self.files = map_leaves(located, files)
        super().__init__(map_leaves(lambda file: file.open(), self.files))

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayFiles, (self.files,)


def _locate(path: pathlib.Path, key: str) -> MappedArray:
    """Where the array of a file begins."""
    try:
        with path.open("rb") as file:
            if path.suffix != ".npz":
                return _header(file, str(path.resolve()))
            with zipfile.ZipFile(file) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                if key not in names:
                    raise CacheError(f"{str(path)!r} holds no array {key!r}; it holds {', '.join(names)}.")
                member = archive.getinfo(f"{key}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise CacheError(
                    f"{str(path)!r} is compressed, so that it cannot be mapped into memory: write it with np.savez or "
                    "np.save."
                )
            file.seek(member.header_offset)
            name_length, extra_length = struct.unpack("<HH", file.read(_ZIP_HEADER)[26:30])
            file.seek(name_length + extra_length, 1)
            return _header(file, str(path.resolve()))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"{str(path)!r} cannot be read as an array: {error}") from error


def _header(file: Any, path: str) -> MappedArray:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return MappedArray(path, file.tell(), dtype.str, tuple(shape), "F" if fortran else "C")


class _Gathered(Source):
    """A source whose batches are gathered example by example."""

    random_access = True

    def batches(self, ranges: Ranges, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        for start, stop in ranges:
            for first in range(start, stop, batch_size):
                indices = np.arange(first, min(first + batch_size, stop))
                yield indices, self.gather(indices)


class TFRecords(_Gathered):
    """Examples in TFRecord files, in the order of the files and of the records in them.

    The fingerprint covers the records as they are on the disk; they are parsed when they are needed. Where each record
    begins is read from the lengths in the file when it is first opened, and nothing has to be written beside it.

    Args:
      files: paths, or a pattern such as "/data/train-*.tfrecord" (its files are sorted). Not compressed.
      parse: from one serialized record (a string tensor) to the student's inputs, in TensorFlow operations.

    Raises:
      CacheError: no file, or one that is not a TFRecord file.

    Example: `TFRecords("/data/train-*.tfrecord", parse)`, with
    `parse = lambda record: tf.io.parse_single_example(record, {"x": tf.io.FixedLenFeature([8], tf.float32)})["x"]`.
    """

    def __init__(self, files: str | pathlib.Path | Sequence[str | pathlib.Path], parse: Callable[[Any], Any]):
        super().__init__()
        found: Sequence[str | pathlib.Path]
        if isinstance(files, (str, pathlib.Path)):
            found = sorted(pathlib.Path(files).parent.glob(pathlib.Path(files).name))
        else:
            found = list(files)
        if not found:
            raise CacheError(f"There are no TFRecord files {files!r}.")
        if not callable(parse):
            raise CacheError(
                f"parse must be a callable from a serialized record to the inputs, got {parse!r}."
            )
        self.files = [str(pathlib.Path(file).resolve()) for file in found]
        self.parse = parse
        counts = [len(record_offsets(file)) for file in self.files]
        self._begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._compiled: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}

    @property
    def count(self) -> int:
        """How many records there are."""
        return int(self._begins[-1])

    def records(self, indices: np.ndarray) -> list[bytes]:
        """The records as they are in the files."""
        wanted = np.asarray(indices, np.int64)
        places = np.searchsorted(self._begins, wanted, side="right") - 1
        records: list[bytes] = [b""] * len(wanted)
        for place in np.unique(places):
            path = self.files[place]
            offsets = _remembered_offsets(path)
            with open(path, "rb") as file:  # noqa: PTH123
                for position in np.flatnonzero(places == place):
                    file.seek(int(offsets[wanted[position] - self._begins[place]]))
                    (length,) = struct.unpack("<Q", file.read(12)[:8])
                    records[position] = file.read(length)
        return records

    def gather(self, indices: np.ndarray) -> Any:
        import tensorflow as tf

        with tf.device("CPU"):
            if self._compiled is None:
                self._compiled = self._parser()
            parsed = self._compiled(tf.constant(self.records(indices)))
        return map_leaves(lambda leaf: leaf.numpy(), parsed)

    def _parser(self) -> Any:
        import tensorflow as tf

        one = tf.function(self.parse).get_concrete_function(tf.TensorSpec([], tf.string))
        spec = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), one.structured_outputs
        )
        return tf.function(
            lambda records: tf.map_fn(self.parse, records, fn_output_signature=spec),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        end = self.count if stop is None else stop
        for first in range(start, end, BLOCK_EXAMPLES):
            records = self.records(np.arange(first, min(first + BLOCK_EXAMPLES, end)))
            digests = [np.frombuffer(hashlib.sha256(record).digest(), np.uint8) for record in records]
            yield np.array(digests)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _remembered_offsets(path: str) -> np.ndarray:
    return record_offsets(path)


def record_offsets(path: str) -> np.ndarray:
    """Where each record of a TFRecord file begins, int64 [records].

    Raises:
      CacheError: the lengths do not add up to the file: it is compressed, truncated, or something else.
    """
    size = pathlib.Path(path).stat().st_size
    offsets = []
    if size:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # noqa: PTH123
            position = 0
            while position + _RECORD_FRAME <= size:
                offsets.append(position)
                position += _RECORD_FRAME + struct.unpack_from("<Q", content, position)[0]
        if position != size:
            raise CacheError(
                f"{path!r} is not an uncompressed, whole TFRecord file: record {len(offsets) - 1:,} does not end in it."
            )
    return np.array(offsets, np.int64)


class Loader(_Gathered):
    """Examples that a function of the caller's loads, from a database, an object store, another file format.

    Args:
      load: a picklable callable from int64 indices [batch] to inputs [batch, ...] (arrays in any nesting); the same
        indices always give the same values.
      count: how many examples there are.

    Raises:
      CacheError: `load` is not callable, or `count` is not a number of examples.

    Example:
      >>> source = Loader(lambda indices: indices[:, None] * np.ones((1, 3), "float32"), count=10)
      >>> source.gather(np.array([2, 0])).tolist()
      [[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, load: Callable[[np.ndarray], Any], count: int):
        super().__init__()
        if not callable(load):
            raise CacheError(f"load must be a callable from indices to examples, got {load!r}.")
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise CacheError(f"count must be the number of examples, at least 1, got {count!r}.")
        self._load, self._count = load, int(count)

    @property
    def count(self) -> int:
        """How many examples there are."""
        return self._count

    def gather(self, indices: np.ndarray) -> Any:
        loaded = map_leaves(np.asarray, self._load(np.asarray(indices, np.int64)))
        lengths = {len(leaf) if leaf.ndim else None for leaf in leaves(loaded)}
        if lengths != {len(indices)}:
            raise CacheError(f"load gave arrays of lengths {lengths} for {len(indices)} examples.")
        return loaded

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        end = self.count if stop is None else stop
        for first in range(start, end, BLOCK_EXAMPLES):
            yield self.gather(np.arange(first, min(first + BLOCK_EXAMPLES, end)))


def without_examples(source: Source) -> Source:
    """The same data as a source that holds paths only, for workers.

    Raises:
      CacheError: the examples are in this process's memory, or can be read in one order only.
    """
    if isinstance(source, (ArrayFiles, TFRecords, Loader, DirectorySource)):
        return source
    if isinstance(source, ArraySource) and all(isinstance(leaf, np.memmap) for leaf in leaves(source.x)):
        return ArrayFiles(map_leaves(_whole_file, source.x))
    what = "arrays in this process's memory" if isinstance(source, ArraySource) else "a data set of batches"
    raise CacheError(
        f"x is {what}, and with engine='ray' the workers read the examples themselves. Give a .npy or .npz file (by "
        "its path, or as np.load(path, mmap_mode='r')), a folder of images, or a TFRecords or a Loader from "
        "keras_kd.teachers.file_sources."
    )


def _whole_file(array: np.memmap) -> MappedArray:
    path = str(array.filename)
    order = "C" if array.flags.c_contiguous else "F"
    whole = array.offset + array.nbytes == pathlib.Path(path).stat().st_size
    if not whole or not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise CacheError(
            f"x is a part of the file {path!r}. Give all of it, or write the part to a file of its own with np.save."
        )
    return MappedArray(str(pathlib.Path(path).resolve()), array.offset, array.dtype.str, array.shape, order)
