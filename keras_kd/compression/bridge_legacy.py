"""tf_keras models as students: a legacy `.h5` that Keras 3 cannot read, or a model that was always tf_keras.

They are rebuilt as well, since TF-MOT refuses much of what they may hold: nested models, TensorFlow functions in
the graph, Rescaling, activations without an integer form, a BatchNormalization behind no kernel. A layer
without any of that is made anew from its own configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression import bridge_rules_norm as norm
from keras_kd.compression import bridge_rules_ops as ops
from keras_kd.compression import bridge_rules_shape as shape
from keras_kd.compression.bridge_activations import ACTIVATIONS, FUSED
from keras_kd.compression.bridge_build import Call, CallRule, Chain
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_precision import in_float32

# tf_keras names of activations that Keras 3 calls otherwise.
_RENAMED = {"swish": "silu", "hard_swish": "hard_silu"}


def legacy_rule_finder(custom: Mapping[type, Callable[..., Any]] | None) -> Callable[[Any], CallRule | None]:
    """A function from a live tf_keras layer to its rule, or None. The caller's rules come first."""
    custom = dict(custom or {})

    def find(layer: Any) -> CallRule | None:
        for cls in type(layer).__mro__:
            if cls in custom:
                return _simple(custom[cls])
        kind = type(layer).__name__
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            return _tensorflow_function
        if isinstance(layer, ours.BridgeLayer):
            return _simple(_again)
        if kind == "LayerScale" and type(layer).__module__.startswith("tf_keras.src.applications."):
            return norm.layer_scale
        if getattr(tf_keras.layers, kind, None) is not type(layer) or kind == "Lambda":
            return None
        if kind in _RULES:
            return _RULES[kind]
        return _simple(_again)

    return find


def _simple(rule: Callable[[Any, str], Any]) -> CallRule:
    return lambda call: call.chain(call.builder.remembered(call, lambda: rule(call.operation, call.name())))


def _again(layer: Any, name: str) -> Any:
    """The layer anew, from its own configuration; an activation that is not fused goes behind it."""
    config = {**in_float32(layer.get_config()), "name": name}
    behind: list[Any] = []
    if hasattr(layer, "activation") and not hasattr(layer, "recurrent_activation"):
        kind = _activation(layer)
        if kind not in FUSED:
            config["activation"] = "linear"
            behind = _activation_layers(kind, f"{name}/{kind}")
    return [type(layer).from_config(config), *behind]


def _activation(layer: Any) -> str:
    name = getattr(layer.activation, "__name__", None)
    if name is None or tf_keras.activations.get(layer.activation) is not _builtin(name):
        raise NotBridgeable(f"its activation {layer.activation!r} is not one of tf_keras's own")
    return _RENAMED.get(name, name)


def _builtin(name: str) -> Any:
    try:
        return tf_keras.activations.get(name)
    except ValueError:
        return None


def _activation_layers(kind: str, name: str) -> list[Any]:
    if kind == "hard_sigmoid":
        # tf_keras: clip(0.2 x + 0.5, 0, 1) = relu6(1.2 x + 3) / 6, another function than Keras 3's.
        return [ours.ConstantMultiply(1.2, name=f"{name}_slope"), *ACTIVATIONS[kind](name)]
    if kind not in ACTIVATIONS:
        raise NotBridgeable(f"no rule for the activation {kind!r}")
    return ACTIVATIONS[kind](name)


def _activation_layer(layer: Any, name: str) -> list[Any]:
    kind = _activation(layer)
    if kind in FUSED:
        return [tf_keras.layers.Activation(kind, name=name)]
    return _activation_layers(kind, name)


def _separable(layer: Any, name: str) -> Chain:
    if _activation(layer) not in FUSED:
        raise NotBridgeable(f"SeparableConv2D with the activation {_activation(layer)!r} in tf_keras")
    made = tf_keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=layer.depth_multiplier,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        trainable=layer.trainable,
        name=f"{name}/depthwise",
    )
    point = tf_keras.layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=_activation(layer),
        kernel_regularizer=layer.pointwise_regularizer,
        bias_regularizer=layer.bias_regularizer,
        activity_regularizer=layer.activity_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_constraint=layer.bias_constraint,
        trainable=layer.trainable,
        name=name,
    )
    return Chain([made, point])


def _normalization(call: Call) -> Any:
    layer = call.operation
    mean, variance = (np.asarray(value, "float32") for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), tf_keras.backend.epsilon())
    if layer.invert:
        return norm.scale_and_shift(call, deviation, mean)
    return norm.scale_and_shift(call, 1.0 / deviation, -mean / deviation)


def _tensorflow_function(call: Call) -> Any:
    """A TensorFlow function in the graph, by the name that tf_keras wrote down."""
    function = call.operation.get_config()["function"]
    given = dict(call.kwargs)
    given.pop("name", None)
    if function == "__operators__.getitem":
        return ops.get_item(dataclasses.replace(call, kwargs={"key": _slices(given["slice_spec"])}))
    if function not in _FUNCTIONS:
        raise NotBridgeable(f"no rule for the TensorFlow function {function!r}")
    rule, names = _FUNCTIONS[function]
    settings = {name: given.pop(other, default) for name, other, default in names}
    return rule(dataclasses.replace(call, kwargs=given, operation=SimpleNamespace(**settings)))


def _slices(spec: Any) -> list[Any]:
    entries = spec if isinstance(spec, (list, tuple)) else [spec]
    return [slice(e["start"], e["stop"], e["step"]) if isinstance(e, dict) else e for e in entries]


_REDUCED = (("axis", "axis", None), ("keepdims", "keepdims", False))
# Name of a TensorFlow function -> the rule for the Keras operation, and its settings: name, TF's name, default.
_FUNCTIONS: dict[str, tuple[CallRule, tuple[tuple[str, str, Any], ...]]] = {
    "__operators__.add": (ops.add, ()),
    "concat": (ops.concatenate, (("axis", "axis", None),)),
    "math.abs": (ops.unary("abs"), ()),
    "math.add": (ops.add, ()),
    "math.exp": (ops.unary("exp"), ()),
    "math.maximum": (ops.maximum, ()),
    "math.minimum": (ops.minimum, ()),
    "math.multiply": (ops.multiply, ()),
    "math.negative": (ops.negative, ()),
    "math.reduce_max": (ops.reduction("max"), _REDUCED),
    "math.reduce_mean": (ops.reduction("mean"), _REDUCED),
    "math.reduce_min": (ops.reduction("min"), _REDUCED),
    "math.reduce_sum": (ops.reduction("sum"), _REDUCED),
    "math.rsqrt": (ops.unary("rsqrt"), ()),
    "math.sigmoid": (ops.activation("sigmoid"), ()),
    "math.sqrt": (ops.unary("sqrt"), ()),
    "math.square": (ops.unary("square"), ()),
    "math.subtract": (ops.subtract, ()),
    "math.tanh": (ops.activation("tanh"), ()),
    "nn.elu": (ops.elu, (("alpha", "alpha", 1.0),)),
    "nn.relu": (ops.activation("relu"), ()),
    "nn.relu6": (ops.activation("relu6"), ()),
    "nn.silu": (ops.activation("silu"), ()),
    "reshape": (ops.reshape, (("newshape", "shape", None),)),
}

# tf_keras class name -> rule(call), where the layer's own configuration is not enough.
_RULES: dict[str, CallRule] = {
    "Activation": _simple(_activation_layer),
    "AveragePooling3D": shape.pooling_3d,
    "BatchNormalization": norm.batch_normalization,
    "MaxPooling3D": shape.pooling_3d,
    "Normalization": _normalization,
    "Rescaling": norm.rescaling,
    "SeparableConv2D": _simple(_separable),
}
