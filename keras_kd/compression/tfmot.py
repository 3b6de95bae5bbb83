"""The only module that imports TensorFlow Model Optimization, and what is asked of it.

TF-MOT works on tf_keras layers. Its import sets ``TF_USE_LEGACY_KERAS=1`` and looks at ``tf.keras``: where
nobody had touched that yet, it becomes tf_keras for the whole process. So `tf.keras` is resolved first and
the variable put back afterwards (TF-MOT 0.8.1). This module is imported by functions, never at the top of
another module that `import keras_kd` reaches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import keras  # noqa: F401  (Keras 3 first, so that tf.keras below resolves to it)
import tensorflow as tf


def _import_tfmot() -> Any:
    variable = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(variable)
    _ = tf.keras.__version__  # resolves the lazy attribute to Keras 3 before TF-MOT looks at it
    try:
        import tensorflow_model_optimization
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
    return tensorflow_model_optimization


tfmot = _import_tfmot()

import tf_keras  # noqa: E402  (after TF-MOT's import, which must meet an untouched environment)

from keras_kd.compression.schedule import PruningSteps  # noqa: E402


def can_prune(layer: Any) -> bool:
    """True where TF-MOT itself prunes a weight of this built tf_keras layer."""
    try:
        tfmot.sparsity.keras.prune_low_magnitude(layer)
    except (ValueError, AttributeError):
        return False
    return bool(layer.get_prunable_weights())


def with_pruning(
    model: Any,
    sparsities: Mapping[str, float],
    steps: PruningSteps,
    *,
    block: tuple[int, int] = (1, 1),
    two_of_four: bool = False,
) -> Any:
    """The model with TF-MOT's pruning wrappers around the named layers; weights are shared with `model`.

    Args:
      model: built Functional or Sequential tf_keras model without nested models.
      sparsities: final sparsity by layer name.
      steps: the schedule, in training steps counted from 1.
      block: height and width of blocks zeroed whole, for two-dimensional kernels.
      two_of_four: two zeros in every four neighbors instead of a schedule.
    """
    extra: dict[str, Any] = {"sparsity_m_by_n": (2, 4)} if two_of_four else {"block_size": block}

    def wrap(layer: Any) -> Any:
        if layer.name not in sparsities:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer, pruning_schedule=_schedule(sparsities[layer.name], steps), **extra
        )

    return tf_keras.models.clone_model(model, clone_function=wrap)


def _schedule(sparsity: float, steps: PruningSteps) -> Any:
    if steps.begin == steps.end:
        # PolynomialDecay would divide by end - begin.
        return tfmot.sparsity.keras.ConstantSparsity(sparsity, steps.begin, steps.end, frequency=1)
    return tfmot.sparsity.keras.PolynomialDecay(
        0.0, sparsity, begin_step=steps.begin, end_step=steps.end, frequency=steps.frequency
    )


def pruning_callback() -> Any:
    """TF-MOT's callback, without which its wrappers refuse to train."""
    return tfmot.sparsity.keras.UpdatePruningStep()


def without_pruning(model: Any) -> Any:
    """The model without pruning wrappers; weights stay as they are."""
    return tfmot.sparsity.keras.strip_pruning(model)


def can_cluster(layer: Any) -> bool:
    """True where TF-MOT clusters a weight of this built tf_keras layer."""
    try:
        tfmot.clustering.keras.cluster_weights(layer, 3)
    except (ValueError, AttributeError):
        return False
    return bool(layer.get_clusterable_weights())


def with_clustering(model: Any, clusters: Mapping[str, int], *, keep_zeros: bool) -> Any:
    """The model with TF-MOT's clustering wrappers around the named layers; the other layers are shared.

    Args:
      model: built Functional or Sequential tf_keras model without nested models.
      clusters: distinct values by layer name.
      keep_zeros: one of them is zero, and zeros stay where they are.
    """
    start = tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS

    def wrap(layer: Any) -> Any:
        if layer.name not in clusters:
            return layer
        return tfmot.clustering.keras.cluster_weights(
            layer, clusters[layer.name], start, preserve_sparsity=keep_zeros
        )

    return tf_keras.models.clone_model(model, clone_function=wrap)


def without_clustering(model: Any) -> Any:
    """The model without clustering wrappers; each clustered kernel holds its clusters' values."""
    return tfmot.clustering.keras.strip_clustering(model)


def xnnpack_prunable(model: Any) -> tuple[set[str], str | None]:
    """Names of the layers that TF-MOT's XNNPACK policy prunes, or the reason why it accepts none."""
    policy = tfmot.sparsity.keras.PruneForLatencyOnXNNPack()
    try:
        policy.ensure_model_supports_pruning(model)
    except ValueError as error:
        return set(), str(error)
    return {layer.name for layer in model.layers if policy.allow_pruning(layer)}, None


def quantized(
    model: Any, *, scheme: Any, configs: Mapping[str, Any], float_layers: Iterable[str] = ()
) -> Any:
    """The model with simulated int8 rounding, as TF-MOT arranges it; its weights are copied.

    Args:
      model: built Functional or Sequential tf_keras model without nested models.
      scheme: a TF-MOT ``QuantizeScheme``.
      configs: ``QuantizeConfig`` by layer name, where the scheme's own choice is not wanted.
      float_layers: names of layers that stay float.
    """
    keep = set(float_layers)
    annotate = tfmot.quantization.keras.quantize_annotate_layer

    def mark(layer: Any) -> Any:
        if layer.name in keep or isinstance(layer, tf_keras.layers.InputLayer):
            return layer
        return annotate(layer, quantize_config=configs.get(layer.name))

    marked = tf_keras.models.clone_model(model, clone_function=mark)
    with tfmot.quantization.keras.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(marked, scheme)


def wrappers(model: Any) -> dict[str, Any]:
    """The quantization wrappers of a model, by the names of the layers inside them."""
    wrapper = tfmot.quantization.keras.QuantizeWrapper
    return {layer.layer.name: layer for layer in model.layers if isinstance(layer, wrapper)}


def trained_variables(model: Any) -> list[Any]:
    """The model's trainable variables, without those of frozen layers.

    A quantization wrapper counts the kernel of its layer as trainable even where the layer is frozen
    (TF-MOT 0.8.1); a Rescaling that became a convolution would drift.
    """
    frozen = {
        id(weight)
        for wrapper in wrappers(model).values()
        if not wrapper.layer.trainable
        for weight in wrapper.weights
    }
    return [variable for variable in model.trainable_variables if id(variable) not in frozen]


def with_separable_split(model: Any) -> Any:
    """The model with every SeparableConv2D as a depthwise and a 1x1 convolution; the latter keeps the name.

    TF-MOT's quantization does the same split, under names that cannot be traced back.
    """
    if not any(type(layer) is tf_keras.layers.SeparableConv2D for layer in model.layers):
        return model
    transformer = tfmot.quantization.keras.graph_transformations.model_transformer.ModelTransformer
    return transformer(model, [_SplitSeparable()]).transform()[0]


# Declared as Any: mypy does not follow TF-MOT.
_Transform: Any = tfmot.quantization.keras.graph_transformations.transforms.Transform


class _SplitSeparable(_Transform):
    def pattern(self) -> Any:
        return tfmot.quantization.keras.graph_transformations.transforms.LayerPattern("SeparableConv2D")

    def replacement(self, match_layer: Any) -> Any:
        config = match_layer.layer["config"]
        weights = list(match_layer.weights.values())
        shared = {key: config[key] for key in ("data_format", "trainable", "dtype")}
        depthwise = tf_keras.layers.DepthwiseConv2D(
            **{
                key: config[key]
                for key in ("kernel_size", "strides", "padding", "depth_multiplier", "dilation_rate")
            },
            **{
                f"depthwise_{key}": config[f"depthwise_{key}"]
                for key in ("initializer", "regularizer", "constraint")
            },
            **shared,
            use_bias=False,
            name=config["name"] + "_depthwise",
        )
        pointwise = tf_keras.layers.Conv2D(
            config["filters"],
            1,
            **{key: config[key] for key in ("activation", "use_bias", "activity_regularizer")},
            **{
                f"kernel_{key}": config[f"pointwise_{key}"]
                for key in ("initializer", "regularizer", "constraint")
            },
            **{f"bias_{key}": config[f"bias_{key}"] for key in ("initializer", "regularizer", "constraint")},
            **shared,
            name=config["name"],
        )
        first = self._node(depthwise, {"depthwise_kernel:0": weights[0]}, [])
        named = {"kernel:0": weights[1], **({"bias:0": weights[2]} if config["use_bias"] else {})}
        return self._node(pointwise, named, [first])

    def _node(self, layer: Any, weights: dict[str, Any], inputs: list[Any]) -> Any:
        serialized = tf_keras.layers.serialize(layer, use_legacy_format=True)
        serialized["name"] = layer.name
        node = tfmot.quantization.keras.graph_transformations.transforms.LayerNode
        return node(serialized, weights=weights, input_layers=inputs)
