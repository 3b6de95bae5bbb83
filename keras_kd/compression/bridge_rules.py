"""The table from Keras 3 layers to rules, and how a rule is found.

A layer counts as Keras's own only if its class is exactly Keras's: a subclass may compute anything, so it
needs a rule from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_kd.compression import bridge_rules_conv as conv
from keras_kd.compression import bridge_rules_norm as norm
from keras_kd.compression import bridge_rules_ops as ops
from keras_kd.compression import bridge_rules_rnn as rnn
from keras_kd.compression import bridge_rules_sequence as sequence
from keras_kd.compression import bridge_rules_shape as shape
from keras_kd.compression.bridge_build import Call, CallRule, LayerRule
from keras_kd.compression.bridge_rules_attention import multi_head_attention
from keras_kd.compression.bridge_rules_keep import keep_in_keras

_POOL = ("pool_size", "strides", "padding", "data_format")
_GLOBAL_POOL = ("data_format", "keepdims")

# Keras 3 class name -> rule(layer, name), for layers that become a chain of tf_keras layers.
LAYER_RULES: dict[str, LayerRule] = {
    "ActivityRegularization": shape.same("l1", "l2"),
    "Bidirectional": rnn.bidirectional,
    "ConvLSTM1D": rnn.recurrent,
    "ConvLSTM2D": rnn.recurrent,
    "ConvLSTM3D": rnn.recurrent,
    "Embedding": rnn.embedding,
    "GRU": rnn.recurrent,
    "LSTM": rnn.recurrent,
    "Masking": shape.same("mask_value"),
    "PReLU": shape.prelu,
    "SimpleRNN": rnn.recurrent,
    "UpSampling1D": shape.same("size"),
    "UpSampling2D": shape.up_sampling,
    "UpSampling3D": shape.same("size", "data_format"),
    "Activation": shape.activation,
    "AlphaDropout": shape.dropout,
    "AveragePooling1D": shape.same(*_POOL),
    "AveragePooling2D": shape.same(*_POOL),
    "Conv2D": conv.convolution,
    "Conv2DTranspose": conv.transposed_convolution,
    "Conv3D": conv.convolution,
    "Conv3DTranspose": conv.transposed_convolution,
    "Cropping1D": shape.same("cropping"),
    "Cropping2D": shape.same("cropping", "data_format"),
    "Cropping3D": shape.same("cropping", "data_format"),
    "Dense": conv.dense,
    "DepthwiseConv2D": conv.depthwise,
    "Dropout": shape.dropout,
    "ELU": shape.elu,
    "Flatten": shape.same("data_format"),
    "GaussianDropout": shape.dropout,
    "GaussianNoise": shape.dropout,
    "GlobalAveragePooling1D": shape.same(*_GLOBAL_POOL),
    "GlobalAveragePooling2D": shape.same(*_GLOBAL_POOL),
    "GlobalAveragePooling3D": shape.same(*_GLOBAL_POOL),
    "GlobalMaxPooling1D": shape.same(*_GLOBAL_POOL),
    "GlobalMaxPooling2D": shape.same(*_GLOBAL_POOL),
    "GlobalMaxPooling3D": shape.same(*_GLOBAL_POOL),
    "Identity": shape.identity,
    "LayerNormalization": norm.layer_normalization,
    "LeakyReLU": shape.leaky_relu,
    "MaxPooling1D": shape.same(*_POOL),
    "MaxPooling2D": shape.same(*_POOL),
    "Permute": shape.same("dims"),
    "ReLU": shape.relu,
    "RepeatVector": shape.same("n"),
    "Reshape": shape.reshape,
    "SeparableConv2D": conv.separable_2d,
    "Softmax": shape.same("axis"),
    "SpatialDropout1D": shape.dropout,
    "SpatialDropout2D": shape.dropout,
    "SpatialDropout3D": shape.dropout,
    "ZeroPadding1D": shape.same("padding"),
    "ZeroPadding2D": shape.same("padding", "data_format"),
    "ZeroPadding3D": shape.same("padding", "data_format"),
}

# Keras 3 class name -> rule(call), for layers with several inputs or a graph of their own.
CALL_RULES: dict[str, CallRule] = {
    "AveragePooling3D": shape.pooling_3d,
    "Conv1D": sequence.on_rows(sequence.conv_1d),
    "Conv1DTranspose": sequence.on_rows(sequence.conv_1d_transpose),
    "DepthwiseConv1D": sequence.on_rows(sequence.depthwise_1d),
    "Dot": shape.merge,
    "MultiHeadAttention": multi_head_attention,
    "Resizing": shape.resizing,
    "SeparableConv1D": sequence.on_rows(sequence.separable_1d),
    "TimeDistributed": rnn.time_distributed,
    "Add": shape.merge,
    "Average": shape.merge,
    "BatchNormalization": norm.batch_normalization,
    "Concatenate": shape.merge,
    "MaxPooling3D": shape.pooling_3d,
    "Maximum": shape.larger,
    "Minimum": shape.smaller,
    "Multiply": shape.merge,
    "Normalization": norm.normalization,
    "Rescaling": norm.rescaling,
    "Subtract": shape.merge,
}

# Keras 3 layers without a counterpart that would be better: they go on as Keras 3 runs them, in float.
KEPT: tuple[str, ...] = (
    "AdaptiveAveragePooling1D",
    "AdaptiveAveragePooling2D",
    "AdaptiveAveragePooling3D",
    "AdaptiveMaxPooling1D",
    "AdaptiveMaxPooling2D",
    "AdaptiveMaxPooling3D",
    "AdditiveAttention",
    "Attention",
    "CenterCrop",
    "EinsumDense",
    "GroupNormalization",
    "GroupedQueryAttention",
    "RMSNormalization",
    "UnitNormalization",
)

# Layers that keras.applications defines for itself, by class name.
APPLICATION_RULES: dict[str, CallRule] = {
    "LayerScale": norm.layer_scale,
}

# Keras exports one class under a name that is not its own.
_KERAS_NAMES = {value: value.__name__ for value in vars(keras.layers).values() if isinstance(value, type)}


def rule_finder(custom: Mapping[type, Callable[..., Any]] | None) -> Callable[[Any], CallRule | None]:
    """A function from a live Keras 3 operation to its rule, or None. The caller's rules come first."""
    custom = dict(custom or {})

    def find(operation: Any) -> CallRule | None:
        for cls in type(operation).__mro__:
            if cls in custom:
                return _as_call_rule(custom[cls])
        kind = type(operation).__name__
        if _KERAS_NAMES.get(type(operation)) == kind:
            if kind in LAYER_RULES:
                return _as_call_rule(LAYER_RULES[kind])
            return CALL_RULES.get(kind, keep_in_keras if kind in KEPT else None)
        home = type(operation).__module__
        if home.startswith("keras.src.applications."):
            return APPLICATION_RULES.get(kind)
        if home.startswith("keras.src.ops.") and not isinstance(operation, keras.layers.Layer):
            return ops.OPERATION_RULES.get(kind, ops.as_keras_runs_it)
        return None

    return find


def _as_call_rule(rule: LayerRule) -> CallRule:
    def run(call: Call) -> Any:
        return call.chain(call.builder.remembered(call, lambda: rule(call.operation, call.name())))

    return run
