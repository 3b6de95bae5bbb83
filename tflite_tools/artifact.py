"""TFLiteArtifact: the bytes of a .tflite file together with where they came from."""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tflite_tools.errors import InvalidModelError
from tflite_tools.file_facts import read_metadata
from tflite_tools.metadata_writer import add_metadata

METADATA_NAME = "tflite_tools"


@dataclasses.dataclass(frozen=True)
class TFLiteArtifact:
    r"""A .tflite file in memory.

    Attributes:
      content: the file's bytes.
      provenance: how the file was made, as `convert` recorded it (versions, quantization, sha256 of the
        weights, recipe, seed ...); {} for a file that nobody recorded anything in.
      metadata: what the maker said about it: class_names, input_scaling, anything JSON can hold.
      notes: what the conversion had to say; empty when there was nothing.
      path: where it was loaded from; None for one that was made here or came as bytes.
      foreign: True when the bytes came from outside this process. Such files run in a child process.

    Example:
      >>> artifact = TFLiteArtifact(b"\x0c\x00\x00\x00TFL3\x04\x00\x04\x00\x04\x00\x00\x00")
      >>> artifact.size_bytes, artifact.provenance
      (16, {})
    """

    content: bytes = dataclasses.field(repr=False)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: pathlib.Path | None = dataclasses.field(default=None, compare=False)
    foreign: bool = dataclasses.field(default=False, compare=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        return len(self.content)

    @property
    def gzip_bytes(self) -> int:
        """Bytes of the file after gzip at level 9, as a download or an app package would hold it.

        The gzip header's time is left out, so that equal files give equal figures.
        """
        return len(gzip.compress(self.content, compresslevel=9, mtime=0))

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in output order, when the maker embedded them."""
        names = self.metadata.get("class_names")
        return None if names is None else tuple(map(str, names))

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the file, whole or not at all: to a temporary name first, then renamed.

        Args:
          path: the file; folders above it are created.

        Returns:
          The path as a pathlib.Path.
        """
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(self.content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def with_metadata(self, **entries: Any) -> "TFLiteArtifact":
        """A copy that carries further metadata; operators and weights stay byte for byte the same.

        Args:
          **entries: anything JSON can hold, for example class_names=["cat", "dog"].

        Returns:
          A new artifact. Its sha256 differs, its outputs do not.
        """
        return embed(self, provenance=self.provenance, metadata={**self.metadata, **entries})

    def __str__(self) -> str:
        origin = self.path or "in memory"
        scheme = self.provenance.get("quantization", "unknown")
        size = f"{self.size_bytes:,} bytes"
        return f"TFLiteArtifact({origin}, {size}, quantization: {scheme}, sha256 {self.sha256[:12]})"


def embed(
    artifact: TFLiteArtifact, *, provenance: Mapping[str, Any], metadata: Mapping[str, Any]
) -> TFLiteArtifact:
    """Writes provenance and metadata into the flatbuffer, under the metadata name "tflite_tools", as JSON.

    Raises:
      TypeError: something in them that JSON cannot hold; the message names it.
    """
    record = {"provenance": dict(provenance), "metadata": dict(metadata)}
    for part, entries in record.items():
        for name, value in entries.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{part}[{name!r}] cannot be written into the file: JSON holds text, numbers, lists and "
                    f"dictionaries, and this is {type(value).__name__} ({error})."
                ) from None
    content = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return dataclasses.replace(
        artifact,
        content=add_metadata(artifact.content, {METADATA_NAME: content}),
        # Through JSON and back, so that an artifact in memory equals the same one loaded from disk.
        **json.loads(content),
    )


def load(source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> TFLiteArtifact:
    """Loads a .tflite file, whoever made it, without running it and without TensorFlow.

    Args:
      source: a path, or the file's bytes.

    Returns:
      The artifact, marked as foreign: `predict` runs it in a child process, so that a file that
      aborts its process does not take the caller with it.

    Raises:
      FileNotFoundError: there is no such file.
      InvalidModelError: the file is empty, truncated, or no .tflite at all.
    """
    path: pathlib.Path | None = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    else:
        path = pathlib.Path(source)
        if path.is_dir():
            raise InvalidModelError(
                f"{path} is a folder. `load` reads .tflite files; `convert` takes SavedModels."
            )
        content = path.read_bytes()
    try:
        record = _read_record(content)
    except InvalidModelError as error:
        raise InvalidModelError(f"{path or 'The model'}: {error}") from None
    return TFLiteArtifact(
        content=content, path=path, foreign=True, provenance=record["provenance"], metadata=record["metadata"]
    )


def _read_record(content: bytes) -> dict[str, dict[str, Any]]:
    """Provenance and metadata; other people's entry of the same name is not an error, only not ours."""
    empty: dict[str, dict[str, Any]] = {"provenance": {}, "metadata": {}}
    raw = read_metadata(content).get(METADATA_NAME)
    if raw is None:
        return empty
    try:
        record = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return empty
    if not isinstance(record, dict):
        return empty
    return {name: value if isinstance(value := record.get(name), dict) else {} for name in empty}
