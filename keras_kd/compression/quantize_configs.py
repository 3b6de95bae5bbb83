"""How layers are quantized in training: TF-MOT's choices, mended where short runs or its gaps need it.

TF-MOT lets a caller bring a scheme: a transformer that arranges the graph and a registry that says how each
layer is quantized. Ours are TF-MOT's own, with three differences:

- Activation ranges follow the data from the first batch on. TF-MOT starts every range at -6..6 and moves it
  by
  a thousandth per step, so that after 300 steps three quarters of the guess are still in it.
- Where a recipe prunes, zeros are kept in every kernel, also in layers that TF-MOT's registry does not know.
- Layers that TF-MOT refuses get a configuration of ours instead of an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from keras_kd.compression.tfmot import quantized as tfmot_quantized
from keras_kd.compression.tfmot import tfmot

_qat = tfmot.quantization.keras
_quantizers = _qat.quantizers

# A range's memory in steps once the warm-up is over, as in TF-MOT.
_LONGEST_MEMORY = 0.999


class WarmAverageQuantizer(_quantizers.MovingAverageQuantizer):
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
            keep = tf.minimum(batches / (batches + 10.0), _LONGEST_MEMORY)
            # TFLite needs zero inside every range.
            low = low.assign(keep * low + (1 - keep) * tf.minimum(tf.reduce_min(inputs), 0.0))
            high = high.assign(keep * high + (1 - keep) * tf.maximum(tf.reduce_max(inputs), 0.0))
            batches.assign_add(1.0)
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8, narrow_range=False)

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {}


class ZeroKeepingQuantizer(_quantizers.LastValueQuantizer):
    """Symmetric int8 weights in which today's zeros stay zeros.

    Args:
      per_axis: one scale per index of the last axis (convolutions) instead of one for all.
    """

    def __init__(self, per_axis: bool):
        super().__init__(num_bits=8, per_axis=per_axis, symmetric=True, narrow_range=True)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """See TF-MOT."""
        built = super().build(tensor_shape, name, layer)
        built["kept"] = tf.cast(tf.not_equal(getattr(layer.layer, name), 0.0), tf.float32)
        return built

    def __call__(self, inputs: Any, training: Any, weights: Mapping[str, Any], **kwargs: Any) -> Any:
        """See TF-MOT."""
        return super().__call__(inputs * weights["kept"], training, weights, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """See TF-MOT."""
        return {"per_axis": self.per_axis}


class OutputConfig(_qat.QuantizeConfig):
    """Quantizes what a layer puts out, and nothing inside it."""

    def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return []

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """See TF-MOT."""
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None:
        """See TF-MOT."""

    def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None:
        """See TF-MOT."""

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
    if keep_clusters:
        base = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(
            preserve_sparsity=keep_zeros
        )
    elif keep_zeros:
        base = _qat.collab_opts.Default8BitPrunePreserveQuantizeScheme()
    else:
        base = _qat.default_8bit.Default8BitQuantizeScheme()
    return _Scheme(base)


class _Scheme(_qat.QuantizeScheme):
    def __init__(self, base: Any):
        self._base = base

    def get_layout_transformer(self) -> Any:
        return _Transformer(self._base.get_layout_transformer())

    def get_quantize_registry(self) -> Any:
        return _Registry(self._base.get_quantize_registry())


class _Transformer(_qat.QuantizeLayoutTransform):
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


class _Registry(_qat.QuantizeRegistry):
    """TF-MOT's registry, with our activation quantizer."""

    def __init__(self, base: Any):
        self._base = base

    def supports(self, layer: Any) -> bool:
        return self._base.supports(layer)

    def get_quantize_config(self, layer: Any) -> Any:
        config = self._base.get_quantize_config(layer)
        if hasattr(config, "activation_quantizer"):
            config.activation_quantizer = WarmAverageQuantizer()
        elif isinstance(layer, tf_keras.layers.Activation) and config.get_output_quantizers(layer):
            return OutputConfig()
        return config


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
    for layer in model.layers:
        kind = quantization_of(layer)
        if kind == "output":
            configs[layer.name] = OutputConfig()
        elif kind == "pass":
            configs[layer.name] = PassConfig()
        elif kind == "island":
            configs[layer.name] = OutputConfig()
            float_reasons[layer.name] = f"{type(layer).__name__} has no integer kernel"
    ours = {
        cls.__name__: cls for cls in (OutputConfig, PassConfig, WarmAverageQuantizer, ZeroKeepingQuantizer)
    }
    with tf_keras.utils.custom_object_scope({**custom_objects(), **ours}):
        quantized = tfmot_quantized(
            model, scheme=scheme(keep_zeros=keep_zeros, keep_clusters=keep_clusters), configs=configs
        )
    return quantized, float_reasons
