"""Multiply-accumulates against counts done by hand, and against published figures of known networks."""

import pytest
from ai_edge_litert import schema_py_generated as schema
from tiny_models import Builder

from tflite_tools import inspect


def macs_of(name, inputs, output, constant=(), **kwargs):
    """MACs of one operator; `inputs` are shapes (None: absent), `constant` says which of them are in the file."""
    b = Builder()
    indices = []
    for number, shape in enumerate(inputs):
        if shape is None:
            indices.append(-1)
        elif number in constant:
            size = 4
            for length in shape:
                size *= length
            indices.append(b.tensor(shape, raw=bytes(size)))
        else:
            indices.append(b.tensor(shape))
    out = b.tensor(output)
    b.op(name, indices, [out], **kwargs)
    b.ends([i for i in indices[:1] if i >= 0], [out])
    return inspect(b.pack()).operators[0].macs


@pytest.mark.parametrize(
    ("name", "inputs", "output", "constant", "expected"),
    [
        # 8x8 positions, 16 filters, each 3x3 over 4 channels.
        ("CONV_2D", [(1, 10, 10, 4), (16, 3, 3, 4), (16,)], (1, 8, 8, 16), (1, 2), 8 * 8 * 16 * 3 * 3 * 4),
        # Two groups: a filter sees half of the 8 input channels, and its shape says so.
        ("CONV_2D", [(1, 8, 8, 8), (6, 1, 1, 4)], (1, 8, 8, 6), (1,), 8 * 8 * 6 * 4),
        # Every output element of a depthwise convolution sees one channel only.
        ("DEPTHWISE_CONV_2D", [(1, 9, 9, 3), (1, 3, 3, 6)], (1, 7, 7, 6), (1,), 7 * 7 * 6 * 9),
        # A transposed convolution spreads every input element over 2x2 positions of 5 channels.
        ("TRANSPOSE_CONV", [(4,), (5, 2, 2, 3), (1, 4, 4, 3)], (1, 8, 8, 5), (0, 1), 4 * 4 * 3 * 2 * 2 * 5),
        ("FULLY_CONNECTED", [(7, 20), (10, 20), None], (7, 10), (1,), 7 * 10 * 20),
        # Rows may be spread over more axes than one.
        ("FULLY_CONNECTED", [(2, 5, 20), (10, 20)], (2, 5, 10), (1,), 2 * 5 * 10 * 20),
        ("CONV_3D", [(1, 4, 6, 6, 2), (3, 3, 3, 2, 8)], (1, 2, 4, 4, 8), (1,), 2 * 4 * 4 * 8 * 27 * 2),
        (
            "CONV_3D_TRANSPOSE",
            [(5,), (2, 2, 2, 8, 3), (1, 2, 2, 2, 3)],
            (1, 4, 4, 4, 8),
            (0, 1),
            8 * 3 * 8 * 8,
        ),
        ("BATCH_MATMUL", [(2, 3, 4, 5), (2, 3, 5, 6)], (2, 3, 4, 6), (), 2 * 3 * 4 * 6 * 5),
        ("SVDF", [(1, 40), (64, 40), (64, 10), (32,)], (1, 32), (1, 2, 3), 64 * 40 + 64 * 10),
        ("ADD", [(1, 8, 8, 4), (1, 8, 8, 4)], (1, 8, 8, 4), (), 0),
        ("AVERAGE_POOL_2D", [(1, 8, 8, 4)], (1, 1, 1, 4), (), 0),
        # An open batch counts as one example.
        ("FULLY_CONNECTED", [(-1, 20), (10, 20)], (-1, 10), (1,), 10 * 20),
    ],
)
def test_macs_by_hand(name, inputs, output, constant, expected):
    assert macs_of(name, inputs, output, constant) == expected


def test_a_matrix_product_with_the_left_side_transposed():
    options = schema.BatchMatMulOptionsT()
    options.adjX = True
    kind = schema.BuiltinOptions.BatchMatMulOptions
    # x is [5, 4] and used as [4, 5].
    assert macs_of("BATCH_MATMUL", [(5, 4), (5, 6)], (4, 6), options=options, options_type=kind) == 4 * 5 * 6


def test_an_lstm_counts_its_matrices_once_per_time_step():
    # 28 steps of 10 features, 20 units: four gates, each 20x10 from the input and 20x20 from the state.
    gates = [(20, 10)] * 4 + [(20, 20)] * 4
    inputs = [(1, 28, 10), *gates, None, None, None, *[(20,)] * 4, None, None, (1, 20), (1, 20)]
    constant = set(range(1, 9)) | {12, 13, 14, 15}
    assert macs_of("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (1, 28, 20), constant) == 28 * 4 * (
        20 * 10 + 20 * 20
    )


def test_what_cannot_be_counted_is_none_and_named():
    b = Builder()
    x, y, z = b.tensor([1, 4]), b.tensor([1, 4]), b.tensor([1, 4])
    b.op("", [x], [y], custom="Mystery")
    b.op("RELU", [y], [z])
    b.ends([x], [z])
    found = inspect(b.pack())
    assert [op.macs for op in found.operators] == [None, 0]
    assert (found.macs, found.uncounted_ops) == (0, ("Mystery",))
    only = Builder()
    x, y = only.tensor([1]), only.tensor([1])
    only.op("", [x], [y], custom="Mystery")
    assert inspect(only.pack()).macs is None


def test_malformed_weights_are_not_counted():
    assert macs_of("CONV_2D", [(1, 8, 8, 4), (16,)], (1, 8, 8, 16), (1,)) is None
    assert macs_of("CONV_2D", [(1, 8, 8, 4)], (1, 8, 8, 16)) is None
    assert macs_of("BATCH_MATMUL", [(4,), (4,)], (1,)) is None


# Published counts: MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597, table 1: "12.5M", "2.7M", "7.5M", "0.26M"),
# MobileNet v1 0.25 at 224 and 128 (Howard et al. 2017 and the model card: 41M, 14M), Arm's keyword spotting
# (Zhang et al. 2017, arXiv:1711.07128, table: DS-CNN S 5.4, M 19.8, L 56.9 million operations, two per MAC).
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mlperf_tiny/pretrainedResnet_quant", 12.5e6),
        ("mlperf_tiny/kws_ref_model", 2.7e6),
        ("mlperf_tiny/vww_96_int8", 7.5e6),
        ("mlperf_tiny/ad01_int8", 0.26e6),
        ("tflite_zoo/tfls_mobilenet_v1_0.25_224_quant", 41e6),
        ("tflite_zoo/coral_mobilenet_v1_0.25_128_quant", 14e6),
        ("tflite_zoo/arm_ds_cnn_s_quantized", 5.4e6 / 2),
        ("tflite_zoo/arm_ds_cnn_m_quantized", 19.8e6 / 2),
        ("tflite_zoo/arm_ds_cnn_l_quantized", 56.9e6 / 2),
    ],
)
def test_macs_of_published_networks(shared_data, name, published):
    # The papers give two or three digits.
    assert inspect(shared_data / f"{name}.tflite").macs == pytest.approx(published, rel=0.04)
