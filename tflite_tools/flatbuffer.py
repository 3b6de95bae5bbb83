"""Reading a flatbuffer that nobody has verified.

The generated schema classes follow every offset they find: a damaged file ends in a traceback, in
gigabytes of memory or in another process's bytes. This reader checks each offset, length and count
against the file before it is used, names the place in its error, and stops a file whose offsets
point at the same bytes over and over (a few kilobytes can otherwise describe gigabytes).

Source: the FlatBuffers internals document, https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from tflite_tools.errors import InvalidModelError

_FORMATS = {
    "int8": struct.Struct("<b"),
    "uint8": struct.Struct("<B"),
    "uint16": struct.Struct("<H"),
    "int32": struct.Struct("<i"),
    "uint32": struct.Struct("<I"),
    "int64": struct.Struct("<q"),
    "uint64": struct.Struct("<Q"),
}
_INT32, _UINT16, _UINT32 = _FORMATS["int32"], _FORMATS["uint16"], _FORMATS["uint32"]

# What a reader may follow in all, weights not counted. True files stay below their own size (a test
# measures it on real ones): writers share vtables and little else.
_BUDGET_PER_BYTE = 2
_BUDGET_FLOOR = 1 << 16


# What stands in bytes 4 to 7 of a .tflite file.
IDENTIFIER = b"TFL3"


def model_table(data: bytes | bytearray) -> Table:
    """The root table of a .tflite file.

    Raises:
      InvalidModelError: the bytes are no .tflite file.
    """
    return Reader(data).root(IDENTIFIER)


class Reader:
    """The bytes of one file and how much of them has been followed so far."""

    def __init__(self, data: bytes | bytearray):
        self.data = data
        self.size = len(data)
        self.followed = 0
        self._limit = _BUDGET_PER_BYTE * self.size + _BUDGET_FLOOR

    def root(self, identifier: bytes) -> Table:
        """The root table, after a check of the length and of the four identifying bytes."""
        if self.size < 8:
            raise InvalidModelError(
                f"Not a .tflite file: it has {self.size} bytes, and the format is named in the first 8."
            )
        if self.data[4:8] != identifier:
            raise InvalidModelError(
                f"Not a .tflite file: bytes 4 to 7 are {bytes(self.data[4:8])!r}, expected {identifier!r}."
            )
        return Table(self, self.indirect(0, "model"), "model")

    def charge(self, size: int, label: str) -> None:
        """Counts bytes that are about to be read, and stops a file that is read many times over."""
        self.followed += size
        if self.followed > self._limit:
            raise InvalidModelError(
                f"Broken .tflite file: at {label} more than {self._limit:,} bytes have been followed in a "
                f"file of {self.size:,} bytes; its offsets point at the same bytes again and again."
            )

    def unpack(self, form: struct.Struct, position: int, label: str) -> int:
        """One number, if it lies inside the file."""
        if position < 0 or position + form.size > self.size:
            raise self.outside(position, form.size, label)
        return form.unpack_from(self.data, position)[0]

    def indirect(self, position: int, label: str) -> int:
        """Follows a forward offset and returns where it points."""
        target = position + self.unpack(_UINT32, position, label)
        if target == position or target + 4 > self.size:
            raise self.outside(target, 4, label)
        return target

    def outside(self, position: int, size: int, label: str) -> InvalidModelError:
        """The error for something that does not lie inside the file."""
        return InvalidModelError(
            f"Broken .tflite file: {label} would take {size:,} bytes at byte {position:,}, but the file "
            f"ends at byte {self.size:,}. It may be truncated or damaged."
        )


class Table:
    """One table of a flatbuffer. A slot is the number of a field in the schema, from 0."""

    __slots__ = ("_fields", "_reader", "label", "position")

    def __init__(self, reader: Reader, position: int, label: str):
        self._reader = reader
        self.position = position
        self.label = label
        vtable = position - reader.unpack(_INT32, position, label)
        length = reader.unpack(_UINT16, vtable, f"the list of fields of {label}")
        if length < 4 or length % 2 or vtable + length > reader.size:
            raise reader.outside(vtable, length, f"the list of fields of {label}")
        # Thousands of tables may share one short vtable; a long one is no table of this schema's.
        reader.charge(length if length > 128 else 32, label)
        self._fields = struct.unpack_from(f"<{(length - 4) // 2}H", reader.data, vtable + 4)

    def place(self, slot: int) -> int | None:
        """Where in the file a field's value stands; None for a field that was not written."""
        if slot >= len(self._fields) or not self._fields[slot]:
            return None
        return self.position + self._fields[slot]

    def has(self, slot: int) -> bool:
        """Whether the field was written."""
        return self.place(slot) is not None

    def integer(self, slot: int, kind: str, default: int = 0) -> int:
        """A scalar field; kind is 'int8', 'uint8', 'uint16', 'int32', 'uint32', 'int64' or 'uint64'."""
        position = self.place(slot)
        if position is None:
            return default
        return self._reader.unpack(_FORMATS[kind], position, f"field {slot} of {self.label}")

    def target(self, slot: int, label: str = "") -> int | None:
        """Where in the file that stands which a field points to."""
        position = self.place(slot)
        return None if position is None else self._reader.indirect(position, self._name(slot, label))

    def _name(self, slot: int, label: str) -> str:
        return label or f"field {slot} of {self.label}"

    def table(self, slot: int, label: str = "") -> Table | None:
        """A field that is another table (also the value of a union)."""
        target = self.target(slot, label)
        return None if target is None else Table(self._reader, target, self._name(slot, label))

    def span(self, slot: int, item_size: int, label: str = "") -> tuple[int, int] | None:
        """Where a vector's items start, and how many there are; all of them lie inside the file."""
        start, label = self.target(slot, label), self._name(slot, label)
        if start is None:
            return None
        count = self._reader.unpack(_UINT32, start, label)
        if start + 4 + count * item_size > self._reader.size:
            raise self._reader.outside(start + 4, count * item_size, label)
        return start + 4, count

    def vector(self, slot: int, dtype: str, label: str = "") -> np.ndarray:
        """A vector of numbers as a view into the file; empty when the field was not written."""
        kind = np.dtype(dtype).newbyteorder("<")
        found = self.span(slot, kind.itemsize, label)
        if found is None:
            return np.empty(0, kind)
        start, count = found
        self._reader.charge(4 + count * kind.itemsize, self._name(slot, label))
        return np.frombuffer(self._reader.data, kind, count, start)

    def text(self, slot: int, label: str = "") -> str:
        """A string; bytes that are no UTF-8 are replaced, because a name is for reading only."""
        return self.vector(slot, "uint8", label).tobytes().decode("utf-8", "replace")

    def tables(self, slot: int, label: str = "") -> Iterator[Table]:
        """A vector of tables, one after the other. Each is labelled with its number."""
        found = self.span(slot, 4, label)
        if found is None:
            return
        start, count = found
        label = self._name(slot, label)
        self._reader.charge(4 + 4 * count, label)
        for index in range(count):
            name = f"{label} {index}"
            yield Table(self._reader, self._reader.indirect(start + 4 * index, name), name)
