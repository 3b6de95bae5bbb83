"""Adds metadata to a .tflite file without touching its own bytes.

A flatbuffer's offsets are relative and point forward, so a new root table in front of the old file can share all of
its children: the weights stay where they are, aligned as the converter aligned them (microcontrollers need that), and
the converter's own metadata stay.
"""

import struct
from collections.abc import Mapping

from tflite_tools.file_facts import BUFFERS, METADATA, OPERATOR_CODES, SIGNATURES, SUBGRAPHS
from tflite_tools.flatbuffer import IDENTIFIER, model_table

# Further fields of the Model table.
_VERSION, _DESCRIPTION, _METADATA_BUFFER = 0, 3, 5
_ALIGNMENT = 16  # bytes, the schema's force_align of Buffer.data


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
    model = model_table(data)
    old_buffers = list(model.tables(BUFFERS, "buffer"))
    # Buffer.offset above 1 is an absolute place in the file (the schema's way past 2 GB); it would move.
    if any(buffer.integer(1, "uint64") > 1 for buffer in old_buffers):
        raise ValueError("This file keeps its weights at absolute offsets; metadata cannot be added to it.")
    if any(model.has(slot) for slot in range(SIGNATURES + 1, SIGNATURES + 9)):
        raise ValueError(
            "This file uses a newer schema than this library knows; metadata cannot be added to it."
        )
    kept = [entry for entry in model.tables(METADATA) if entry.text(0) not in entries]
    prefix = _Prefix()
    # Root: soffset to the vtable, then eight fields of four bytes.
    vtable = prefix.add(struct.pack("<10H", 20, 36, *range(4, 36, 4)))
    prefix.align(4)
    root = prefix.add(struct.pack("<i", len(prefix.data) - vtable))
    prefix.data[0:4] = struct.pack("<I", root)
    prefix.add(struct.pack("<I", model.integer(_VERSION, "uint32")))
    for slot in (OPERATOR_CODES, SUBGRAPHS, _DESCRIPTION):
        prefix.add_offset_to_old(model.target(slot))
    buffers_slot = prefix.add(bytes(4))
    prefix.add_offset_to_old(model.target(_METADATA_BUFFER))
    metadata_slot = prefix.add(bytes(4))
    prefix.add_offset_to_old(model.target(SIGNATURES))
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
        self.data = bytearray(bytes(4) + IDENTIFIER)
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
