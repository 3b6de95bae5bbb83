"""The bytes behind whatever a caller holds: an artifact, bytes, or a path."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact


def content_of(model: TFLiteArtifact | bytes | str | os.PathLike[str]) -> bytes:
    """The file's bytes.

    Raises:
      FileNotFoundError, IsADirectoryError: no such file.
      TypeError: something else was passed.
    """
    if isinstance(model, bytes):
        return model
    if isinstance(model, (bytearray, memoryview)):
        return bytes(model)
    if isinstance(model, (str, os.PathLike)):
        return pathlib.Path(model).read_bytes()
    content: Any = getattr(model, "content", None)
    if isinstance(content, bytes):
        return content
    raise TypeError(
        f"model must be a TFLiteArtifact, bytes, or the path of a .tflite file, got {type(model).__name__}. "
        "A Keras model goes through tflite_tools.convert first."
    )
