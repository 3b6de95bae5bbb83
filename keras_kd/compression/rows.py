"""Fills in the report: what is found in each layer after the last phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression import tfmot
from keras_kd.compression.kernels import most_clusters, sparsity_of, trained_kernels
from keras_kd.compression.plan import LayerPlan
from keras_kd.compression.recipe import CompressionRecipe
from keras_kd.compression.report import LayerReport

# The converter's dynamic-range quantization leaves smaller weights in float.
_DYNAMIC_LEAST_WEIGHTS = 1024


def layer_rows(
    plain: Any,
    final: Any,
    plans: Mapping[str, LayerPlan],
    recipe: CompressionRecipe,
    float_reasons: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    """One row per layer of the student.

    Args:
      plain: the student without quantization wrappers.
      final: the model that is converted; the same as `plain` unless ``int8_qat`` wrapped it.
      plans: what was asked, by layer name.
      recipe: the recipe.
      float_reasons: why a layer stays float, by name.
    """
    wrapped = tfmot.wrappers(final)
    rows = []
    for layer in plain.layers:
        if not layer.weights and not _computes(layer):
            continue
        plan = plans[layer.name]
        values = [kernel.numpy() for kernel in trained_kernels(layer, wrapped.get(layer.name))]
        reasons = list(plan.reasons)
        weight_bits, activation_bits = _bits(recipe.quantization, values)
        if layer.name in float_reasons:
            weight_bits = activation_bits = 32
            reasons.append(
                f"stays float: {float_reasons[layer.name]} ({_extra_bytes(layer):,} bytes more than int8)"
            )
        elif recipe.quantization == "dynamic" and values and weight_bits == 32:
            reasons.append(
                f"stays float: the converter leaves fewer than {_DYNAMIC_LEAST_WEIGHTS} weights as they are"
            )
        per_channel = any(value.ndim > 2 for value in values)
        rows.append(
            LayerReport(
                name=layer.name,
                type=type(layer).__name__,
                parameters=layer.count_params(),
                kernel_parameters=sum(value.size for value in values),
                sparsity_asked=plan.sparsity,
                sparsity=sparsity_of(values) if values else None,
                clusters_asked=plan.clusters,
                clusters=max(most_clusters(v, per_channel=per_channel) for v in values)
                if plan.clusters
                else None,
                weight_bits=weight_bits if layer.weights else None,
                activation_bits=activation_bits,
                reasons=tuple(reasons),
            )
        )
    return tuple(rows)


def island_note(plain: Any, float_reasons: Mapping[str, str]) -> list[str]:
    """One sentence on all float islands together, or nothing where there is none. Arguments as for `layer_rows`."""
    if not float_reasons:
        return []
    cost = sum(_extra_bytes(layer) for layer in plain.layers if layer.name in float_reasons)
    return [
        f"{len(float_reasons)} of {len(plain.layers)} layers stay float, {cost:,} bytes of weights more than in int8: "
        + ", ".join(float_reasons)
    ]


def converter_notes(plain: Any, quantization: str | None) -> list[str]:
    """What TFLiteConverter (TensorFlow 2.21) is known to get wrong in this model, a sentence each.

    It gives an LSTM's output the scale of the concatenation that reads it, and its state keeps another.
    """
    if quantization not in ("int8_qat", "int8_ptq"):
        return []
    found = [
        layer.name
        for layer in plain.layers
        if isinstance(layer, tf_keras.layers.Bidirectional)
        and layer.merge_mode == "concat"
        and isinstance(layer.forward_layer, tf_keras.layers.LSTM)
    ]
    if not found:
        return []
    return [
        f"the converter rounds concatenated LSTMs badly to int8, and so {', '.join(found)}: compare the file with the "
        "model, or use Bidirectional(..., merge_mode='sum')"
    ]


def _computes(layer: Any) -> bool:
    return type(layer).__name__ != "InputLayer"


def _bits(quantization: str | None, values: list[np.ndarray]) -> tuple[int, int]:
    if quantization == "dynamic":
        return (8 if any(value.size >= _DYNAMIC_LEAST_WEIGHTS for value in values) else 32), 32
    return {None: (32, 32), "float16": (16, 32), "int16x8": (8, 16)}.get(quantization, (8, 8))


def _extra_bytes(layer: Any) -> int:
    return 3 * layer.count_params()
