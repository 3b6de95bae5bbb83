"""The parser against the generated schema classes: every field of every real file, and damaged ones."""

import struct

import numpy as np
import pytest
import tiny_models
from ai_edge_litert import schema_py_generated as schema

from tflite_tools.errors import InvalidModelError
from tflite_tools.schema import names, parse

NUMBERS = {name: number for number, name in names("BuiltinOperator").items()}
TYPE_NUMBERS = {name: number for number, name in names("TensorType").items()}


def real_files(shared_data):
    return sorted(
        [*(shared_data / "tflite_zoo").glob("*.tflite"), *(shared_data / "mlperf_tiny").glob("*.tflite")]
    )


def ints(values):
    return () if values is None else tuple(int(v) for v in values)


def text(value):
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def assert_equal_to_generated(content):
    """Compares `parse` with the wheel's ModelT, field by field."""
    expected = schema.ModelT.InitFromPackedBuf(content)
    found = parse(content)
    assert found.version == expected.version
    assert found.description == text(expected.description)
    assert len(found.buffers) == len(expected.buffers)
    for index, buffer in enumerate(expected.buffers):
        data = b"" if buffer.data is None else bytes(np.asarray(buffer.data, np.uint8))
        assert bytes(found.buffer_bytes(index)) == data
    assert found.metadata == tuple((text(entry.name), entry.buffer) for entry in expected.metadata or ())
    assert len(found.subgraphs) == len(expected.subgraphs)
    for graph, other in zip(found.subgraphs, expected.subgraphs):
        assert graph.name == text(other.name)
        assert (graph.inputs, graph.outputs) == (ints(other.inputs), ints(other.outputs))
        assert len(graph.tensors) == len(other.tensors)
        for tensor, wanted in zip(graph.tensors, other.tensors):
            assert tensor.name == text(wanted.name)
            assert tensor.shape == ints(wanted.shape)
            assert tensor.shape_signature == (ints(wanted.shapeSignature) or ints(wanted.shape))
            assert TYPE_NUMBERS[tensor.dtype] == wanted.type
            assert (tensor.buffer, tensor.is_variable) == (wanted.buffer, wanted.isVariable)
            assert tensor.is_sparse == (wanted.sparsity is not None)
            scales = None if wanted.quantization is None else wanted.quantization.scale
            if scales is None or not len(scales):
                assert tensor.quantization is None
            else:
                np.testing.assert_array_equal(tensor.quantization.scales, np.asarray(scales, np.float32))
                np.testing.assert_array_equal(
                    tensor.quantization.zero_points, ints(wanted.quantization.zeroPoint)
                )
                assert tensor.quantization.dimension == wanted.quantization.quantizedDimension
        assert len(graph.operators) == len(other.operators or ())
        for operator, wanted in zip(graph.operators, other.operators or ()):
            code = expected.operatorCodes[wanted.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            assert (
                operator.name == text(code.customCode)
                if operator.is_custom
                else NUMBERS[operator.name] == number
            )
            assert operator.version == code.version
            assert (operator.inputs, operator.outputs) == (ints(wanted.inputs), ints(wanted.outputs))
    assert len(found.signatures) == len(expected.signatureDefs or ())
    for signature, wanted in zip(found.signatures, expected.signatureDefs or ()):
        assert (signature.key, signature.subgraph) == (text(wanted.signatureKey), wanted.subgraphIndex)
        assert signature.inputs == {text(m.name): m.tensorIndex for m in wanted.inputs or ()}
        assert signature.outputs == {text(m.name): m.tensorIndex for m in wanted.outputs or ()}


@pytest.mark.parametrize("make", [tiny_models.dense_float, tiny_models.conv_int8])
def test_parse_equals_the_generated_classes(make):
    assert_equal_to_generated(make())


def test_parse_equals_the_generated_classes_on_real_files(shared_data):
    files = real_files(shared_data)
    assert len(files) >= 50
    for path in files:
        assert_equal_to_generated(path.read_bytes())


def test_real_files_stay_far_below_the_reading_budget(shared_data):
    # The budget is twice the file's size; a true file that came near it would be refused by mistake.
    for path in real_files(shared_data):
        content = path.read_bytes()
        assert parse(content).followed < 1.5 * len(content), path.name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it has 0 bytes"),
        (b"TFL3", "it has 4 bytes"),
        (b"PK\x03\x04" + bytes(100), "expected b'TFL3'"),
        (b"\x00\x00\x00\x00TFL3" + bytes(100), "Broken .tflite file"),
        (b"\xff\xff\xff\xffTFL3" + bytes(100), "It may be truncated or damaged"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(content, says):
    with pytest.raises(InvalidModelError) as caught:
        parse(content)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused_or_loses_nothing():
    content = tiny_models.conv_int8()
    whole = parse(content)
    for length in range(len(content)):
        try:
            found = parse(content[:length])
        except InvalidModelError:
            continue
        # The builder pads the end; cutting padding off must not change what is read.
        assert found.subgraphs[0].operators[0].name == whole.subgraphs[0].operators[0].name
        assert len(content) - length < 16


def replaced(change):
    """The bytes of a small model after `change` was applied to its object tree."""
    builder = tiny_models.Builder()
    x = builder.tensor([2, 3])
    y = builder.tensor([2, 3])
    builder.op("RELU", [x], [y])
    builder.ends([x], [y])
    change(builder)
    return builder.pack()


def test_numbers_that_lead_nowhere_are_named():
    def tensor_buffer(b):
        b.graph.tensors[0].buffer = 9

    def operator_input(b):
        b.graph.operators[0].inputs = [7]

    def negative_output(b):
        b.graph.operators[0].outputs = [-1]

    def operator_code(b):
        b.graph.operators[0].opcodeIndex = 5

    def graph_input(b):
        b.graph.inputs = [2]

    def metadata(b):
        b.metadata("m", b"x")
        b.model.metadata[0].buffer = 77

    def signature(b):
        b.signature("s", {"x": 0}, {"y": 99})

    def signature_graph(b):
        b.signature("s", {}, {}, subgraph=3)

    def rank(b):
        b.graph.tensors[0].shape = [1] * 1000

    def no_graph(b):
        b.model.subgraphs = []

    def version(b):
        b.model.version = 2

    for change, says in (
        (tensor_buffer, "tensor 0 uses buffer 9, but the file has 1 buffers"),
        (operator_input, "the inputs of subgraph 0, operator 0 name tensor 7, but there are 2 tensors"),
        (negative_output, "the outputs of subgraph 0, operator 0 name tensor -1"),
        (operator_code, "uses operator code 5, but the file has 1 operator codes"),
        (graph_input, "the inputs of subgraph 0 name tensor 2"),
        (metadata, "metadata entry 0 names buffer 77"),
        (signature, "signature 0, output 0 names tensor 99"),
        (signature_graph, "signature 0 uses subgraph 3"),
        (rank, "tensor 0 has 1,000 dimensions"),
        (no_graph, "its list of subgraphs is empty"),
        (version, "schema version 2"),
    ):
        with pytest.raises(InvalidModelError) as caught:
            parse(replaced(change))
        assert says in str(caught.value), change.__name__


def test_an_absent_optional_input_is_no_error():
    def optional(b):
        b.graph.operators[0].inputs = [0, -1]

    assert parse(replaced(optional)).subgraphs[0].operators[0].inputs == (0, -1)


def test_an_operator_from_the_future_is_named_by_its_number():
    def future(b):
        b.model.operatorCodes[0].builtinCode = 4000

    assert parse(replaced(future)).subgraphs[0].operators[0].name == "BUILTIN_4000"


def test_a_file_that_is_read_over_and_over_is_stopped():
    """A few kilobytes whose subgraphs all point at the same thousands of tensors describe gigabytes."""
    builder = tiny_models.Builder()
    for _ in range(300):
        builder.tensor([1])
    content = bytearray(builder.pack())
    model = schema.Model.GetRootAs(content, 0)
    table = model._tab
    field = table.Offset(8)  # subgraphs: slot 2
    vector = table.Vector(field)
    graph = vector + int.from_bytes(content[vector : vector + 4], "little")
    # A new vector of 5,000 offsets, all to the one graph, is appended and the root is pointed at it. Offsets are
    # unsigned, so that they wrap around to point backwards, as in a file written to do harm.
    start = len(content)
    content += (5000).to_bytes(4, "little")
    for k in range(5000):
        content += ((graph - (start + 4 + 4 * k)) % 2**32).to_bytes(4, "little")
    content[table.Pos + field : table.Pos + field + 4] = (start - table.Pos - field).to_bytes(4, "little")
    with pytest.raises(InvalidModelError):
        parse(bytes(content))


def test_the_same_table_many_times_over_is_stopped():
    """The same with forward offsets only, which every reader follows."""
    # Made by hand, because no writer makes it: 200,000 subgraphs that are one and the same.
    count = 200_000
    root_vtable = struct.pack("<9H", 18, 20, 4, 0, 8, 0, 12, 0, 0) + b"\0\0"
    head = struct.pack("<I4s", 8 + len(root_vtable), b"TFL3")
    root_at = len(head) + len(root_vtable)
    root = struct.pack("<iI", root_at - len(head), 3)
    subgraphs_at = root_at + 20
    tensors = 2000
    body = bytearray(head + root_vtable + root + bytes(12))
    struct.pack_into("<I", body, root_at + 8, subgraphs_at - (root_at + 8))
    # subgraphs: `count` offsets to one graph, which has `tensors` offsets to one tensor
    body += struct.pack("<I", count)
    graph_vtable_at = subgraphs_at + 4 + 4 * count
    graph_at = graph_vtable_at + 8
    for k in range(count):
        at = subgraphs_at + 4 + 4 * k
        body += struct.pack("<I", graph_at - at)
    body += struct.pack("<4H", 6, 8, 4, 0)
    body += struct.pack("<iI", 8, 4)
    tensors_at = graph_at + 8
    tensor_vtable_at = tensors_at + 4 + 4 * tensors
    body += struct.pack("<I", tensors)
    for k in range(tensors):
        at = tensors_at + 4 + 4 * k
        body += struct.pack("<I", tensor_vtable_at + 4 - at)
    body += struct.pack("<2H", 4, 4) + struct.pack("<i", 4)
    # buffers: one, empty, shared with the tensor's table
    struct.pack_into("<I", body, root_at + 12, len(body) - (root_at + 12))
    body += struct.pack("<I", 1) + struct.pack("<I", 8) + struct.pack("<2H", 4, 4) + struct.pack("<i", 4)
    assert len(body) < 1_000_000
    with pytest.raises(InvalidModelError, match="again and again"):
        parse(bytes(body))
