"""Rules for recurrent layers, Bidirectional, TimeDistributed and Embedding."""

from __future__ import annotations

from typing import Any

import keras
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_activations import activation_name
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_fields import common, fields, penalties
from keras_kd.compression.bridge_graph import is_graph_model, run_graph

_L = tf_keras.layers
_FIELDS = (
    "units",
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "dilation_rate",
    "use_bias",
    "unit_forget_bias",
    "dropout",
    "recurrent_dropout",
    "return_sequences",
    "return_state",
    "go_backwards",
    "unroll",
    "reset_after",
)
_PENALTIES = (
    "kernel_regularizer",
    "recurrent_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "recurrent_constraint",
    "bias_constraint",
)
_MOST_UNROLLED_STEPS = 64
# Names that mean the same function in Keras 3 and in tf_keras; hard_sigmoid, for one, does not.
_SAME_ACTIVATIONS = {"elu", "linear", "relu", "selu", "sigmoid", "softmax", "softplus", "softsign", "tanh"}


def recurrent(layer: Any, name: str) -> Any:
    """LSTM, GRU, SimpleRNN and the convolutional LSTMs."""
    if layer.get_config().get("stateful"):
        raise NotBridgeable("stateful=True: the state between calls has no counterpart in the file")
    activations = {}
    for which in ("activation", "recurrent_activation"):
        if hasattr(layer, which):
            kind = activation_name(getattr(layer, which))
            if kind == "silu":
                kind = "swish"
            elif kind not in _SAME_ACTIVATIONS:
                raise NotBridgeable(f"its {which} {kind!r} means another function in tf_keras")
            activations[which] = kind
    settings = {**activations, **fields(layer, *_FIELDS)}
    if type(layer).__name__ in ("GRU", "SimpleRNN") and _few_steps(layer):
        settings["unroll"] = True
    return getattr(_L, type(layer).__name__)(
        **settings, **penalties(layer, *_PENALTIES), **common(layer, name)
    )


def _few_steps(layer: Any) -> bool:
    """Whether the loop can be written out: TFLite has an operator for LSTM only, and no integer loops."""
    try:
        steps = layer.input.shape[1]
    except (AttributeError, ValueError):  # wrapped, or called more than once
        return False
    return steps is not None and steps <= _MOST_UNROLLED_STEPS


def bidirectional(layer: Any, name: str) -> Any:
    """Bidirectional around a recurrent layer; both directions may differ."""
    for inner in (layer.forward_layer, layer.backward_layer):
        if type(inner) not in (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN):
            raise NotBridgeable(f"it wraps {type(inner).__name__}; LSTM, GRU and SimpleRNN can be rebuilt")
    return _L.Bidirectional(
        recurrent(layer.forward_layer, layer.forward_layer.name),
        backward_layer=recurrent(layer.backward_layer, layer.backward_layer.name),
        merge_mode=layer.merge_mode,
        **common(layer, name),
    )


def time_distributed(call: Call) -> Any:
    """TimeDistributed: time joins the batch, the layer runs once, and time comes back."""
    value = call.input
    inner = call.operation.layer
    length, *shape = value.shape[1:]
    if length is None or None in shape:
        raise NotBridgeable("its input has an open number of steps; give the Input a fixed one")
    if call.kwargs.get("mask") is not None:
        raise NotBridgeable("masks inside TimeDistributed")
    steps = call.run(ours.FullReshape([-1, *shape], name=call.name("steps")), value)
    if is_graph_model(inner):
        outputs = run_graph(inner, [steps], call.builder.visit_inner, f"{call.path}/")
    else:
        outputs = call.builder.visit_inner(inner, call.path, (steps,), {})
    back = ours.FullReshape([-1, length, *outputs.shape[1:]], name=call.name("back"))
    return call.run(back, outputs)


def embedding(layer: Any, name: str) -> Any:
    """Embedding."""
    if getattr(layer, "lora_enabled", False):
        raise NotBridgeable("LoRA is enabled; merge it first")
    return _L.Embedding(
        layer.input_dim,
        layer.output_dim,
        mask_zero=layer.mask_zero,
        **penalties(layer, "embeddings_regularizer", "embeddings_constraint"),
        **common(layer, name),
    )
