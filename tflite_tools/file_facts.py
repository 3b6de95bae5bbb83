"""A few facts about a .tflite file, read without parsing it whole and without the schema's generated classes.

Those classes take a third of a second to import. Field numbers are those of
tensorflow/compiler/mlir/lite/schema/schema.fbs, which may only ever grow.
"""

from collections.abc import Iterator

from tflite_tools.errors import InvalidModelError
from tflite_tools.flatbuffer import Table, model_table

# Fields of the Model table.
OPERATOR_CODES, SUBGRAPHS, BUFFERS, METADATA, SIGNATURES = 1, 2, 4, 6, 7
VAR_HANDLE, CUSTOM = 142, 32  # BuiltinOperator numbers


def _number(code: Table) -> int:
    # In an int32 field since schema 3a and in an int8 field before; the larger one holds.
    return max(code.integer(0, "int8"), code.integer(3, "int32"))


def operator_codes(data: bytes) -> list[int]:
    """BuiltinOperator numbers of all operator codes that the file declares."""
    return [_number(code) for code in model_table(data).tables(OPERATOR_CODES)]


def custom_codes(data: bytes) -> list[str]:
    """Names of the custom operators, Flex ones ("FlexFFT2D") included."""
    return [code.text(1) for code in model_table(data).tables(OPERATOR_CODES) if _number(code) == CUSTOM]


def keeps_state(data: bytes) -> bool:
    """Whether a run leaves something behind for the next one: resource variables, or variable tensors."""
    return has_resource_variables(data) or any(tensor.integer(5, "uint8") for _, tensor in _tensors(data))


def _tensors(data: bytes) -> Iterator[tuple[int, Table]]:
    """(subgraph number, tensor) of every tensor."""
    for number, graph in enumerate(model_table(data).tables(SUBGRAPHS)):
        for tensor in graph.tables(0):
            yield number, tensor


def has_resource_variables(data: bytes) -> bool:
    """Whether the file holds resource variables, as streaming models do."""
    return VAR_HANDLE in operator_codes(data)


def tensor_types(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(subgraph number, TensorType number, name) of every tensor."""
    for number, tensor in _tensors(data):
        yield number, tensor.integer(1, "int8"), tensor.text(3)


def operator_outputs(data: bytes) -> list[int]:
    """Tensor numbers that the main graph's operators write, in the order in which they run."""
    main = next(model_table(data).tables(SUBGRAPHS), None)
    if main is None:
        return []
    return [number for node in main.tables(3) for number in node.vector(2, "int32").tolist()]


def signature_names(data: bytes) -> list[str]:
    """The keys of the signatures, in alphabetical order."""
    return sorted(entry.text(2) for entry in model_table(data).tables(SIGNATURES))


def read_metadata(data: bytes) -> dict[str, bytes]:
    """The file's metadata entries: name to content, in the file's order.

    Raises:
      InvalidModelError: not a .tflite file, or a broken one.
    """
    model = model_table(data)
    buffers = list(model.tables(BUFFERS, "buffer"))
    found: dict[str, bytes] = {}
    for entry in model.tables(METADATA, "metadata entry"):
        number, name = entry.integer(1, "uint32"), entry.text(0)
        if number >= len(buffers):
            raise InvalidModelError(
                f"Broken .tflite file: metadata {name[:60]!r} name buffer {number} of {len(buffers)}."
            )
        found[name] = buffers[number].vector(0, "uint8").tobytes()
    return found
