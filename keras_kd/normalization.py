"""BatchNormalization in one operation while a student trains.

Keras 3.15 composes the training pass of BatchNormalization from elementwise operations, and each that reads and
writes whole feature maps does so again backwards: on a CPU between a tenth and two fifths of the step of a small
convolutional student. TensorFlow has it as one operation (`FusedBatchNormV3`), which computes the same up to the
rounding of float32. The student itself is not changed: the operation reads and updates its variables.

The operation is quick where the channels fill the vectors of the processor, and slow elsewhere: forwards and backwards,
on maps of 7 to 28 pixels a side, it took 0.31 to 0.91 of the time of Keras's own at multiples of 8 channels, 0.43 to
0.97 at 12 and 28, and 1.13 to 1.57 at 6, 14 and 42 (TensorFlow 2.21 on x86-64; `benchmarks/normalization_time.py`).
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd.taps import TappedModel, follows_graph

Tensor = Any

# Less is refused by the operation on some devices.
_LEAST_EPSILON = 1.001e-5
# Channels; of other numbers the operation is slower than what it replaces.
_CHANNELS_AT_ONCE = 4


class FusedNormalization(keras.layers.Layer):
    """Calls a `BatchNormalization` layer, in training by one operation.

    Args:
      normalization: the layer, built; its variables are read and updated, and it stays as it is.

    Example:
      >>> import numpy as np
      >>> x = np.random.default_rng(0).normal(size=(8, 4, 4, 3)).astype("float32")
      >>> one, other = keras.layers.BatchNormalization(), keras.layers.BatchNormalization()
      >>> one.build(x.shape), other.build(x.shape)
      (None, None)
      >>> bool(np.allclose(FusedNormalization(one)(x, training=True), other(x, training=True), atol=1e-5))
      True
      >>> bool(np.allclose(one.moving_variance, other.moving_variance))
      True

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """

    def __init__(self, normalization: keras.layers.BatchNormalization):
        super().__init__(name=f"{normalization.name}_fused", dtype=normalization.dtype_policy)
        self.normalization = normalization
        self.supports_masking = True
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        layer = self.normalization
        if not training or not layer.trainable or mask is not None or not _is_float_map(inputs):
            return layer(inputs, training=training, mask=mask)
        channels = inputs.shape[-1:]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(channels),
            offset=ops.convert_to_tensor(layer.beta) if layer.center else tf.zeros(channels),
            mean=tf.zeros((0,)),
            variance=tf.zeros((0,)),
            epsilon=layer.epsilon,
            is_training=True,
        )
        # The operation returns the unbiased variance, and Keras keeps a moving average of the biased one.
        count = tf.cast(tf.size(inputs, out_type=tf.int64) // channels[0], tf.float32)
        variance = variance * ((count - 1.0) / count)
        for moving, batch in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(ops.convert_to_tensor(moving) * layer.momentum + batch * (1.0 - layer.momentum))
        return outputs


def _is_float_map(inputs: Tensor) -> bool:
    shape = inputs.shape
    return (
        len(shape) == 4
        and shape[-1] is not None
        and keras.backend.standardize_dtype(inputs.dtype) == "float32"
    )


def can_be_fused(layer: Any) -> bool:
    """Whether a layer is a BatchNormalization that `FusedNormalization` computes as Keras does, and sooner."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and layer.built
        and layer.axis in (-1, 3)
        and layer.epsilon >= _LEAST_EPSILON
        and layer.dtype_policy.name == "float32"
        and not layer.synchronized
        and not getattr(layer, "renorm", False)  # from Keras 3.14 on
        and layer.activity_regularizer is None
        and layer.moving_mean.shape[0] % _CHANNELS_AT_ONCE == 0
    )


def quick_to_train(student: keras.Model, layer_names: Iterable[str] = ()) -> TappedModel:
    """The student and its taps, with every BatchNormalization that allows it in one operation.

    On a machine with a GPU, and where nothing can be fused, it is the `TappedModel` alone.

    Args:
      student: any `keras.Model`.
      layer_names: the taps.

    Raises:
      UnknownNameError, TapError: of `TappedModel`.

    Example:
      >>> layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(name="norm")]
      >>> student = keras.Sequential(layers)
      >>> outputs, features = quick_to_train(student, ["norm"])(keras.ops.ones((2, 8, 8, 3)), training=True)
      >>> tuple(features["norm"].shape), len(student.weights)
      ((2, 6, 6, 8), 6)
    """
    plain = TappedModel(student, layer_names)
    if tf.config.list_physical_devices("GPU") or not _holds_fusable(student):
        return plain
    fused: dict[int, FusedNormalization] = {}

    def replace(operation: Any) -> Any:
        if not can_be_fused(operation):
            return operation
        return fused.setdefault(id(operation), FusedNormalization(operation))

    try:
        return TappedModel(student, layer_names, replace=replace)
    except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError):
        return plain  # a graph that cannot be followed a second time: only speed is at stake


def _holds_fusable(model: Any) -> bool:
    return follows_graph(model) and any(
        can_be_fused(layer) or _holds_fusable(layer) for layer in model.layers
    )
