"""Small tf_keras layers that the bridge puts where tf_keras or TF-MOT has none of its own.

Each becomes one TFLite operator, so that a quantization-aware model can give every tensor of the file a range
of its own. How a layer wants to be quantized is said without TF-MOT: `quantization_of(layer)` answers for our
layers and for tf_keras's own with one of five words.

| answer   | meaning                                                                            |
|----------|------------------------------------------------------------------------------------|
| "tfmot"  | TF-MOT 0.8.1 knows the layer: leave it to its registry                             |
| "output" | integer inside; its output needs an 8-bit range of its own                         |
| "pass"   | hands on values in the scale that it got, or has a fixed output range (sigmoid)    |
| "island" | float inside in the .tflite; quantize the output, so that what follows is integer  |
| "bare"   | leave it unwrapped: it reads integers, or the converter fuses it only as it is     |

Number of inputs: one, except `tf_keras`'s merging layers and `MatMul` (two).

| layer                     | computes                          | TFLite operator        | answer |
|---------------------------|-----------------------------------|------------------------|--------|
| `ConstantAdd`             | x + c, then relu6 where asked     | ADD (fused relu6)      | output |
| `ConstantMultiply`        | c * x                             | MUL                    | output |
| `ConstantMinus`           | c - x                             | SUB                    | output |
| `HardSwish`               | x * relu6(x + 3) / 6              | HARD_SWISH             | output |
| `Swish`                   | x * sigmoid(x)                    | LOGISTIC, MUL          | output |
| `Elu`                     | elu and selu                      | EXP, MINIMUM, MUL, ADD | output |
| `Gelu`                    | Gaussian error linear unit        | GELU                   | output |
| `Clip`                    | min(max(x, low), high)            | MAXIMUM, MINIMUM       | output |
| `Unary`                   | exp, sqrt, abs ... by name        | EXP, SQRT, ABS ...     | output or island |
| `Reduce`                  | mean, sum, max, min over axes     | MEAN, SUM, REDUCE_MAX  | output or pass |
| `Cast`                    | another number type               | CAST                   | bare   |
| `Slice`                   | x[begin:end:step, ...]            | STRIDED_SLICE          | pass   |
| `Resize`                  | nearest or bilinear to a size     | RESIZE_*               | output |
| `FullReshape`             | a new shape, batch axis included  | RESHAPE                | pass   |
| `KerasOperation`          | any other `keras.ops` operation   | as Keras computes it   | island |
| `KerasLayer`              | any other layer of Keras 3        | as Keras computes it   | island |
| `AxisNormalization`       | BatchNormalization of other axes  | as Keras computes it   | island |
| `MatMul`                  | a @ b, transposed where asked     | BATCH_MATMUL           | output |

`Unary` is an island for functions without an 8-bit kernel; `Reduce` passes for the largest and the smallest.

Source of the idea: TF-MOT's "Quantization aware training comprehensive guide", section on custom layers.
"""

from __future__ import annotations

from typing import Any

from keras_kd.compression.bridge_layer_base import BridgeLayer
from keras_kd.compression.bridge_layers_keras import KerasLayer, KerasOperation
from keras_kd.compression.bridge_layers_pointwise import (
    Clip,
    ConstantAdd,
    ConstantMinus,
    ConstantMultiply,
    Elu,
    Gelu,
    HardSwish,
    Swish,
    Unary,
)
from keras_kd.compression.bridge_layers_shape import (
    AxisNormalization,
    Cast,
    FullReshape,
    MatMul,
    Reduce,
    Resize,
    Slice,
)

__all__ = [
    "AxisNormalization",
    "BridgeLayer",
    "Cast",
    "Clip",
    "ConstantAdd",
    "ConstantMinus",
    "ConstantMultiply",
    "Elu",
    "FullReshape",
    "Gelu",
    "HardSwish",
    "KerasLayer",
    "KerasOperation",
    "MatMul",
    "Reduce",
    "Resize",
    "Slice",
    "Swish",
    "Unary",
    "custom_objects",
    "quantization_of",
]

# tf_keras layers that TF-MOT 0.8.1 quantizes by itself (its default 8-bit registry; public documentation
# lists fewer). BatchNormalization only after a convolution or Dense, which is the only place where the bridge
# leaves one.
_TFMOT_KNOWS = frozenset(
    {
        "InputLayer",
        "ReLU",
        "Softmax",
        "LeakyReLU",
        "Conv2D",
        "DepthwiseConv2D",
        "Conv2DTranspose",
        "Concatenate",
        "Cropping1D",
        "Cropping2D",
        "Cropping3D",
        "UpSampling2D",
        "ZeroPadding1D",
        "ZeroPadding2D",
        "ActivityRegularization",
        "Dense",
        "Dropout",
        "Flatten",
        "Permute",
        "Reshape",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "SpatialDropout3D",
        "GlobalAveragePooling1D",
        "GlobalAveragePooling2D",
        "GlobalAveragePooling3D",
        "GlobalMaxPooling1D",
        "GlobalMaxPooling2D",
        "GlobalMaxPooling3D",
        "MaxPooling2D",
        "Add",
        "Activation",
        "SeparableConv1D",
        "SeparableConv2D",
        "BatchNormalization",
    }
)
# AVERAGE_POOL_2D wants one scale for what it reads and writes. TF-MOT gives its output a range of its own, with which
# the converter (TensorFlow 2.21) gives up where a concatenation reads the pool.
_PASS = frozenset(
    {
        "AveragePooling1D",
        "AveragePooling2D",
        "MaxPooling1D",
        "RepeatVector",
        "UpSampling1D",
        "GaussianNoise",
        "GaussianDropout",
        "AlphaDropout",
        "Masking",
        "UpSampling3D",
    }
)
# TF-MOT puts a float range on whatever its wrapped layers read, integers included; and the converter fuses a
# recurrent layer only where nothing is wrapped around it.
_BARE = frozenset(
    {
        "Bidirectional",
        "ConvLSTM1D",
        "ConvLSTM2D",
        "ConvLSTM3D",
        "Embedding",
        "GRU",
        "LSTM",
        "Masking",
        "SimpleRNN",
    }
)
_OUTPUT = frozenset({"Multiply", "Subtract", "Average", "Dot", "LayerNormalization", "PReLU"})


def quantization_of(layer: Any) -> str:
    """How a layer of a bridged model wants to be quantized: "tfmot", "output", "pass", "island" or "bare".

    The table at the top of this module says what each word means. A layer that is in no list computes in
    float, so it is an "island".
    """
    if isinstance(layer, BridgeLayer):
        return layer.quantization
    name = type(layer).__name__
    if type(layer).__module__.startswith("tf_keras."):
        for answer, names in (("tfmot", _TFMOT_KNOWS), ("output", _OUTPUT), ("pass", _PASS), ("bare", _BARE)):
            if name in names:
                return answer
    return "island"


def custom_objects() -> dict[str, type]:
    """Our layers by class name, for `tf_keras.models.load_model(..., custom_objects=...)` and scopes."""
    return {cls.__name__: cls for cls in _OURS}


_OURS: tuple[type, ...] = (
    AxisNormalization,
    Cast,
    Clip,
    ConstantAdd,
    ConstantMinus,
    ConstantMultiply,
    Elu,
    FullReshape,
    Gelu,
    HardSwish,
    KerasLayer,
    KerasOperation,
    MatMul,
    Reduce,
    Resize,
    Slice,
    Swish,
    Unary,
)
