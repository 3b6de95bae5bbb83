"""How layers are quantized in training: TF-MOT's choices, mended where short runs or its gaps need it.

TF-MOT lets a caller bring a scheme: a transformer that arranges the graph and a registry that says how each
layer is quantized. Ours are TF-MOT's own, with four differences:

- Activation ranges follow the data from the first batch on. TF-MOT starts every range at -6..6 and moves it by
  a thousandth per step, so that after 300 steps three quarters of the guess are still in it.
- Depthwise kernels have a scale per channel, where TF-MOT gives them one for all.
- Where a recipe prunes, zeros are kept in every kernel, also in layers that TF-MOT's registry does not know.
- Layers that TF-MOT refuses get a configuration of ours instead of an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from keras_kd.compression.tfmot import quantized as tfmot_quantized
from keras_kd.compression.tfmot import tfmot

_qat = tfmot.quantization.keras
# Declared as Any: mypy does not follow TF-MOT.
_MovingAverageQuantizer: Any = _qat.quantizers.MovingAverageQuantizer
_LastValueQuantizer: Any = _qat.quantizers.LastValueQuantizer
_QuantizeConfig: Any = _qat.QuantizeConfig
_QuantizeScheme: Any = _qat.QuantizeScheme
_QuantizeLayoutTransform: Any = _qat.QuantizeLayoutTransform
_QuantizeRegistry: Any = _qat.QuantizeRegistry

# A range's memory in steps once the warm-up is over, as in TF-MOT.
_LONGEST_MEMORY = 0.999


# Below this a batch is taken for zeros.
_NARROWEST_RANGE = 1e-6


class WarmAverageQuantizer(_MovingAverageQuantizer):
    """Moving average of batch ranges whose memory grows with the steps: the first batch sets the range.

    The average after n batches moves by the larger of 10 / (n + 10) and 0.001.
    """

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """See TF-MOT."""
        built = super().build(tensor_shape, name, layer)
        built["batches"] = layer.add_weight(name + "_batches", shape=(), initializer="zeros", trainable=False)
        return built

    def __call__(self, inputs: Any, training: Any, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        """See TF-MOT."""
        low, high, batches = weights["min_var"], weights["max_var"], weights["batches"]
        if training:
            # TFLite needs zero inside every range.
            least, most = tf.minimum(tf.reduce_min(inputs), 0.0), tf.maximum(tf.reduce_max(inputs), 0.0)
            # Nothing but zeros says nothing about a range; until something comes it is 0..1, because runtimes
            # refuse to rescale to a step near zero.
            dead, first = most - least < _NARROWEST_RANGE, tf.equal(batches, 0.0)
            keep = tf.minimum(batches / (batches + 10.0), _LONGEST_MEMORY)
            unmoved_low, unmoved_high = tf.where(first, 0.0, low), tf.where(first, 1.0, high)
            low = low.assign(tf.where(dead, unmoved_low, keep * low + (1 - keep) * least))
            high = high.assign(tf.where(dead, unmoved_high, keep * high + (1 - keep) * most))
            batches.assign_add(tf.where(dead, 0.0, 1.0))
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8, narrow_range=False)

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {}


class KeepingQuantizer(_LastValueQuantizer):
    """Symmetric int8 weights that keep what pruning and clustering did before.

    Weights that are zero now stay zero. With clusters, weights that are equal now stay equal: each stands for
    the mean of its cluster, so that all of them get the same gradient. TF-MOT 0.8.1's own cluster-preserving
    quantizer lets the zero cluster drift in the last step, and with it the sparsity.

    Args:
      per_axis: one scale per index of the last axis (convolutions) instead of one for all.
      clusters: keep equal weights equal.
    """

    def __init__(self, per_axis: bool, clusters: bool = False):
        super().__init__(num_bits=8, per_axis=per_axis, symmetric=True, narrow_range=True)
        self.clusters = clusters

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """See TF-MOT."""
        built = super().build(tensor_shape, name, layer)
        value = getattr(layer.layer, name).numpy()
        built["kept"] = tf.constant(value != 0, tf.float32)
        if self.clusters:
            values, members = np.unique(value, return_inverse=True)
            built["members"] = tf.constant(members.reshape(-1), tf.int32)
            built["count"] = len(values)
        return built

    def __call__(self, inputs: Any, training: Any, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        """See TF-MOT."""
        value = inputs
        if self.clusters:
            means = tf.math.unsorted_segment_mean(
                tf.reshape(value, [-1]), weights["members"], weights["count"]
            )
            value = tf.reshape(tf.gather(means, weights["members"]), inputs.shape)
        return super().__call__(value * weights["kept"], training, weights, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {"per_axis": self.per_axis, "clusters": self.clusters}


class DepthwiseQuantizer(_LastValueQuantizer):
    """Symmetric int8 depthwise kernels with one scale per output channel, as TFLite stores them.

    TF-MOT 0.8.1 takes the last axis of a depthwise kernel, which is the multiplier and usually 1: one scale for all
    channels, so that a channel ten times smaller than the largest trains with twelve levels instead of 127.
    """

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=True, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """See TF-MOT."""
        flat = (*tensor_shape[:-2], int(tensor_shape[-2] * tensor_shape[-1]))
        return super().build(tf.TensorShape(flat), name, layer)

    def __call__(self, inputs: Any, training: Any, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        """See TF-MOT."""
        height, width, channels, multiplier = inputs.shape
        # Four axes, because TF-MOT looks for the range over the first three of them.
        flat = tf.reshape(inputs, [1, height, width, channels * multiplier])
        return tf.reshape(super().__call__(flat, training, weights, **kwargs), inputs.shape)

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {}


class OutputConfig(_QuantizeConfig):
    """Quantizes what a layer puts out, and nothing inside it."""

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        """See TF-MOT."""
        # A body for AutoGraph, which warns about functions that have only a docstring (TF 2.21).
        del quantize_weights

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        """See TF-MOT."""
        del quantize_activations

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return [WarmAverageQuantizer()]

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {}


class PassConfig(OutputConfig):
    """Quantizes nothing: the layer hands on values of the scale that it got."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return []


def scheme(*, keep_zeros: bool = False, keep_clusters: bool = False) -> Any:
    """A TF-MOT scheme that keeps what pruning and clustering did.

    Args:
      keep_zeros: zeros in kernels stay zeros (PQAT, and with `keep_clusters` PCQAT).
      keep_clusters: the number of distinct values in kernels stays (CQAT).
    """
    base = _qat.default_8bit.Default8BitQuantizeScheme()
    # TF-MOT's own sparsity-preserving scheme, where it knows the layer.
    preserving = _qat.collab_opts.Default8BitPrunePreserveQuantizeScheme() if keep_zeros else None
    return _Scheme(
        base, None if keep_clusters else preserving, keep=keep_zeros or keep_clusters, clusters=keep_clusters
    )


class _Scheme(_QuantizeScheme):
    def __init__(self, base: Any, preserving: Any, *, keep: bool, clusters: bool):
        self._base, self._preserving, self._keep, self._clusters = base, preserving, keep, clusters

    def get_layout_transformer(self) -> Any:
        return _Transformer(self._base.get_layout_transformer())

    def get_quantize_registry(self) -> Any:
        preserving = self._preserving.get_quantize_registry() if self._preserving else None
        return _Registry(
            self._base.get_quantize_registry(), preserving, keep=self._keep, clusters=self._clusters
        )


class _Transformer(_QuantizeLayoutTransform):
    """TF-MOT's graph rewriting, with our quantizer where it put its own output quantizer."""

    def __init__(self, base: Any):
        self._base = base

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        transformed, configs = self._base.apply(model, layer_quantize_map)
        for metadata in configs.values():
            config = metadata.get("quantize_config")
            # The class is not public, so it is known by its name.
            if type(config).__name__ == "Default8BitOutputQuantizeConfig" and config.quantize_output:
                metadata["quantize_config"] = OutputConfig()
        return transformed, configs


class _Registry(_QuantizeRegistry):
    """TF-MOT's registry, with our activation quantizer, and weights that keep zeros and clusters."""

    def __init__(self, base: Any, preserving: Any, *, keep: bool, clusters: bool):
        self._base, self._preserving, self._keep, self._clusters = base, preserving, keep, clusters

    def supports(self, layer: Any) -> bool:
        return self._base.supports(layer)

    def get_quantize_config(self, layer: Any) -> Any:
        by_tfmot = self._preserving is not None and self._preserving.supports(layer)
        config = (self._preserving if by_tfmot else self._base).get_quantize_config(layer)
        if self._keep and not by_tfmot and getattr(config, "weight_attrs", None):
            config.weight_quantizer = KeepingQuantizer(config.weight_quantizer.per_axis, self._clusters)
        if isinstance(layer, tf_keras.layers.DepthwiseConv2D):
            config.weight_quantizer = DepthwiseQuantizer()
        if hasattr(config, "activation_quantizer"):
            config.activation_quantizer = WarmAverageQuantizer()
        elif isinstance(layer, tf_keras.layers.Activation) and config.get_output_quantizers(layer):
            return OutputConfig()
        return config


def _called_more_than_once(model: Any) -> set[str]:
    """Names of the layers with several calls in this model; calls in other models do not count."""
    layers = model.get_config()["layers"]
    return {entry["config"]["name"] for entry in layers if len(entry.get("inbound_nodes", ())) > 1}


def quantize(
    model: Any, *, keep_zeros: bool = False, keep_clusters: bool = False
) -> tuple[Any, dict[str, str]]:
    """A quantization-aware copy of a tf_keras model.

    Args:
      model: built, Functional or Sequential, without nested models.
      keep_zeros: see `scheme`.
      keep_clusters: see `scheme`.

    Returns:
      The copy, and why each layer that stays float does, by name.
    """
    from keras_kd.compression.bridge_layers import custom_objects, quantization_of

    configs: dict[str, Any] = {}
    float_reasons: dict[str, str] = {}
    bare: list[str] = []
    shared = _called_more_than_once(model)
    for layer in model.layers:
        kind = quantization_of(layer)
        if layer.name in shared and type(layer) is tf_keras.layers.BatchNormalization:
            # TF-MOT folds one into the convolution before it only where each has one call, and refuses it elsewhere.
            kind = "output"
        if kind == "output":
            configs[layer.name] = OutputConfig()
        elif kind == "pass":
            configs[layer.name] = PassConfig()
        elif kind == "island":
            configs[layer.name] = OutputConfig()
            float_reasons[layer.name] = (
                f"{getattr(layer, 'computes', type(layer).__name__)} has no integer kernel"
            )
        elif kind == "bare":
            bare.append(layer.name)
    ours = {
        cls.__name__: cls
        for cls in (OutputConfig, PassConfig, WarmAverageQuantizer, KeepingQuantizer, DepthwiseQuantizer)
    }
    with tf_keras.utils.custom_object_scope({**custom_objects(), **ours}):
        quantized = tfmot_quantized(
            model,
            scheme=scheme(keep_zeros=keep_zeros, keep_clusters=keep_clusters),
            configs=configs,
            float_layers=bare,
        )
    return quantized, float_reasons
