"""Arrays through a pipe, without pickle: what a child process says is data, never code."""

import json
import os
import struct
from typing import IO, Any

import numpy as np


def write_message(
    stream: IO[bytes], header: dict[str, Any], arrays: dict[str, np.ndarray] | None = None
) -> None:
    """Writes a JSON header and arrays. Arrays of strings travel as their bytes."""
    described: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for name, value in (arrays or {}).items():
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            items = [
                item if isinstance(item, bytes) else str(item).encode() for item in array.ravel().tolist()
            ]
            described.append(
                {
                    "name": name,
                    "dtype": "string",
                    "shape": array.shape,
                    "lengths": [len(item) for item in items],
                }
            )
            blobs.append(b"".join(items))
        else:
            described.append({"name": name, "dtype": array.dtype.str, "shape": array.shape})
            blobs.append(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    text = json.dumps({"header": header, "arrays": described}).encode()
    stream.write(struct.pack("<Q", len(text)) + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads what `write_message` wrote.

    Raises:
      EOFError: the other side is gone.
    """
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    message = json.loads(_exactly(stream, length))
    arrays = {}
    for entry in message["arrays"]:
        shape = tuple(entry["shape"])
        if entry["dtype"] == "string":
            items = [bytes(_exactly(stream, size)) for size in entry["lengths"]]
            strings = np.empty(len(items), dtype=object)
            strings[:] = items
            arrays[entry["name"]] = strings.reshape(shape)
        else:
            dtype = np.dtype(entry["dtype"])
            count = int(np.prod(shape, dtype=np.int64))
            arrays[entry["name"]] = np.frombuffer(_exactly(stream, count * dtype.itemsize), dtype).reshape(
                shape
            )
    return message["header"], arrays


def pipes_of_child() -> tuple[IO[bytes], IO[bytes]]:
    """In a child process: where requests come in and answers go out."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Native code prints to stdout; that must not end up among the answers.
    os.dup2(2, 1)
    return requests, answers


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = stream.readinto(view[have:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        have += got
    return data
