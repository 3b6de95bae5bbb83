"""Reads a few facts from a .tflite file and adds metadata to it, without parsing it whole.

The generated schema classes take a third of a second to import and trust the file; the tables needed
here are few, so they are read by a small reader that checks every offset. Field numbers are those of
tensorflow/compiler/mlir/lite/schema/schema.fbs, which may only ever grow.

Writing never touches the file's own bytes. A flatbuffer's offsets are relative and point forward, so a
new root table in front of the old file can share all of its children: the weights stay where they are,
aligned as the converter aligned them (microcontrollers need that), and the converter's own metadata stay.
"""

import struct
from collections.abc import Iterator, Mapping

from tflite_tools.errors import InvalidModelError

FILE_IDENTIFIER = b"TFL3"

# Fields of the Model table that the root copies as they are: (number, is an offset).
_MODEL_FIELDS = {"version": 0, "operator_codes": 1, "subgraphs": 2, "description": 3, "buffers": 4}
_METADATA_BUFFER, _METADATA, _SIGNATURES = 5, 6, 7
_ALIGNMENT = 16  # bytes, the schema's force_align of Buffer.data

VAR_HANDLE = 142  # BuiltinOperator numbers
CUSTOM = 32


class Table:
    """One flatbuffer table, read with every offset checked against the end of the file."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int) -> None:
        self.data = data
        self.position = position

    @classmethod
    def root(cls, data: bytes) -> "Table":
        """The Model table of a .tflite file."""
        if len(data) < 8 or data[4:8] != FILE_IDENTIFIER:
            raise InvalidModelError(
                f"These {len(data)} bytes are not a .tflite file: bytes 4 to 8 should be {FILE_IDENTIFIER!r} "
                f"and are {bytes(data[4:8])!r}."
            )
        return cls(data, _unpack(data, "<I", 0))

    def slot(self, field: int) -> int:
        """Position of a field's value; 0 when the field is absent."""
        vtable = self.position - _unpack(self.data, "<i", self.position)
        if 4 + 2 * field + 2 > _unpack(self.data, "<H", vtable):
            return 0
        offset = _unpack(self.data, "<H", vtable + 4 + 2 * field)
        return self.position + offset if offset else 0

    def scalar(self, field: int, form: str, default: int = 0) -> int:
        """A number; form is struct's, for example "<I"."""
        slot = self.slot(field)
        return _unpack(self.data, form, slot) if slot else default

    def table(self, field: int) -> "Table | None":
        """A table that this one points to."""
        slot = self.slot(field)
        return Table(self.data, _follow(self.data, slot)) if slot else None

    def _vector(self, field: int, width: int) -> tuple[int, int]:
        slot = self.slot(field)
        if not slot:
            return 0, 0
        start = _follow(self.data, slot)
        length = _unpack(self.data, "<I", start)
        if start + 4 + length * width > len(self.data):
            raise InvalidModelError(f"The .tflite file is broken: a vector of {length} ends behind the file.")
        return start + 4, length

    def tables(self, field: int) -> "list[Table]":
        """A vector of tables."""
        start, length = self._vector(field, 4)
        return [Table(self.data, _follow(self.data, start + 4 * k)) for k in range(length)]

    def integers(self, field: int, form: str = "i") -> list[int]:
        """A vector of numbers."""
        start, length = self._vector(field, struct.calcsize("<" + form))
        return list(struct.unpack_from(f"<{length}{form}", self.data, start)) if length else []

    def raw(self, field: int) -> bytes:
        """A vector of bytes, or a string."""
        start, length = self._vector(field, 1)
        return bytes(self.data[start : start + length])

    def text(self, field: int) -> str:
        """A string; undecodable bytes are replaced."""
        return self.raw(field).decode("utf-8", errors="replace")


def _unpack(data: bytes, form: str, position: int) -> int:
    if position < 0 or position + struct.calcsize(form) > len(data):
        raise InvalidModelError(
            f"The .tflite file is broken: it points to byte {position}, and has {len(data)} bytes."
        )
    return struct.unpack_from(form, data, position)[0]


def _follow(data: bytes, slot: int) -> int:
    return slot + _unpack(data, "<I", slot)


def operator_codes(data: bytes) -> list[int]:
    """BuiltinOperator numbers of all operator codes that the file declares.

    The number lives in an int32 field since schema 3a and in an int8 field before; the larger one holds.
    """
    return [
        max(code.scalar(0, "<b"), code.scalar(3, "<i")) for code in Table.root(data).tables(1)
    ]  # fmt: skip


def custom_codes(data: bytes) -> list[str]:
    """Names of the custom operators, Flex ones ("FlexFFT2D") included."""
    return [
        code.text(1)
        for code in Table.root(data).tables(1)
        if max(code.scalar(0, "<b"), code.scalar(3, "<i")) == CUSTOM
    ]


def keeps_state(data: bytes) -> bool:
    """Whether a run leaves something behind for the next one: resource variables, or variable tensors."""
    return has_resource_variables(data) or any(tensor.scalar(5, "<B") for _, tensor in _tensors(data))


def _tensors(data: bytes) -> Iterator[tuple[int, Table]]:
    """(subgraph number, tensor) of every tensor."""
    # A tensor takes more than four bytes; a file that seems to hold more of them counts some many times over.
    budget = len(data) // 4
    for number, graph in enumerate(Table.root(data).tables(2)):
        for tensor in graph.tables(0):
            budget -= 1
            if budget < 0:
                raise InvalidModelError("The .tflite file is broken: its graphs share their tensors.")
            yield number, tensor


def has_resource_variables(data: bytes) -> bool:
    """Whether the file holds resource variables, as streaming models do."""
    return VAR_HANDLE in operator_codes(data)


def tensor_types(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(subgraph number, TensorType number, name) of every tensor."""
    for number, tensor in _tensors(data):
        yield number, tensor.scalar(1, "<b"), tensor.text(3)


def operator_outputs(data: bytes) -> list[int]:
    """Tensor numbers that the main graph's operators write, in the order in which they run."""
    graphs = Table.root(data).tables(2)
    return [number for node in graphs[0].tables(3) for number in node.integers(2)] if graphs else []


def read_metadata(data: bytes) -> dict[str, bytes]:
    """The file's metadata entries: name to content, in the file's order.

    Raises:
      InvalidModelError: not a .tflite file, or an offset leads out of it.
    """
    model = Table.root(data)
    buffers = model.tables(4)
    found: dict[str, bytes] = {}
    # Entries of a damaged file may all name the same large buffer; honest ones do not overlap.
    budget = 2 * len(data)
    for entry in model.tables(_METADATA):
        number = entry.scalar(1, "<I")
        if number >= len(buffers):
            raise InvalidModelError(
                f"The .tflite file is broken: metadata {entry.text(0)[:60]!r} name buffer {number} of {len(buffers)}."
            )
        name, content = entry.text(0), buffers[number].raw(0)
        budget -= len(name) + len(content)
        if budget < 0:
            raise InvalidModelError("The .tflite file is broken: its metadata are larger than the file.")
        found[name] = content
    return found


def add_metadata(data: bytes, entries: Mapping[str, bytes]) -> bytes:
    """A copy of the file with further metadata entries; everything that was there stays as it was.

    Args:
      data: a .tflite file.
      entries: name to content. A name that is there already is replaced.

    Returns:
      The new file: a prefix (new root table, entries) and the old bytes behind it.

    Raises:
      InvalidModelError: not a .tflite file.
      ValueError: weights are stored outside the flatbuffer at absolute offsets (files over 2 GB).
    """
    model = Table.root(data)
    old_buffers = model.tables(4)
    # Buffer.offset above 1 is an absolute place in the file (the schema's way past 2 GB); it would move.
    if any(buffer.scalar(1, "<Q") > 1 for buffer in old_buffers):
        raise ValueError("This file keeps its weights at absolute offsets; metadata cannot be added to it.")
    if any(model.slot(field) for field in range(_SIGNATURES + 1, _SIGNATURES + 9)):
        raise ValueError(
            "This file uses a newer schema than this library knows; metadata cannot be added to it."
        )
    kept = [entry for entry in model.tables(_METADATA) if entry.text(0) not in entries]
    prefix = _Prefix()
    outside = {name: model.slot(field) for name, field in _MODEL_FIELDS.items()}
    # Root: soffset to the vtable, then eight fields of four bytes.
    vtable = prefix.add(struct.pack("<10H", 20, 36, *range(4, 36, 4)))
    prefix.align(4)
    root = prefix.add(struct.pack("<i", len(prefix.data) - vtable))
    prefix.data[0:4] = struct.pack("<I", root)
    prefix.add(struct.pack("<I", _unpack(data, "<I", outside["version"]) if outside["version"] else 0))
    for name in ("operator_codes", "subgraphs", "description"):
        prefix.add_offset_to_old(_follow(data, outside[name]) if outside[name] else None)
    buffers_slot = prefix.add(bytes(4))
    old = model.slot(_METADATA_BUFFER)
    prefix.add_offset_to_old(_follow(data, old) if old else None)
    metadata_slot = prefix.add(bytes(4))
    old = model.slot(_SIGNATURES)
    prefix.add_offset_to_old(_follow(data, old) if old else None)
    prefix.drop_absent_fields(vtable, root)

    prefix.point(buffers_slot)
    prefix.add(struct.pack("<I", len(old_buffers) + len(entries)))
    for buffer in old_buffers:
        prefix.add_offset_to_old(buffer.position)
    new_buffer_slots = [prefix.add(bytes(4)) for _ in entries]

    prefix.point(metadata_slot)
    prefix.add(struct.pack("<I", len(kept) + len(entries)))
    for entry in kept:
        prefix.add_offset_to_old(entry.position)
    new_entry_slots = [prefix.add(bytes(4)) for _ in entries]

    for number, (name, content) in enumerate(entries.items()):
        encoded = name.encode("utf-8")
        metadata_vtable = prefix.add(struct.pack("<4H", 8, 12, 4, 8))
        prefix.point(new_entry_slots[number])
        prefix.add(struct.pack("<i", len(prefix.data) - metadata_vtable))
        name_slot = prefix.add(bytes(4))
        prefix.add(struct.pack("<I", len(old_buffers) + number))
        prefix.point(name_slot)
        prefix.add(struct.pack("<I", len(encoded)) + encoded + b"\0")
        prefix.align(4)
        buffer_vtable = prefix.add(struct.pack("<3H", 6, 8, 4))
        prefix.align(4)
        prefix.point(new_buffer_slots[number])
        prefix.add(struct.pack("<i", len(prefix.data) - buffer_vtable))
        content_slot = prefix.add(bytes(4))
        prefix.align(_ALIGNMENT, ahead=4)  # the length stands in front of the aligned bytes
        prefix.point(content_slot)
        prefix.add(struct.pack("<I", len(content)) + content)
        prefix.align(4)
    return prefix.before(data)


class _Prefix:
    """The bytes in front of the old file; offsets into the old file are filled in at the end."""

    def __init__(self) -> None:
        self.data = bytearray(bytes(4) + FILE_IDENTIFIER)
        self._to_old: list[tuple[int, int | None]] = []

    def add(self, content: bytes) -> int:
        position = len(self.data)
        self.data += content
        return position

    def align(self, size: int, ahead: int = 0) -> None:
        self.data += bytes(-(len(self.data) + ahead) % size)

    def point(self, slot: int) -> None:
        """Lets the offset at `slot` point to what is added next."""
        self.data[slot : slot + 4] = struct.pack("<I", len(self.data) - slot)

    def add_offset_to_old(self, position: int | None) -> None:
        self._to_old.append((self.add(bytes(4)), position))

    def drop_absent_fields(self, vtable: int, root: int) -> None:
        """An offset of zero would point to itself: a field without a value leaves the vtable."""
        for slot, position in self._to_old:
            if position is None:
                field = (slot - root - 4) // 4
                self.data[vtable + 4 + 2 * field : vtable + 6 + 2 * field] = bytes(2)

    def before(self, old: bytes) -> bytes:
        self.align(_ALIGNMENT)
        for slot, position in self._to_old:
            if position is not None:
                self.data[slot : slot + 4] = struct.pack("<I", len(self.data) + position - slot)
        return bytes(self.data) + old
