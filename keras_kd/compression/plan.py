"""Which layer is pruned and clustered how far, and why another is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kd.compression.kernels import ends, kernels, most_clusters, trained_kernels, why_no_kernel
from keras_kd.compression.recipe import Clustering, Pruning, block_of
from keras_kd.compression.tfmot import can_cluster
from keras_kd.errors import nearest

END_REASON = "kept dense: {} with a kernel (prune_ends or per_layer prunes it)"


class CompressionError(RuntimeError):
    """Compression did not do what the recipe asked for."""


@dataclass(frozen=True)
class LayerPlan:
    """What is to happen to the kernels of one layer.

    Args:
      sparsity: zeros asked for; None where the layer is not pruned.
      clusters: distinct values asked for; None where the layer is not clustered.
      reasons: why something that the recipe asks for in general does not happen here.
    """

    sparsity: float | None = None
    clusters: int | None = None
    reasons: tuple[str, ...] = ()


def plan_layers(
    model: Any,
    pruning: Pruning | None,
    clustering: Clustering | None,
    *,
    policy_layers: set[str] | None = None,
    auto: Mapping[str, float] | None = None,
) -> dict[str, LayerPlan]:
    """A plan for every layer of a built tf_keras model, by name.

    Args:
      model: the student.
      pruning: what to prune.
      clustering: what to cluster.
      policy_layers: the layers that a pruning policy admits; None admits all.
      auto: measured sparsities, for ``Pruning(per_layer="auto")``.

    Raises:
      ValueError: `per_layer` names layers that do not exist or have nothing to prune; all are listed.
    """
    if pruning is not None and isinstance(pruning.per_layer, Mapping):
        _check_names(model, pruning.per_layer)
    outer = ends(model)
    return {
        layer.name: _plan(layer, pruning, clustering, outer, policy_layers, auto) for layer in model.layers
    }


def _plan(
    layer: Any,
    pruning: Pruning | None,
    clustering: Clustering | None,
    outer: set[str],
    policy_layers: set[str] | None,
    auto: Mapping[str, float] | None,
) -> LayerPlan:
    if pruning is None and clustering is None:
        return LayerPlan()
    found = kernels(layer)
    named = pruning.per_layer if pruning is not None and isinstance(pruning.per_layer, Mapping) else {}
    if found and not layer.trainable and layer.name not in named:
        return LayerPlan(reasons=("left as it is: the layer is frozen (trainable=False)",))
    if not found:
        # Only layers that have weights owe an explanation.
        return LayerPlan(reasons=(why_no_kernel(layer),) if layer.weights else ())
    is_end = layer.name in outer
    reasons = []
    sparsity: float | None = None
    if pruning is not None:
        sparsity, reason = _sparsity(layer.name, found, pruning, is_end, policy_layers, auto)
        reasons += [reason] if reason else []
    clusters: int | None = None
    if clustering is not None:
        if is_end and not clustering.cluster_ends:
            reasons.append("not clustered: first or last layer with a kernel (cluster_ends clusters it)")
        elif not can_cluster(layer):
            reasons.append(f"not clustered: TF-MOT clusters no {type(layer).__name__}")
        elif min(int(np.prod(kernel.shape)) for kernel in found) <= clustering.number_of_clusters:
            reasons.append(
                f"not clustered: no more weights than the {clustering.number_of_clusters} clusters"
            )
        else:
            clusters = clustering.number_of_clusters
    return LayerPlan(sparsity, clusters, tuple(reasons))


def _sparsity(
    name: str,
    found: list[Any],
    pruning: Pruning,
    is_end: bool,
    policy_layers: set[str] | None,
    auto: Mapping[str, float] | None,
) -> tuple[float | None, str | None]:
    named = pruning.per_layer if isinstance(pruning.per_layer, Mapping) else {}
    if name in named:
        return (named[name], None) if named[name] else (None, "kept dense: per_layer says 0")
    if policy_layers is not None and name not in policy_layers:
        return None, f"kept dense: policy {pruning.policy!r} prunes 1x1 convolutions only"
    if is_end and not pruning.prune_ends:
        return None, END_REASON.format("first or last layer")
    block = block_of(pruning.pattern)
    if block is not None and all(
        kernel.shape[-2] < block[0] or kernel.shape[-1] < block[1] for kernel in found
    ):
        return None, f"kept dense: no kernel holds a whole {pruning.pattern} block"
    if auto is not None:
        value = auto.get(name, pruning.sparsity)
        return (value, None) if value else (None, "kept dense: the sensitivity measurement chose 0")
    return (pruning.sparsity, None) if pruning.sparsity else (None, "kept dense: sparsity 0")


def _check_names(model: Any, per_layer: Mapping[str, float]) -> None:
    prunable = [layer.name for layer in model.layers if kernels(layer)]
    existing = {layer.name: layer for layer in model.layers}
    problems = []
    for name in per_layer:
        if name not in existing:
            problems.append(f"there is no layer {name!r}.{nearest(name, prunable)}")
        elif name not in prunable and per_layer[name]:
            problems.append(f"layer {name!r} cannot be pruned: {why_no_kernel(existing[name])}")
    if problems:
        raise ValueError("Pruning(per_layer=...): " + "; ".join(problems))


def check_sparsity(
    model: Any,
    plans: Mapping[str, LayerPlan],
    pruning: Pruning,
    *,
    when: str,
    wrappers: Mapping[str, Any] | None = None,
) -> None:
    """Raises unless every kernel has the zeros that it was to have, to one weight (or one block).

    Args:
      model: a tf_keras model without wrappers.
      wrappers: quantization wrappers by layer name, where the weights to check are behind them.
      plans: see `plan_layers`.
      pruning: the pattern decides what one unit is.
      when: for the message, such as "after pruning".

    Raises:
      CompressionError: names every layer that falls short, with the sparsity it reached.
    """
    short = []
    for layer in model.layers:
        asked = plans.get(layer.name, LayerPlan()).sparsity
        if asked is None:
            continue
        for kernel in trained_kernels(layer, (wrappers or {}).get(layer.name)):
            value = kernel.numpy()
            units = _zero_units(value, pruning.pattern)
            # One unit less than the ideal: whole units are kept, and the last one by rounding.
            if int(np.count_nonzero(units)) < int(np.floor(asked * units.size)) - 1:
                short.append(f"{layer.name}: {np.mean(value == 0):.3f} of the {asked:.3f} asked for")
    if short:
        raise CompressionError(
            f"The sparsity that the recipe asks for was not reached {when}: {'; '.join(short)}. A "
            f"callback that stops "
            "training early or changes weights would do that."
        )


def check_finite(model: Any, *, when: str) -> None:
    """Raises where weights are NaN or infinite: no converter says so, it fails over something else.

    Raises:
      CompressionError: naming every such layer.
    """
    broken = [
        layer.name for layer in model.layers if not all(np.isfinite(w).all() for w in layer.get_weights())
    ]
    if broken:
        raise CompressionError(
            f"Training diverged: weights are NaN or infinite {when} in {', '.join(broken)}. Try a lower learning rate; "
            "a logarithm, a division or a reciprocal root of values that can be 0 has no finite slope there."
        )


def check_clusters(
    model: Any, plans: Mapping[str, LayerPlan], *, when: str, wrappers: Mapping[str, Any] | None = None
) -> None:
    """Raises unless no clustered kernel has more distinct values than it was to have. See `check_sparsity`."""
    wrong = []
    for layer in model.layers:
        asked = plans.get(layer.name, LayerPlan()).clusters
        if asked is None:
            continue
        for kernel in trained_kernels(layer, (wrappers or {}).get(layer.name)):
            found = most_clusters(kernel.numpy(), per_channel=False)
            if found > asked:
                wrong.append(f"{layer.name}: {found} instead of {asked}")
    if wrong:
        raise CompressionError(
            f"More distinct weights than clusters were asked for {when}: {'; '.join(wrong)}."
        )


def _zero_units(value: np.ndarray, pattern: str) -> np.ndarray:
    """True where what a pattern counts is zero: single weights, or blocks (partial ones included)."""
    block = block_of(pattern) or (1, 1)
    padding = [(0, 0)] * (value.ndim - 2) + [
        (0, -value.shape[-2] % block[0]),
        (0, -value.shape[-1] % block[1]),
    ]
    whole = np.pad(value == 0, padding, constant_values=True)
    shape = whole.shape
    split = (*shape[:-2], shape[-2] // block[0], block[0], shape[-1] // block[1], block[1])
    return np.asarray(whole.reshape(split).all(axis=(-3, -1)))
