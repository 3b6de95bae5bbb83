"""Rules for normalization and scaling."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_build import Call, Chain
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_fields import common, fields, penalties

_L = tf_keras.layers
_BATCH_NORM = ("beta_regularizer", "gamma_regularizer", "beta_constraint", "gamma_constraint")
# Behind these (and nothing between) TF-MOT folds a BatchNormalization into the kernel.
_FOLDS_INTO = frozenset(
    {"Conv1D", "Conv2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"}
)


def batch_normalization(call: Call) -> Any:
    """BatchNormalization behind a convolution as it is, elsewhere behind a depthwise convolution by one.

    TF-MOT quantizes a BatchNormalization only as a part of the convolution before it. Given a 1x1
    depthwise convolution whose kernel is fixed at one, every BatchNormalization has such a convolution, still
    trains as before, and becomes a single int8 DEPTHWISE_CONV_2D.
    """
    layer = call.operation
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    if layer.get_config().get("renorm") or getattr(layer, "synchronized", False):
        raise NotBridgeable("synchronized batch statistics")

    rank = len(call.input.shape)
    last = axis in (-1, rank - 1)

    def build(kind: Any) -> Any:
        return kind(
            axis=-1 if last else axis,
            **fields(layer, "momentum", "epsilon", "center", "scale"),
            **penalties(layer, *_BATCH_NORM),
            **common(layer, call.name()),
        )

    def behind_a_kernel() -> Chain:
        return Chain([build(_L.BatchNormalization)])

    def alone() -> Chain:
        made = build(_L.BatchNormalization)
        number, channels = call.builder.next_identity(), int(call.input.shape[-1])
        kernel = identity_depthwise(f"{made.name}/channels", channels, number)
        return Chain([kernel, made], weighted=[made])

    if not last or rank > 4 or call.input.shape[-1] is None:
        # In this place no kernel can be put before it, so TF-MOT would refuse it.
        return call.chain(call.builder.remembered(call, lambda: Chain([build(ours.AxisNormalization)])))
    folds = _folds(call.previous) and (
        rank in (2, 4) or call.builder.forms.of("rows", call.input) is not None
    )
    chain = call.builder.remembered(call, behind_a_kernel if folds else alone)
    if rank == 4 or (rank == 2 and folds):
        return call.chain(chain)
    return call.from_rows(call.chain(chain, call.rows(call.input)), rank)


def identity_depthwise(name: str, channels: int, number: int) -> Any:
    """A depthwise 1x1 convolution that multiplies every channel by one and is not trained.

    TFLiteConverter (TensorFlow 2.21) keeps equal quantized depthwise kernels once, then multiplies the factors of the
    BatchNormalization behind one of them into what all of them share: the other places compute something else. So no
    two kernels of a network are equal: in each, one channel is off by a millionth or a few.

    Args:
      name: of the layer.
      channels: C of its input [batch, height, width, C].
      number: of this one in its network, from 0.
    """
    kernel = np.ones((1, 1, channels, 1), "float32")
    # Sixteen roundings of float32: fewer might come out of the fake quantization as the same number.
    kernel[0, 0, number % channels, 0] += (1 + number // channels) * 2.0**-19
    made = _L.DepthwiseConv2D(1, use_bias=False, trainable=False, name=name)
    made.build((None, None, None, channels))
    made.set_weights([kernel])
    return made


def _folds(previous: Any) -> bool:
    if previous is None or type(previous).__name__ not in _FOLDS_INTO:
        return False
    return getattr(previous.activation, "__name__", "linear") == "linear"


def rescaling(call: Call) -> Any:
    """Rescaling: scale * x + offset."""
    layer = call.operation
    return scale_and_shift(call, np.asarray(layer.scale, "float32"), np.asarray(layer.offset, "float32"))


def scale_and_shift(call: Call, scale: np.ndarray, offset: np.ndarray) -> Any:
    """Computes scale * x + offset with constants, as MUL and ADD, or one depthwise convolution for images.

    A depthwise convolution has a scale per channel and a 32-bit offset, so it loses nothing to rounding;
    for a lone number one MUL does the same.
    """
    value = call.input
    name = call.name()
    if not np.issubdtype(value.dtype.as_numpy_dtype, np.floating):
        value = call.run(ours.Cast("float32", name=f"{name}/cast"), value)
    channels = value.shape[-1]
    one_number = scale.size == 1 and offset.size == 1 and float(offset.reshape(())) == 0.0
    per_channel = all(
        item.size == 1 or item.shape[-1:] == (item.size,) == (channels,) for item in (scale, offset)
    )
    rank = len(value.shape)
    if 2 <= rank <= 4 and channels is not None and per_channel and not one_number:
        made = _L.DepthwiseConv2D(1, trainable=False, name=name)
        outputs = call.run(made, value if rank == 4 else call.rows(value))
        kernel = np.broadcast_to(scale.reshape(-1), (channels,)).reshape(1, 1, channels, 1)
        made.set_weights([kernel, np.broadcast_to(offset.reshape(-1), (channels,))])
        return outputs if rank == 4 else call.from_rows(outputs, rank)
    if one_number or not np.any(offset):
        return call.run(ours.ConstantMultiply(scale, name=name), value)
    scaled = call.run(ours.ConstantMultiply(scale, name=f"{name}/scale"), value)
    return call.run(ours.ConstantAdd(offset, name=name), scaled)


def normalization(call: Call) -> Any:
    """Normalization: (x - mean) / max(sqrt(variance), epsilon) with the statistics that it was given."""
    layer = call.operation
    if not layer.built or layer.mean is None:
        raise NotBridgeable("it has no statistics yet: adapt it first")
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), "float32")
    variance = np.asarray(keras.ops.convert_to_numpy(layer.variance), "float32")
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    if layer.invert:
        return scale_and_shift(call, deviation, mean)
    return scale_and_shift(call, 1.0 / deviation, -mean / deviation)


def layer_normalization(layer: Any, name: str) -> Any:
    """LayerNormalization."""
    if layer.get_config().get("rms_scaling"):
        raise NotBridgeable("rms_scaling")
    return _L.LayerNormalization(
        **fields(layer, "axis", "epsilon", "center", "scale"),
        **penalties(layer, *_BATCH_NORM),
        **common(layer, name),
    )


def layer_scale(call: Call) -> Any:
    """ConvNeXt's LayerScale, one trained factor per channel, as a depthwise convolution."""
    layer = call.operation
    channels = call.input.shape[-1]

    def make() -> Chain:
        made = _L.DepthwiseConv2D(1, use_bias=False, **common(layer, call.name()))
        return Chain(
            [made],
            forward=[lambda gamma: gamma.reshape(1, 1, channels, 1)],
            backward=[lambda kernel: kernel.reshape(channels)],
        )

    return call.chain(call.builder.remembered(call, make))
