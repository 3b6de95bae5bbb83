"""What stands in the constant tensors of a file: element counts, zeros, duplicates."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict

import numpy as np

from tflite_tools.errors import InvalidModelError
from tflite_tools.op_costs import known
from tflite_tools.schema import BITS, Model, Tensor

# Below this, two equal buffers are a coincidence (a shape, a scalar), and nothing is saved by sharing them.
_DUPLICATE_BYTES = 64

# How many times the file's bytes may be scanned for zeros; true files need one.
_SCANS = 4

_NUMPY = {
    "FLOAT64": "<f8", "FLOAT32": "<f4", "FLOAT16": "<f2", "INT64": "<i8", "INT32": "<i4", "INT16": "<i2",
    "INT8": "i1", "UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "u1", "BOOL": "u1",
    "BFLOAT16": "<u2",
}  # fmt: skip


def is_constant(model: Model, tensor: Tensor) -> bool:
    """Whether the tensor's values stand in the file."""
    return model.buffers[tensor.buffer][1] > 0


def dense_bytes(tensor: Tensor) -> int | None:
    """Bytes of the tensor's elements; None for strings, resources and types this library does not know."""
    bits = BITS.get(tensor.dtype)
    return None if bits is None else (math.prod(known(tensor.shape)) * bits + 7) // 8


def check_size(model: Model, tensor: Tensor, where: str) -> None:
    """Raises InvalidModelError when a dense constant has fewer bytes than its shape needs."""
    needed, held = dense_bytes(tensor), model.buffers[tensor.buffer][1]
    if needed is not None and held and not tensor.is_sparse and held < needed:
        raise InvalidModelError(
            f"Broken .tflite file: {where}, tensor {tensor.index} ({tensor.name[:60]!r}) of shape {list(tensor.shape)} "
            f"and type {tensor.dtype} needs {needed:,} bytes, but its buffer holds {held:,}."
        )


class ZeroCounter:
    """Counts zeros of constant tensors, each stretch of the file once."""

    def __init__(self, model: Model):
        self._model = model
        self._counted: dict[tuple, int | None] = {}
        self._scanned = 0

    def zeros(self, tensor: Tensor) -> int | None:
        """Elements that stand for the real number 0: those equal to the zero point.

        Elements that a sparse encoding leaves out are zeros too. None where "zero" has no meaning here
        (strings, unknown types, a zero point per channel that differs between channels).
        """
        point = self._zero_point(tensor)
        if point is None:
            return None
        key = (tensor.buffer, tensor.dtype, point)
        if key not in self._counted:
            # One buffer under many types and zero points is nothing that a converter writes, and a way to keep
            # a reader busy for hours.
            self._scanned += self._model.buffers[tensor.buffer][1]
            if self._scanned > _SCANS * len(self._model.data):
                raise InvalidModelError(
                    "Broken .tflite file: its tensors read the same buffers again and again, as different numbers."
                )
            self._counted[key] = self._stored(tensor, point)
        counts = self._counted[key]
        if counts is None:
            return None
        total = math.prod(known(tensor.shape))
        if tensor.is_sparse:
            stored = self._model.buffers[tensor.buffer][1] * 8 // BITS[tensor.dtype]
            return max(0, total - (stored - counts))
        return min(counts, total)

    def _zero_point(self, tensor: Tensor) -> int | None:
        if tensor.quantization is None or not tensor.quantization.zero_points.size:
            return 0
        points = tensor.quantization.zero_points
        return int(points[0]) if bool((points == points[0]).all()) else None

    def _stored(self, tensor: Tensor, point: int) -> int | None:
        content = self._model.buffer_bytes(tensor.buffer)
        bits = BITS.get(tensor.dtype)
        if bits in (2, 4):
            packed = np.frombuffer(content, np.uint8)
            mask = (1 << bits) - 1
            count = sum(
                int(np.count_nonzero((packed >> shift) & mask == point & mask)) for shift in range(0, 8, bits)
            )
            # The last byte may be padded with zero bits, which are no elements.
            padding = len(packed) * (8 // bits) - math.prod(known(tensor.shape))
            return count - padding if 0 < padding < 8 // bits and point == 0 else count
        if tensor.dtype not in _NUMPY:
            return None
        kind = np.dtype(_NUMPY[tensor.dtype])
        values = np.frombuffer(content, kind, len(content) // kind.itemsize)
        if tensor.dtype == "BFLOAT16":
            values = values & 0x7FFF  # minus zero is zero
        if point:
            return int(np.count_nonzero(values == point))
        return values.size - int(np.count_nonzero(values))


def duplicated_buffers(model: Model) -> list[tuple[int, ...]]:
    """Groups of buffers that hold the same bytes in different places of the file."""
    alike: dict[tuple[int, bytes], dict[int, int]] = defaultdict(dict)
    for index, (start, length) in enumerate(model.buffers):
        if length >= _DUPLICATE_BYTES:
            # A few bytes of the middle tell nearly all apart, so that hardly anything has to be hashed.
            middle = start + length // 2
            alike[(length, model.data[middle : middle + 16])].setdefault(start, index)
    groups: dict[tuple[int, bytes], dict[int, int]] = defaultdict(dict)
    for (length, _), places in alike.items():
        if len(places) < 2:
            continue
        for start, index in places.items():
            digest = hashlib.blake2b(model.buffer_bytes(index), digest_size=16).digest()
            groups[(length, digest)][start] = index
    return sorted(tuple(sorted(found.values())) for found in groups.values() if len(found) > 1)
