"""From a Keras 3 model to the same model in tf_keras, and the trained weights back.

TF-MOT 0.8.1 works on tf_keras layers only. The bridge rebuilds a Functional or Sequential Keras 3 model
layer by layer (nested models are opened), copies the weights and checks on random inputs that both compute
the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_ATTRIBUTE = "keras_kd_bridge"


@dataclasses.dataclass(frozen=True)
class BridgeReport:
    """What a bridge did.

    Attributes:
      model_name: name of the model.
      layer_names: path of every original layer -> names of the tf_keras layers in its place, in the order of
        their calls: the last one gives the output.
      weight_layers: path of every original layer with weights -> names of those that hold them.
      largest_relative_difference: of the parity check; None where it was not made.
      examples: batch size of the parity check.
      seed: of its inputs.
    """

    model_name: str
    layer_names: dict[str, tuple[str, ...]]
    weight_layers: dict[str, tuple[str, ...]]
    largest_relative_difference: float | None
    examples: int
    seed: int

    def __str__(self) -> str:
        checked = "not checked"
        if self.largest_relative_difference is not None:
            gap = f"{self.largest_relative_difference:.2g}"
            checked = f"largest relative difference {gap} on {self.examples} random examples"
        return f"{self.model_name}: {len(self.layer_names)} layers rebuilt in tf_keras, {checked}"

    def output_layer(self, path: str) -> str:
        """Name of the tf_keras layer whose output is that of the original layer at `path`."""
        return self.layer_names[path][-1]


def to_tf_keras(
    keras_model: Any,
    *,
    rules: Mapping[type, Callable[..., Any]] | None = None,
    check: bool = True,
    examples: int = 2,
    seed: int = 0,
) -> Any:
    """The same model in tf_keras, with the same weights, ready for TF-MOT.

    Layers keep their names; those of nested models become paths ("backbone/conv1"). An activation that TFLite
    does not compute inside the layer before it becomes a layer of its own ("conv1/hard_silu"). Shared layers
    stay shared. Numbers are float32 whatever the original's dtype policy: compression starts from there.

    Args:
      keras_model: built Keras 3 Functional or Sequential model. A tf_keras model (a legacy `.h5` that Keras 3
        cannot read) is rebuilt in the same way; the model itself stays as it is.
      rules: layer class -> `rule(layer, name)`, which returns a tf_keras layer named `name`, or a list of
        layers that run one after the other. The weights are copied in the order of `layer.weights`.
      check: compare both models on random inputs, in the units that the model's own first layers expect: where it
        begins by dividing by 255, on pixels.
      examples: batch size of that comparison.
      seed: of its inputs.

    Returns:
      a `tf_keras.Model`; `bridge_report(model)` tells what was done.

    Raises:
      TypeError: not a Keras model.
      ValueError: a model without a graph (subclassed, or not built).
      UnsupportedLayerError: (a ValueError) naming every layer that could not be rebuilt, and why.
      BridgeParityError: the copy computes something else; names the first layer that differs.

    Example:
      >>> import keras
      >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
      >>> copy = to_tf_keras(student)
      >>> bridge_report(copy).layer_names
      {'head': ('head',)}
      >>> bridge_report(copy).largest_relative_difference < 1e-5
      True
    """
    _ = tf.keras.__version__  # resolves tf.keras to Keras 3 before tf_keras or TF-MOT look at it
    import tf_keras

    from keras_kd.compression.bridge_build import GraphBuilder
    from keras_kd.compression.bridge_parity import check_parity
    from keras_kd.compression.bridge_rules import rule_finder

    _require_graph(keras_model)
    if isinstance(keras_model, tf_keras.Model):
        from keras_kd.compression.bridge_legacy import legacy_rule_finder

        finder = legacy_rule_finder(rules)
    else:
        finder = rule_finder(rules)
    builder = GraphBuilder(keras_model, finder)
    bridged = builder.build()
    difference = None
    if check:
        difference = check_parity(
            keras_model, bridged, builder.tensors, builder.units, examples=examples, seed=seed
        )
    report = BridgeReport(
        model_name=keras_model.name,
        layer_names={path: tuple(names) for path, names in builder.layer_names.items()},
        weight_layers=builder.weight_layers(),
        largest_relative_difference=difference,
        examples=examples,
        seed=seed,
    )
    setattr(bridged, _ATTRIBUTE, report)
    return bridged


def bridge_report(tf_keras_model: Any) -> BridgeReport:
    """The report of the bridge that made this model.

    Raises:
      ValueError: the model did not come from `to_tf_keras` (a clone of such a model has no report).
    """
    report = getattr(tf_keras_model, _ATTRIBUTE, None)
    if report is None:
        raise ValueError(
            f"model {getattr(tf_keras_model, 'name', tf_keras_model)!r} did not come from to_tf_keras"
        )
    return report


def copy_weights_back(
    tf_keras_model: Any, keras_model: Any, *, rules: Mapping[type, Callable[..., Any]] | None = None
) -> None:
    """Copies trained weights from a bridged model into the Keras 3 model that it came from.

    Layers are found by name, so clones of the bridged model work too: fine-tuned, pruned (wrapped or
    stripped), clustered and stripped, quantization-aware. From the last of these come the float weights that
    training moved, not the 8-bit values that stand for them in the file.

    Args:
      tf_keras_model: what `to_tf_keras(keras_model)` returned, or a model derived from it.
      keras_model: the Keras 3 model; its weights are overwritten.
      rules: those that were given to `to_tf_keras`.

    Raises:
      ValueError: a layer of `keras_model` is missing from `tf_keras_model`, or has other weights there; all
        are named, and nothing is copied.

    Example:
      >>> import keras, numpy as np
      >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
      >>> copy = to_tf_keras(student)
      >>> copy.set_weights([np.ones((4, 2))])
      >>> copy_weights_back(copy, student)
      >>> float(student.get_weights()[0].sum())
      8.0
    """
    _ = tf.keras.__version__
    from keras_kd.compression.bridge_build import GraphBuilder
    from keras_kd.compression.bridge_rules import rule_finder

    if not isinstance(keras_model, keras.Model):
        raise TypeError(f"keras_model must be a Keras 3 model, got {type(keras_model).__name__}")
    _require_graph(keras_model)
    builder = GraphBuilder(keras_model, rule_finder(rules))
    blank = builder.build()
    homes = {
        id(weight): (layer, position)
        for layer in blank.layers
        for position, weight in enumerate(layer.weights)
    }
    trained = {_unwrapped(layer).name: layer for layer in tf_keras_model.layers}
    problems, moves = [], []
    for link in builder.links.values():
        layer, position = homes[id(link.target)]
        name = layer.name
        weights = _trained_weights(trained[name], layer) if name in trained else []
        if name not in trained:
            problems.append(f"layer {name!r} is missing")
        elif position >= len(weights) or tuple(weights[position].shape) != tuple(link.target.shape):
            problems.append(f"layer {name!r} has other weights than the Keras 3 model asks for")
        else:
            moves.append((link, weights[position]))
    if problems:
        raise ValueError(
            f"Weights cannot be copied back into {keras_model.name!r}: "
            + "; ".join(dict.fromkeys(problems))
            + "."
        )
    for link, weight in moves:
        value = np.asarray(weight.numpy())
        link.source.assign(link.backward(value) if link.backward else value)


_PRUNING, _QUANTIZATION = ("PruneLowMagnitude", "ClusterWeights"), ("QuantizeWrapper", "QuantizeWrapperV2")


def _unwrapped(layer: Any) -> Any:
    """The layer inside TF-MOT's wrapper; TF-MOT is not imported for that, so classes go by their names."""
    return layer.layer if type(layer).__name__ in (*_PRUNING, *_QUANTIZATION) else layer


def _trained_weights(layer: Any, like: Any) -> list[Any]:
    """The variables of a layer, wrapped or not, in the order of `like.weights`; [] where they do not fit.

    A quantization wrapper puts rounded tensors in the places of the kernels and keeps the variables itself.
    """
    if type(layer).__name__ not in _QUANTIZATION:
        return list(_unwrapped(layer).weights)
    held = {_base_name(weight): weight for weight in layer.weights}
    wanted = [_base_name(weight) for weight in like.weights]
    return (
        [held[name] for name in wanted]
        if len(set(wanted)) == len(wanted) and set(wanted) <= set(held)
        else []
    )


def _base_name(variable: Any) -> str:
    return str(variable.name.rsplit("/", 1)[-1])


def _require_graph(model: Any) -> None:
    import tf_keras

    from keras_kd.compression.bridge_graph import is_graph_model

    if not isinstance(model, (keras.Model, tf_keras.Model)):
        raise TypeError(
            f"keras_model must be a Keras 3 model or a tf_keras model, got {type(model).__name__}"
        )
    if not is_graph_model(model):
        raise ValueError(
            f"keras_model {model.name!r} ({type(model).__name__}) is subclassed: it has no graph of layers "
            "to walk. Only Functional and Sequential models can be rebuilt; wrap its call as "
            "keras.Model(inputs, model.call(inputs)) where its layers are plain Keras layers."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            f"keras_model {model.name!r} has not been built: give it an Input, or call it on data, first"
        )
