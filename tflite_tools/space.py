"""Where a file's bytes go, its metadata, and the files that were appended to it."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from dataclasses import dataclass

from tflite_tools.constants import is_constant
from tflite_tools.errors import InvalidModelError
from tflite_tools.flatbuffer import Reader
from tflite_tools.records import Record
from tflite_tools.schema import Model

_LONGEST_TEXT = 400
# The schema of TFLITE_METADATA (tflite-support, metadata_schema.fbs): slots of the root's texts.
_SUPPORT_TEXTS = {"name": 0, "description": 1, "version": 2, "author": 4, "license": 5}


@dataclass(frozen=True)
class MetadataInfo(Record):
    """One metadata entry; text is None for bytes that are none (or that nobody here can read)."""

    name: str
    size_bytes: int
    text: str | None


def read_metadata(model: Model) -> tuple[MetadataInfo, ...]:
    """The named metadata entries, with their text where there is one."""
    # Thousands of entries may name one large buffer, which is therefore read once.
    texts: dict[tuple[int, bool], str | None] = {}
    for name, buffer in model.metadata:
        key = (buffer, name == "TFLITE_METADATA")
        if key not in texts:
            content = model.buffer_bytes(buffer)
            texts[key] = _support_metadata(bytes(content)) if key[1] else _text(bytes(content[: 1 << 16]))
    return tuple(
        MetadataInfo(name, model.buffers[buffer][1], texts[buffer, name == "TFLITE_METADATA"])
        for name, buffer in model.metadata
    )


def _text(content: bytes) -> str | None:
    try:
        text = content.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not text or not text.replace("\n", " ").replace("\t", " ").isprintable():
        return None
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _support_metadata(content: bytes) -> str | None:
    """Name, description, author and license as TFLite Support's metadata writer left them."""
    try:
        root = Reader(content).root(b"M001")
        texts = {key: root.text(slot, key) for key, slot in _SUPPORT_TEXTS.items()}
    except InvalidModelError:
        return None  # somebody's metadata being damaged does not make the model unreadable
    return _text("; ".join(f"{key}: {text}" for key, text in texts.items() if text).encode())


def appended_files(data: bytes) -> tuple[tuple[str, ...], int, list[str]]:
    """Names and packed bytes of the files in a zip behind the model, and remarks about it.

    Source: https://ai.google.dev/edge/litert/models/metadata (associated files are appended as a zip).
    """
    if b"PK\x05\x06" not in data[-66000:]:
        return (), 0, []
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            start = min((entry.header_offset for entry in entries), default=len(data))
            return tuple(entry.filename for entry in entries), max(0, len(data) - start), []
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError, OverflowError) as error:
        return (), 0, [f"The zip of associated files behind the model cannot be read: {error}"]


def bytes_by_use(model: Model, used_by: dict[int, str], appended: int) -> dict[str, int]:
    """Every byte of the file once, by what it serves, largest first.

    Args:
      model: the parsed file.
      used_by: for buffers that operators read, the operator's name.
      appended: bytes of the zip behind the model.
    """
    metadata = {buffer for _, buffer in model.metadata}
    tensors = {t.buffer for graph in model.subgraphs for t in graph.tensors if is_constant(model, t)}
    uses: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    for buffer, region in enumerate(model.buffers):
        if not region[1] or region in seen:
            continue
        seen.add(region)
        if buffer in used_by:
            use = f"constants of {used_by[buffer]}"
        elif buffer in metadata:
            use = "metadata"
        elif buffer in tensors:
            use = "constants that no operator reads"
        else:
            use = "buffers that nothing uses"
        uses[use] += region[1]
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        region = operator.custom_options
        if region[1] and region not in seen:
            seen.add(region)
            uses[f"custom options of {operator.name}"] += region[1]
    if appended:
        uses["files appended as a zip"] = appended
    rest = len(model.data) - sum(uses.values())
    if rest > 0:
        uses["structure: names, shapes, scales, sparse indices, padding"] = rest
    return dict(uses.most_common())
