"""A .tflite file as plain records: what the schema says, checked, and nothing computed from it.

`parse` follows the LiteRT schema with the checked reader of `flatbuffer.py`; the names of operators
and types come from the generated classes that ai-edge-litert ships. Slot numbers are the positions
of the fields in `schema.fbs`, which never change; a test compares them with the generated classes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tflite_tools.errors import InvalidModelError
from tflite_tools.flatbuffer import IDENTIFIER, Reader, Table

# No kernel takes more than 8 dimensions; a shape of thousands is damage, and its product has no end.
_MAX_RANK = 32

# Bits of one element. STRING, RESOURCE and VARIANT have no fixed size.
BITS = {
    "FLOAT64": 64, "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8,
    "INT64": 64, "INT32": 32, "INT16": 16, "INT8": 8, "INT4": 4, "INT2": 2,
    "UINT64": 64, "UINT32": 32, "UINT16": 16, "UINT8": 8, "UINT4": 4, "BOOL": 8,
    "COMPLEX64": 64, "COMPLEX128": 128,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantization:
    """Scales and zero points as they stand in the file. details: NONE, CUSTOM, BLOCKWISE or MULTI_AXIS."""

    scales: np.ndarray
    zero_points: np.ndarray
    dimension: int
    details: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. `buffer` is the number of a buffer; buffer 0 and empty buffers hold no constant."""

    index: int
    name: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    dtype: str
    buffer: int
    quantization: Quantization | None
    is_variable: bool
    is_sparse: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of a graph; -1 among the inputs marks an optional input that is absent.

    `options` is kept for BATCH_MATMUL only.
    """

    index: int
    name: str
    version: int
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: tuple[int, ...]
    options: Table | None
    # Start and length of what a custom operator was given, as for buffers; some files keep their weights in there.
    custom_options: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Subgraph:
    """One graph: the main one is number 0; WHILE, IF, CALL_ONCE and signatures use the others."""

    index: int
    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """A named entry point: argument names to tensor numbers of one subgraph."""

    key: str
    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True, slots=True)
class Model:
    """A parsed file. `buffers[i]` is (start, length) within `data`; (0, 0) is an empty buffer."""

    data: bytes
    version: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    buffers: tuple[tuple[int, int], ...]
    metadata: tuple[tuple[str, int], ...]
    signatures: tuple[Signature, ...]
    followed: int

    def buffer_bytes(self, index: int) -> memoryview:
        """The bytes of one buffer, as a view into the file."""
        start, length = self.buffers[index]
        return memoryview(self.data)[start : start + length]


@functools.cache
def names(enumeration: str) -> dict[int, str]:
    """Number to name of one enumeration of the schema, e.g. 'BuiltinOperator'."""
    # Imported here: the generated module takes 0.3 s, and most of this package needs none of it.
    from ai_edge_litert import schema_py_generated

    members = vars(getattr(schema_py_generated, enumeration))
    return {value: name for name, value in members.items() if isinstance(value, int)}


def parse(data: bytes) -> Model:
    """Reads the structure of a .tflite file without running it and without copying its weights.

    Args:
      data: the whole file.

    Returns:
      A `Model` whose every index has been checked: a tensor's buffer, an operator's tensors and the
      subgraphs that operators and signatures call all exist.

    Raises:
      InvalidModelError: the bytes are no .tflite file, or are truncated or damaged.
    """
    reader = Reader(data)
    root = reader.root(IDENTIFIER)
    version = root.integer(0, "uint32")
    if version != 3:
        raise InvalidModelError(f"The file has schema version {version}; only version 3 is known.")
    codes = [_operator_code(table) for table in root.tables(1, "operator code")]
    buffers = _buffers(root.tables(4, "buffer"), reader)
    tables = list(root.tables(2, "subgraph"))
    if not tables:
        raise InvalidModelError("The .tflite file holds no graph: its list of subgraphs is empty.")
    subgraphs = tuple(
        _subgraph(index, table, codes, len(buffers), len(tables)) for index, table in enumerate(tables)
    )
    metadata = []
    for table in root.tables(6, "metadata entry"):
        metadata.append((table.text(0, "metadata name"), table.integer(1, "uint32")))
        _check_index(metadata[-1][1], len(buffers), f"{table.label} names buffer", "buffers")
    return Model(
        data=data,
        version=version,
        description=root.text(3, "description"),
        subgraphs=subgraphs,
        buffers=buffers,
        metadata=tuple(metadata),
        signatures=tuple(_signature(table, subgraphs) for table in root.tables(7, "signature")),
        followed=reader.followed,
    )


def _check_index(index: int, count: int, who: str, what: str) -> None:
    if not 0 <= index < count:
        raise InvalidModelError(f"Broken .tflite file: {who} {index}, but the file has {count} {what}.")


def _operator_code(table: Table) -> tuple[str, int, bool]:
    # Operators above 126 are written in the second field; older files have the first one only.
    code = max(table.integer(0, "int8"), table.integer(3, "int32"))
    name = names("BuiltinOperator").get(code, f"BUILTIN_{code}")
    is_custom = name == "CUSTOM"
    if is_custom:
        name = table.text(1, "custom operator's name") or "CUSTOM"
    return name, table.integer(2, "int32", 1), is_custom


def _buffers(tables: Iterable[Table], reader: Reader) -> tuple[tuple[int, int], ...]:
    result, regions = [], set()
    for table in tables:
        start, length = table.span(0, 1, f"data of {table.label}") or (0, 0)
        # Files beyond 2 GB keep their weights after the flatbuffer; 1 in `offset` means "not filled in".
        offset, size = table.integer(1, "uint64"), table.integer(2, "uint64")
        if offset > 1:
            if offset + size > reader.size:
                raise reader.outside(offset, size, f"data of {table.label}")
            start, length = offset, size
        region = (start, length) if length else (0, 0)
        if region not in regions:
            # Regions are scanned once each, so together they may not exceed the file.
            regions.add(region)
        result.append(region)
    total = sum(length for _, length in regions)
    if total > reader.size:
        raise InvalidModelError(
            f"Broken .tflite file: its buffers hold {total:,} bytes together, more than the file's "
            f"{reader.size:,}; they overlap."
        )
    return tuple(result)


def _indices(table: Table, slot: int, count: int, what: str, *, optional: bool = False) -> tuple[int, ...]:
    found = table.vector(slot, "int32", f"{what} of {table.label}")
    lowest = -1 if optional else 0
    if found.size and (int(found.min()) < lowest or int(found.max()) >= count):
        bad = int(found.min()) if int(found.min()) < lowest else int(found.max())
        raise InvalidModelError(
            f"Broken .tflite file: the {what} of {table.label} name tensor {bad}, but there are {count} tensors."
        )
    return tuple(found.tolist())


def _subgraph(index: int, table: Table, codes: list, buffers: int, subgraphs: int) -> Subgraph:
    tensors = tuple(
        _tensor(i, t, buffers) for i, t in enumerate(table.tables(0, f"subgraph {index}, tensor"))
    )
    count = len(tensors)
    operators = tuple(
        _operator(i, t, codes, count, subgraphs)
        for i, t in enumerate(table.tables(3, f"subgraph {index}, operator"))
    )
    return Subgraph(
        index=index,
        name=table.text(4, f"name of subgraph {index}"),
        tensors=tensors,
        operators=operators,
        inputs=_indices(table, 1, count, "inputs"),
        outputs=_indices(table, 2, count, "outputs"),
    )


def _tensor(index: int, table: Table, buffers: int) -> Tensor:
    shape = _shape(table, 0)
    code = table.integer(1, "int8")
    buffer = table.integer(2, "uint32")
    _check_index(buffer, buffers, f"{table.label} uses buffer", "buffers")
    quantization = table.table(4, f"quantization of {table.label}")
    return Tensor(
        index=index,
        name=table.text(3, f"name of {table.label}"),
        shape=shape,
        shape_signature=_shape(table, 7) or shape,
        dtype=names("TensorType").get(code, f"TYPE_{code}"),
        buffer=buffer,
        quantization=_quantization(quantization) if quantization else None,
        is_variable=bool(table.integer(5, "uint8")),
        is_sparse=table.has(6),
    )


def _shape(table: Table, slot: int) -> tuple[int, ...]:
    found = table.vector(slot, "int32", f"shape of {table.label}")
    if found.size > _MAX_RANK:
        raise InvalidModelError(f"Broken .tflite file: {table.label} has {found.size:,} dimensions.")
    return tuple(found.tolist())


def _quantization(table: Table) -> Quantization | None:
    details = {0: "NONE", 1: "CUSTOM", 2: "BLOCKWISE", 3: "MULTI_AXIS"}
    kind = table.integer(4, "uint8")
    scales = table.vector(2, "float32", f"scales in {table.label}")
    if not scales.size and not kind:
        return None  # the converter writes minimum and maximum, or nothing at all, for float tensors
    return Quantization(
        scales=scales,
        zero_points=table.vector(3, "int64", f"zero points in {table.label}"),
        dimension=table.integer(6, "int32"),
        details=details.get(kind, f"DETAILS_{kind}"),
    )


# Operators that run other subgraphs, and the slots of their options that hold the numbers.
_OPTIONS_READ = {"BATCH_MATMUL"}
_CALLS = {"CALL": (0,), "CALL_ONCE": (0,), "IF": (0, 1), "WHILE": (0, 1), "STABLEHLO_WHILE": (0, 1)}


def _operator(index: int, table: Table, codes: list, tensors: int, subgraphs: int) -> Operator:
    code = table.integer(0, "uint32")
    _check_index(code, len(codes), f"{table.label} uses operator code", "operator codes")
    name, version, is_custom = codes[code]
    # Options of the StableHLO operators live in a second union.
    options = table.table(4, f"options of {table.label}") or table.table(12, f"options of {table.label}")
    calls: tuple[int, ...] = ()
    if name in _CALLS and options is not None:
        calls = tuple(options.integer(slot, "int32") for slot in _CALLS[name])
        for called in calls:
            _check_index(called, subgraphs, f"{table.label} ({name}) calls subgraph", "subgraphs")
    return Operator(
        index=index,
        name=name,
        version=version,
        is_custom=is_custom,
        inputs=_indices(table, 1, tensors, "inputs", optional=True),
        outputs=_indices(table, 2, tensors, "outputs"),
        calls=calls,
        # A table costs ten times the bytes it describes; it is kept where its fields are read later.
        options=options if name in _OPTIONS_READ else None,
        custom_options=table.span(5, 1, f"custom options of {table.label}") or (0, 0),
    )


def _signature(table: Table, subgraphs: tuple[Subgraph, ...]) -> Signature:
    number = table.integer(4, "uint32")
    _check_index(number, len(subgraphs), f"{table.label} uses subgraph", "subgraphs")
    ends = []
    for slot, what in ((0, "input"), (1, "output")):
        arguments = {}
        for item in table.tables(slot, f"{table.label}, {what}"):
            tensor = item.integer(1, "uint32")
            _check_index(tensor, len(subgraphs[number].tensors), f"{item.label} names tensor", "tensors")
            arguments[item.text(0, f"name of {item.label}")] = tensor
        ends.append(arguments)
    return Signature(
        key=table.text(2, f"key of {table.label}"), subgraph=number, inputs=ends[0], outputs=ends[1]
    )
