"""The data that a teacher looks at: arrays, streams of batches, or a folder of images.

A source knows how many examples there are, hands them out in order, and has a fingerprint: a digest for every block
of 1024 examples, so that a difference can be placed. Arrays and folders can also be read at random.
"""

import hashlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError
from keras_kd.teachers.nests import assemble, leaves, map_leaves, skeleton

BLOCK_EXAMPLES = 1024
_DIGEST_BYTES = 16
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")

Ranges = Sequence[tuple[int, int]]


class BlockDigests:
    """Takes examples in order, in any portions, and digests every 1024 of them."""

    def __init__(self) -> None:
        self.count = 0
        self.specs: list[str] | None = None
        self._finished: list[bytes] = []
        self._open = hashlib.sha256()

    def update(self, batch: Any) -> None:
        """Add the next examples."""
        flat = [np.ascontiguousarray(leaf) for leaf in leaves(batch)]
        specs = [f"{leaf.dtype.str}{list(leaf.shape[1:])}" for leaf in flat]
        if self.specs is None:
            self.specs = specs
        elif specs != self.specs:
            raise CacheError(
                f"All examples must have one shape and type; example {self.count} has {', '.join(specs)}, the first "
                f"had {', '.join(self.specs)}."
            )
        position, size = 0, len(flat[0])
        while position < size:
            step = min(size - position, BLOCK_EXAMPLES - self.count % BLOCK_EXAMPLES)
            for leaf in flat:
                self._open.update(leaf[position : position + step].tobytes())
            position += step
            self.count += step
            if self.count % BLOCK_EXAMPLES == 0:
                self._close()

    def _close(self) -> None:
        self._finished.append(self._open.digest()[:_DIGEST_BYTES])
        self._open = hashlib.sha256()

    @property
    def finished(self) -> bytes:
        """The digests of the blocks that are complete."""
        return b"".join(self._finished)

    def all(self) -> bytes:
        """The digests of all blocks; nothing can be added afterwards."""
        if self.count % BLOCK_EXAMPLES:
            self._close()
        return b"".join(self._finished)


class Source:
    """What all data have in common.

    Attributes:
      random_access: whether `gather` works.
      has_labels: whether the data carry labels of their own.
    """

    random_access = False
    has_labels = False

    def __init__(self) -> None:
        self._fingerprint: tuple[dict[str, Any], bytes] | None = None

    def batches(self, ranges: Ranges, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        """(indices, inputs) in order, for ranges in rising order; no batch crosses the end of a range."""
        raise NotImplementedError

    def gather(self, indices: np.ndarray) -> Any:
        """Inputs of these examples."""
        raise NotImplementedError

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Inputs in order, or what stands for them in the fingerprint, in portions of any size.

        A range begins and ends at a multiple of `BLOCK_EXAMPLES` or at the end; only with random access.
        """
        raise NotImplementedError

    def fingerprint(self) -> tuple[dict[str, Any], bytes]:
        """({"examples", "specs", "structure", "digest"}, block digests); reads all the data once."""
        if self._fingerprint is None:
            self.set_fingerprint(*self.digests())
        assert self._fingerprint is not None
        return self._fingerprint

    def digests(self, start: int = 0, stop: int | None = None) -> tuple[dict[str, Any], bytes]:
        """({"examples", "specs", "structure"}, block digests) of all examples or, with random access, of a range."""
        digests, structure = BlockDigests(), None
        for part in self.portions(start, stop):
            structure = skeleton(part)
            digests.update(part)
        return {"examples": digests.count, "specs": digests.specs, "structure": structure}, digests.all()

    def set_fingerprint(self, facts: dict[str, Any], blocks: bytes) -> None:
        """Take what `digests` said of all examples, here or in other processes."""
        if facts["examples"] == 0:
            raise CacheError("x holds no example.")
        self._fingerprint = {**facts, "digest": hashlib.sha256(blocks).hexdigest()}, blocks

    @property
    def count(self) -> int:
        """How many examples there are."""
        return int(self.fingerprint()[0]["examples"])


class ArraySource(Source):
    """Arrays in any nesting, memory-mapped ones too."""

    random_access = True

    def __init__(self, x: Any):
        super().__init__()
        self.x = map_leaves(_as_array, x)
        flat = leaves(self.x)
        lengths = {len(leaf) for leaf in flat}
        if len(lengths) != 1:
            raise CacheError(f"The arrays in x must have one length, got {sorted(lengths)}.")
        self._length = lengths.pop()

    @property
    def count(self) -> int:
        """How many examples there are."""
        return self._length

    def batches(self, ranges: Ranges, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        for start, stop in ranges:
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                yield np.arange(first, last), map_leaves(lambda leaf: leaf[first:last], self.x)  # noqa: B023

    def gather(self, indices: np.ndarray) -> Any:
        return map_leaves(lambda leaf: leaf[indices], self.x)

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        for first in range(start, self._length if stop is None else stop, BLOCK_EXAMPLES):
            yield map_leaves(lambda leaf: leaf[first : first + BLOCK_EXAMPLES], self.x)  # noqa: B023


class StreamSource(Source):
    """A `tf.data.Dataset` or `PyDataset` of batches, read from its beginning each time.

    Args:
      x: the data set, for what is trained on.
      open_stream: a function that gives an iterator over batches `x`, `(x, y)` or `(x, y, sample_weight)`.
    """

    def __init__(self, x: Any, open_stream: Callable[[], Iterator[Any]]):
        super().__init__()
        self.x = x
        self._open = open_stream
        first = next(self._open(), None)
        self.has_labels = isinstance(first, tuple) and len(first) > 1

    def batches_with_labels(self) -> Iterator[tuple[Any, ...]]:
        """The batches as the stream yields them."""
        for batch in self._open():
            yield batch if isinstance(batch, tuple) else (batch,)

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        for batch in self._open():
            inputs = batch[0] if isinstance(batch, tuple) else batch
            yield map_leaves(np.asarray, inputs)

    def batches(self, ranges: Ranges, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        _, expected = self.fingerprint()
        seen = BlockDigests()
        held: Any = None
        position = 0  # index of the first example that is held
        stream = self.portions()
        for start, stop in ranges:
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                while held is None or position + _length(held) < last:
                    part = next(stream, None)
                    if part is None:
                        raise CacheMismatchError("x yielded fewer examples than when it was read first.")
                    seen.update(part)
                    digests = seen.all() if seen.count == self.count else seen.finished
                    if not expected.startswith(digests):
                        raise CacheMismatchError(
                            "x yields other examples, or another order, each time it is read. Take shuffle() and "
                            "random augmentation out of it: cache.dataset shuffles, and augment= goes to build."
                        )
                    held = part if held is None else _joined(held, part)
                    if position + _length(held) <= first:
                        position, held = position + _length(held), None
                offset = first - position
                batch = map_leaves(lambda leaf: leaf[offset : offset + last - first], held)  # noqa: B023
                yield np.arange(first, last), batch
                held = map_leaves(lambda leaf: leaf[offset + last - first :], held)  # noqa: B023
                position = last


class DirectorySource(Source):
    """A folder of images, in the order of their paths; its sub-folders, if any, are the classes.

    The fingerprint covers the files as they are on the disk; images are decoded when they are needed.
    """

    random_access = True

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path
        self.files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in _IMAGES and file.is_file()
        )
        if not self.files:
            raise CacheError(f"There are no images ({', '.join(_IMAGES)}) in the folder {str(path)!r}.")
        names = [file.relative_to(path).parts for file in self.files]
        self.class_names = sorted({parts[0] for parts in names if len(parts) > 1})
        self.has_labels = bool(self.class_names) and all(len(parts) > 1 for parts in names)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([numbers[parts[0]] for parts in names], np.int32) if self.has_labels else None

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.files)

    def batches(self, ranges: Ranges, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
        for start, stop in ranges:
            for first in range(start, stop, batch_size):
                indices = np.arange(first, min(first + batch_size, stop))
                yield indices, self.gather(indices)

    def gather(self, indices: np.ndarray) -> Any:
        images = [self._decoded(self.files[index]) for index in indices]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise CacheError(
                f"The images in {str(self.path)!r} have several sizes ({', '.join(map(str, sorted(shapes)))}). Give a "
                "tf.data.Dataset that resizes them: keras.utils.image_dataset_from_directory(..., shuffle=False)."
            )
        return np.stack(images)

    def _decoded(self, file: pathlib.Path) -> np.ndarray:
        import tensorflow as tf

        try:
            return tf.io.decode_image(file.read_bytes(), channels=3, expand_animations=False).numpy()
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise CacheError(f"{str(file)!r} cannot be decoded as an image: {error}") from error

    def portions(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        # A digest of each file stands for its pixels, so that checking the data decodes nothing.
        for first in range(start, len(self.files) if stop is None else stop, BLOCK_EXAMPLES):
            files = self.files[first : first + BLOCK_EXAMPLES]
            digests = [
                hashlib.sha256(file.relative_to(self.path).as_posix().encode() + file.read_bytes()).digest()
                for file in files
            ]
            yield np.array([np.frombuffer(digest, np.uint8) for digest in digests])


def as_source(x: Any) -> Source:
    """The source for whatever was given as x.

    Raises:
      CacheError: nothing that examples could be read from.
    """
    if isinstance(x, Source):
        return x
    if isinstance(x, (str, pathlib.Path)):
        path = pathlib.Path(x)
        if path.suffix in (".npy", ".npz"):
            from keras_kd.teachers.file_sources import ArrayFiles

            return ArrayFiles(path)
        if not path.is_dir():
            raise CacheError(f"x is {str(x)!r}, which is neither a folder of images nor a .npy or .npz file.")
        return DirectorySource(path)
    if "tensorflow" in sys.modules:
        import tensorflow as tf

        if isinstance(x, tf.data.Dataset):
            if int(x.cardinality()) == tf.data.INFINITE_CARDINALITY:
                raise CacheError(
                    "x is an endless tf.data.Dataset; take(...) the batches that make one epoch."
                )
            return StreamSource(x, lambda: iter(x.as_numpy_iterator()))
    if "keras" in sys.modules:
        import keras

        if isinstance(x, keras.utils.PyDataset):
            if x.num_batches is None:
                raise CacheError("x is a PyDataset without a length; give it __len__.")
            return StreamSource(x, lambda: (_as_batch(x[index]) for index in range(x.num_batches)))
    return ArraySource(x)


def compare_data(source: Source, recorded: dict[str, Any], blocks: bytes) -> list[str]:
    """What differs between data and the data that a cache was made from, as sentences."""
    if isinstance(source, ArraySource) and source.count != recorded["examples"]:
        return [f"the cache was made from {recorded['examples']:,} examples, x has {source.count:,}."]
    facts, found = source.fingerprint()
    if facts["structure"] != recorded["structure"] or facts["specs"] != recorded["specs"]:
        return [
            f"the cache was made from examples of type and shape {', '.join(recorded['specs'])}, x has "
            f"{', '.join(facts['specs'])}."
        ]
    if facts["examples"] != recorded["examples"]:
        return [f"the cache was made from {recorded['examples']:,} examples, x has {facts['examples']:,}."]
    if facts["digest"] == recorded["digest"]:
        return []
    size = _DIGEST_BYTES
    differing = [
        i
        for i in range(math.ceil(len(found) / size))
        if found[i * size :][:size] != blocks[i * size :][:size]
    ]
    if not differing:
        return ["the file data.blocks does not belong to the manifest."]
    first = differing[0] * BLOCK_EXAMPLES
    return [
        "x holds other examples than the cache was made from, or the same in another order; the first difference is "
        f"among the examples {first:,} to {min(first + BLOCK_EXAMPLES, facts['examples']) - 1:,}."
    ]


def _as_array(leaf: Any) -> np.ndarray:
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise CacheError(
            "x must be an array of numbers [examples, ...] (or a dict or tuple of them), a batched tf.data.Dataset, a "
            f"PyDataset, or a folder of images; got {type(leaf).__name__}"
            + (f" of {array.dtype}." if isinstance(leaf, np.ndarray) else ".")
        )
    return array


def _as_batch(batch: Any) -> Any:
    return tuple(batch) if isinstance(batch, (list, tuple)) else batch


def _length(structure: Any) -> int:
    return len(leaves(structure)[0])


def _joined(first: Any, second: Any) -> Any:
    pairs = zip(leaves(first), leaves(second))
    return assemble(skeleton(first), [np.concatenate(pair) for pair in pairs])
