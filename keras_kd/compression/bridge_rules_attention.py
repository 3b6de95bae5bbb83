"""The rule for MultiHeadAttention: dense layers, matrix products and a softmax, one operator each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_rules_keep import keep_in_keras

_L = tf_keras.layers
_VERY_NEGATIVE = -1e9


def multi_head_attention(call: Call) -> Any:
    """Attention over one axis, causal or not; anything beyond runs as Keras 3 runs it.

    Queries, keys and values are Dense layers that TF-MOT can prune and quantize; in one opaque layer they
    would stay float. softmax(Q Kᵀ / sqrt(d)) V, after Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """
    layer = call.operation
    names = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask")
    given = {**dict(zip(names, call.args)), **call.kwargs}
    query, value = given["query"], given["value"]
    key = given["key"] if given.get("key") is not None else value
    plain = (
        all(given.get(name) is None for name in names[3:])
        and not given.get("return_attention_scores")
        and all(len(tensor.shape) == 3 and None not in tensor.shape[1:] for tensor in (query, key, value))
        and not any(layer.get_config().get(option) for option in ("sliding_window", "use_gate"))
    )
    if not plain:
        return keep_in_keras(call)
    config = layer.get_config()
    heads = _Heads(call, config["num_heads"], bool(config["use_bias"]))
    depth = config["key_dim"]
    queries = heads.split(layer.query_dense, query, depth, "query")
    keys = heads.split(layer.key_dense, key, depth, "key")
    values = heads.split(layer.value_dense, value, config["value_dim"] or depth, "value")
    queries = call.run(ours.ConstantMultiply(depth**-0.5, name=call.name("scale")), queries)
    scores = call.run(ours.MatMul(transpose_b=True, name=call.name("scores")), [queries, keys])
    if given.get("use_causal_mask"):
        future = np.triu(np.full((scores.shape[-2], scores.shape[-1]), _VERY_NEGATIVE, "float32"), 1)
        scores = call.run(ours.ConstantAdd(future, name=call.name("causal")), scores)
    weights = call.run(_L.Softmax(name=call.name("softmax")), scores)
    if config["dropout"]:
        weights = call.run(_L.Dropout(config["dropout"], name=call.name("dropout")), weights)
    mixed = call.run(ours.MatMul(name=call.name("mixed")), [weights, values])
    return heads.join(layer.output_dense, mixed)


class _Heads:
    """The dense layers at both ends, with the heads as an axis or side by side."""

    def __init__(self, call: Call, count: int, use_bias: bool):
        self.call, self.count, self.use_bias = call, count, use_bias

    def split(self, source: Any, tensor: Any, depth: int, name: str) -> Any:
        """[batch, length, width] to [batch, heads, length, depth]."""
        made = self._dense(source, self.count * depth, name)
        flat = self.call.run(made, tensor)
        self._link(source, made, lambda kernel: kernel.reshape(kernel.shape[0], -1))
        shape = (tensor.shape[1], self.count, depth)
        heads = self.call.run(_L.Reshape(shape, name=self.call.name(f"{name}_heads")), flat)
        return self.call.run(_L.Permute((2, 1, 3), name=self.call.name(f"{name}_first")), heads)

    def join(self, source: Any, tensor: Any) -> Any:
        """[batch, heads, length, depth] to [batch, length, width]."""
        _, heads, length, depth = tensor.shape
        rows = self.call.run(_L.Permute((2, 1, 3), name=self.call.name("rows")), tensor)
        flat = self.call.run(_L.Reshape((length, heads * depth), name=self.call.name("joined")), rows)
        made = self._dense(source, int(source.kernel.shape[-1]), "")
        outputs = self.call.run(made, flat)
        self._link(source, made, lambda kernel: kernel.reshape(-1, kernel.shape[-1]))
        return outputs

    def _dense(self, source: Any, units: int, name: str) -> Any:
        call = self.call

        def make() -> Any:
            trainable = call.operation.trainable
            return _L.Dense(units, use_bias=self.use_bias, name=call.name(name), trainable=trainable)

        return call.builder.remembered_as(source, make)

    def _link(self, source: Any, made: Any, flatten: Callable[[np.ndarray], np.ndarray]) -> None:
        shape = tuple(source.kernel.shape)
        self.call.link(source.kernel, made.kernel, flatten, lambda kernel: kernel.reshape(shape))
        if self.use_bias:
            wide = tuple(source.bias.shape)
            self.call.link(
                source.bias, made.bias, lambda bias: bias.reshape(-1), lambda bias: bias.reshape(wide)
            )
