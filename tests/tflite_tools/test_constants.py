"""Zeros, sparse encodings, duplicates and sizes of constant tensors."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import Builder, conv_int8

from tflite_tools import inspect, space
from tflite_tools.errors import InvalidModelError


def only_constant(*args, **kwargs):
    """The TensorInfo of one constant, in a file that holds nothing else."""
    b = Builder()
    index = b.tensor(*args, **kwargs)
    b.ends([], [index])
    return inspect(b.pack()).tensors[0]


@pytest.mark.parametrize(
    ("dtype", "values", "kwargs", "zeros"),
    [
        (np.float32, [0.0, -0.0, 1e-45, np.nan, np.inf, 2.0], {}, 2),  # a denormal is not zero; minus zero is
        (np.float16, [0.0, -0.0, 6e-8, 1.0], {}, 2),
        (np.int8, [0, 0, 1, -128], {}, 2),
        # What stands for the real 0 is the zero point, not the stored 0.
        (np.uint8, [128, 128, 128, 0], {"scales": [0.1], "zero_points": [128]}, 3),
        (np.int8, [-3, 0, 0, 5], {"scales": [0.1], "zero_points": [-3]}, 1),
        (np.int16, [0, 256, 1], {}, 1),  # 256 has a zero byte and is not zero
        (np.int32, [0, 65536], {}, 1),
    ],
)
def test_zeros_by_hand(dtype, values, kwargs, zeros):
    found = only_constant([len(values)], dtype, values, **kwargs)
    assert (found.zeros, found.sparsity) == (zeros, zeros / len(values))


def test_zero_points_that_differ_between_channels_leave_zeros_unknown():
    found = only_constant([2, 2], np.int8, [[0, 1], [2, 3]], scales=[1.0, 1.0], zero_points=[0, 2])
    assert (found.zeros, found.sparsity) == (None, None)


@pytest.mark.parametrize(
    ("kind", "shape", "raw", "zeros"),
    [
        # Low nibble first: 0, 1 | 15, 0 | 0 and a padding nibble that is no element.
        (schema.TensorType.INT4, [5], bytes([0x10, 0x0F, 0x00]), 3),
        (schema.TensorType.INT4, [4], bytes([0x10, 0x0F]), 2),
        (schema.TensorType.INT2, [8], bytes([0b01_00_11_00, 0b00_00_00_10]), 5),
        (schema.TensorType.BFLOAT16, [3], bytes([0, 0, 0, 0x80, 0x80, 0x3F]), 2),  # 0, -0, 1
        (schema.TensorType.BOOL, [4], bytes([0, 1, 0, 1]), 2),
    ],
)
def test_zeros_of_packed_and_unusual_types(kind, shape, raw, zeros):
    assert only_constant(shape, kind, raw=raw).zeros == zeros


def test_strings_have_no_zeros_and_no_fixed_size():
    found = only_constant([2], schema.TensorType.STRING, raw=b"\x01\x00\x00\x00 whatever")
    assert (found.zeros, found.sparsity, found.dtype) == (None, None, "string")


def sparse(values_kept, shape):
    b = Builder()
    index = b.tensor(shape, np.float32, values_kept)
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = [0, 1]
    dense, csr = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    dense.format, dense.denseSize = schema.DimensionType.DENSE, shape[0]
    csr.format = schema.DimensionType.SPARSE_CSR
    sparsity.dimMetadata = [dense, csr]
    b.graph.tensors[index].sparsity = sparsity
    b.ends([], [index])
    return inspect(b.pack())


def test_a_sparse_encoding_counts_what_it_left_out():
    # 100 x 50 elements, of which 7 are stored, one of them a zero that fills a block.
    found = sparse([1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0], [100, 50])
    assert found.tensors[0].encoding == "sparse"
    assert found.tensors[0].zeros == 5000 - 6
    assert found.tensors[0].constant_bytes == 28


def test_a_sparse_encoding_made_by_the_converter():
    import keras
    import tensorflow as tf

    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(128, 256)).astype(np.float32)
    kernel[rng.random(kernel.shape) < 0.9] = 0
    model = keras.Sequential([keras.Input((128,)), keras.layers.Dense(256, use_bias=False)])
    model.layers[0].kernel.assign(kernel)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    found = inspect(converter.convert())
    (weights,) = [tensor for tensor in found.tensors if tensor.encoding == "sparse"]
    assert weights.zeros == int((kernel == 0).sum())
    assert found.sparsity == weights.zeros / kernel.size
    assert found.parameters == kernel.size and found.macs == kernel.size
    assert found.quantization_scheme == "float32"


def test_a_sparse_shape_beyond_all_memory_costs_nothing():
    # 2^31 by 2^30 elements: 8 EiB if anybody made it dense.
    found = sparse([1.0], [2**31 - 1, 2**30])
    assert found.tensors[0].zeros == (2**31 - 1) * 2**30 - 1


def test_a_constant_with_too_few_bytes_is_refused():
    b = Builder()
    b.tensor([10, 10], np.float32, raw=bytes(396), name="short")
    with pytest.raises(
        InvalidModelError, match=r"'short'.*\[10, 10\].*needs 400 bytes, but its buffer holds 396"
    ):
        inspect(b.pack())


def test_one_buffer_under_a_thousand_zero_points_is_refused():
    # Each scan of the megabyte takes milliseconds; a file of 100 MB could ask for 100,000 of them.
    b = Builder()
    first = b.tensor([1 << 20], np.int8, np.zeros(1 << 20, np.int8))
    for point in range(1000):
        index = b.tensor([1 << 20], np.int8, scales=[1.0], zero_points=[point])
        b.graph.tensors[index].buffer = b.graph.tensors[first].buffer
    with pytest.raises(InvalidModelError, match="again and again"):
        inspect(b.pack())


def test_one_buffer_under_a_thousand_metadata_names_is_read_once(monkeypatch):
    b = Builder()
    b.metadata("TFLITE_METADATA", bytes(1 << 22))
    for number in range(3000):
        entry = schema.MetadataT()
        entry.name, entry.buffer = "TFLITE_METADATA" if number % 2 else f"m{number}", 1
        b.model.metadata.append(entry)
    reads = []
    read = space._support_metadata
    monkeypatch.setattr(
        space, "_support_metadata", lambda content: reads.append(len(content)) or read(content)
    )
    assert len(inspect(b.pack()).metadata) == 3001
    assert reads == [1 << 22]  # and not 1,500 copies of 4 MB


def test_duplicated_buffers_are_grouped_and_counted_once():
    b = Builder()
    content = np.arange(100, dtype=np.float32)
    indices = [b.tensor([100], np.float32, content) for _ in range(3)]
    b.tensor([100], np.float32, content + 1)
    b.tensor([4], np.float32, content[:4])  # too small to matter, though it is stored twice
    b.tensor([4], np.float32, content[:4])
    b.ends([], indices)
    found = inspect(b.pack())
    assert found.duplicated_buffers == ((1, 2, 3),)
    assert found.duplicated_bytes == 2 * 400


def test_two_tensors_on_one_buffer_are_no_duplicate():
    b = Builder()
    first = b.tensor([100], np.float32, np.ones(100))
    second = b.tensor([100], np.float32)
    b.graph.tensors[second].buffer = b.graph.tensors[first].buffer
    assert inspect(b.pack()).duplicated_buffers == ()


def test_bytes_by_use_add_up_to_the_file():
    for content in (conv_int8(), Builder().pack()):
        found = inspect(content)
        assert sum(found.bytes_by_use.values()) == len(content) == found.size_bytes
    uses = inspect(conv_int8()).bytes_by_use
    assert uses["constants of CONV_2D"] == 72 + 16  # weights in int8, four biases in int32
    assert uses["metadata"] == 8


def test_bytes_of_real_files_add_up(shared_data):
    for path in sorted((shared_data / "tflite_zoo").glob("*.tflite")):
        found = inspect(path)
        assert sum(found.bytes_by_use.values()) == path.stat().st_size, path.name


def test_weights_in_the_options_of_a_custom_operator_are_named(shared_data):
    # A vocabulary for SentencePiece of 1.2 MB, which is nearly the whole file.
    found = inspect(shared_data / "tflite_zoo" / "tfls_wiki40b-lm-en.tflite")
    assert found.bytes_by_use["custom options of FlexSentencepieceOp"] > 0.99 * found.size_bytes
