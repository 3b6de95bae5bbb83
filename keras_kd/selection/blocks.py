"""Residual blocks, and which of them a network misses least."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd.compression.bridge_graph import run_graph
from keras_kd.selection.examples_of import batches_of
from keras_kd.selection.running import call_operation

_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Block:
    """An addition whose one side can be left out.

    Attributes:
      path: of the addition.
      shortcut: which of its inputs stays: 0 or 1.
      layers: the layers with weights on the side that goes, in order.
    """

    path: str
    shortcut: int
    layers: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _History:
    calls: int  # a bit for each call that this tensor depends on


def residual_blocks(model: keras.Model) -> list[Block]:
    """Every residual block of a model, in the order of the graph.

    A block is an addition of two tensors; the side with more weights is its branch, the other (nothing at all, or a
    projection) its shortcut. The branch must be read by nobody else.

    Example:
      >>> x = start = keras.Input((4,))
      >>> x = keras.layers.Dense(4)(x)
      >>> model = keras.Model(start, keras.layers.Add(name="sum")([x, start]))
      >>> [(block.path, block.shortcut) for block in residual_blocks(model)]
      [('sum', 1)]
    """
    operations: list[tuple[Any, str, list[_History]]] = []
    readers: dict[int, int] = {}

    def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, _History)]
        number = len(operations)
        operations.append((operation, path, read))
        calls = 1 << number
        for tensor in read:
            calls |= tensor.calls
            # The highest bit is the call that made the tensor: calls are numbered in order.
            readers[tensor.calls.bit_length()] = readers.get(tensor.calls.bit_length(), 0) | (1 << number)
        return _History(calls)

    outputs = run_graph(model, [_History(0) for _ in model.inputs], visit)
    returned = {tensor.calls.bit_length() for tensor in keras.tree.flatten(outputs)}
    blocks = []
    for number, (operation, path, read) in enumerate(operations):
        if type(operation).__name__ != "Add" or len(read) != 2:
            continue
        only = [read[0].calls & ~read[1].calls, read[1].calls & ~read[0].calls]
        weights = [_weights(side, operations) for side in only]
        branch = int(weights[1] > weights[0])
        inside = only[branch] | (1 << number)
        private = all(
            not readers.get(call + 1, 0) & ~inside and call + 1 not in returned
            for call in _bits(only[branch])
        )
        if weights[branch] > weights[1 - branch] and private:
            layers = tuple(
                operations[call][0] for call in _bits(only[branch]) if _has_weights(operations[call][0])
            )
            blocks.append(Block(path, 1 - branch, layers))
    return blocks


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def _has_weights(operation: Any) -> bool:
    return bool(getattr(operation, "weights", None))


def _weights(calls: int, operations: list[Any]) -> int:
    members = [operations[call][0] for call in _bits(calls)]
    return sum(math.prod(weight.shape) for member in members for weight in getattr(member, "weights", []))


def worth_by_weights(blocks: list[Block]) -> list[float]:
    """The mean |gamma| of each branch's last normalization, or the mean |weight| of its last layer."""
    worth = []
    for block in blocks:
        scales = [weight for layer in block.layers for weight in layer.weights if weight.name == "gamma"]
        kernels = [weight for layer in block.layers for weight in layer.weights if len(weight.shape) > 1]
        last = (scales or kernels or list(block.layers[-1].weights))[-1]
        worth.append(float(np.mean(np.abs(keras.ops.convert_to_numpy(last)))))
    return worth


def worth_by_inputs(model: keras.Model, blocks: list[Block], x: Any) -> list[float]:
    """How large each branch's contribution is beside the sum: the mean of ||branch|| / ||sum|| over real inputs."""
    paths = {block.path: block for block in blocks}

    @tf.function(reduce_retracing=True)
    def of_batch(inputs: Any) -> Any:
        found = {}

        def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = call_operation(operation, args, kwargs)
            if path in paths:
                operands = args[0] if isinstance(args[0], (list, tuple)) else args
                branch = _norm(operands[1 - paths[path].shortcut])
                found[path] = tf.reduce_mean(branch / tf.maximum(_norm(result), 1e-12))
            return result

        run_graph(
            model,
            [tf.convert_to_tensor(value) for value in keras.tree.flatten(inputs)],
            visit,
            training=False,
        )
        return found

    batches = [of_batch(batch) for batch in batches_of(x, _BATCH)]
    return [float(np.mean([float(batch[block.path]) for batch in batches])) for block in blocks]


def _norm(value: Any) -> Any:
    value = tf.cast(value, "float32")
    return tf.norm(tf.reshape(value, [tf.shape(value)[0], -1]), axis=1)
