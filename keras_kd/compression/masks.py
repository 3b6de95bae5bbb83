"""Magnitude masks of our own, for the kernels and patterns that TF-MOT does not prune.

The arithmetic is TF-MOT's (arXiv:1710.01878): the entries, or the blocks, of smallest mean magnitude go.
A kernel is read as [..., inputs, outputs], which is how every Keras kernel is laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_kd.compression.schedule import PruningSteps


def magnitude_mask(
    kernel: tf.Tensor, sparsity: tf.Tensor | float, *, block: tuple[int, int] = (1, 1)
) -> tf.Tensor:
    """1 where a weight stays, 0 where it goes.

    Args:
      kernel: float [..., inputs, outputs].
      sparsity: fraction of blocks to zero, in [0, 1).
      block: inputs and outputs of a block. Blocks at the border may be partial; they are judged by the
        mean magnitude of the weights that they have.

    Returns:
      A mask of the kernel's shape and type. At least one block stays.

    Example:
      >>> kernel = tf.constant([[1.0], [-3.0], [2.0], [0.5]])
      >>> magnitude_mask(kernel, 0.5).numpy().ravel().tolist()
      [0.0, 1.0, 1.0, 0.0]
      >>> magnitude_mask(kernel, 0.5, block=(2, 1)).numpy().ravel().tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    scores = _block_means(tf.abs(kernel), block)
    count = tf.size(scores)
    keep = tf.cast(
        tf.maximum(tf.round(tf.cast(count, tf.float64) * (1 - tf.cast(sparsity, tf.float64))), 1), tf.int32
    )
    # Ranks rather than a threshold: equal magnitudes must not change how many stay.
    order = tf.argsort(tf.reshape(scores, [-1]), direction="DESCENDING", stable=True)
    kept = tf.scatter_nd(order[:keep, tf.newaxis], tf.ones([keep], kernel.dtype), [count])
    return _spread(tf.reshape(kept, tf.shape(scores)), block, kernel)


def two_of_four_mask(kernel: tf.Tensor) -> tf.Tensor:
    """Zeroes the two smallest of every four neighbors along the inputs.

    Inputs that are no multiple of four end in a group of the rest, of which the larger half (rounded up)
    stays.

    Example:
      >>> two_of_four_mask(tf.constant([[1.0], [-3.0], [2.0], [0.5]])).numpy().ravel().tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    inputs = kernel.shape[-2]
    groups = -(-inputs // 4)
    # Padding ranks last, so that it never takes a place from a real weight.
    scores = tf.pad(
        tf.abs(kernel),
        [[0, 0]] * (kernel.shape.rank - 2) + [[0, groups * 4 - inputs], [0, 0]],
        constant_values=-1.0,
    )
    grouped = tf.reshape(scores, [*kernel.shape[:-2], groups, 4, kernel.shape[-1]])
    ranks = tf.argsort(
        tf.argsort(grouped, axis=-2, direction="DESCENDING", stable=True), axis=-2, stable=True
    )
    rest = inputs - 4 * (groups - 1)
    allowed = tf.constant([2] * (groups - 1) + [-(-rest // 2)], tf.int32)
    kept = ranks < tf.reshape(allowed, [groups, 1, 1])
    whole = tf.reshape(tf.cast(kept, kernel.dtype), tf.shape(scores))
    return whole[..., :inputs, :]


def _padded(value: tf.Tensor, block: tuple[int, int]) -> tf.Tensor:
    """[..., inputs, outputs] padded with zeros to whole blocks and split: [..., bi, block_i, bo, block_o]."""
    shape = value.shape.as_list()
    by_in, by_out = -(-shape[-2] // block[0]), -(-shape[-1] // block[1])
    padding = [[0, 0]] * (len(shape) - 2)
    padding += [[0, by_in * block[0] - shape[-2]], [0, by_out * block[1] - shape[-1]]]
    return tf.reshape(tf.pad(value, padding), [*shape[:-2], by_in, block[0], by_out, block[1]])


def _block_means(magnitudes: tf.Tensor, block: tuple[int, int]) -> tf.Tensor:
    sums = tf.reduce_sum(_padded(magnitudes, block), axis=[-3, -1])
    return sums / tf.reduce_sum(_padded(tf.ones_like(magnitudes), block), axis=[-3, -1])


def _spread(blocks: tf.Tensor, block: tuple[int, int], kernel: tf.Tensor) -> tf.Tensor:
    whole = tf.repeat(tf.repeat(blocks, block[0], axis=-2), block[1], axis=-1)
    return whole[..., : kernel.shape[-2], : kernel.shape[-1]]


class MaskedKernels:
    """Masks that follow a schedule and are put on their kernels after every optimizer step.

    Args:
      kernels: variables with the sparsity each of them ends with.
      steps: the schedule, in training steps counted from 1.
      block: see `magnitude_mask`.
      two_of_four: `two_of_four_mask` at the first step of the schedule, instead of a growing sparsity.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[Any, float]],
        steps: PruningSteps,
        *,
        block: tuple[int, int] = (1, 1),
        two_of_four: bool = False,
    ):
        self._steps, self._block, self._two_of_four = steps, block, two_of_four
        self._items = [
            (kernel, sparsity, tf.Variable(tf.ones_like(kernel), trainable=False))
            for kernel, sparsity in kernels
        ]

    @property
    def variables(self) -> list[Any]:
        """The masks."""
        return [mask for _, _, mask in self._items]

    def apply(self, step: tf.Tensor) -> None:
        """Renews the masks where the schedule says so, then zeroes what they zero. Graph-safe.

        Args:
          step: int64 scalar, the number of optimizer steps taken so far, from 1.
        """
        if not self._items:
            return
        begin, end = self._steps.begin, self._steps.end
        due = (step >= begin) & (step <= end) & ((step - begin) % self._steps.frequency == 0)

        def renew() -> tf.Tensor:
            # A block of one step has no ramp.
            progress = (
                tf.constant(1.0) if begin == end else tf.cast(step - begin, tf.float32) / float(end - begin)
            )
            for kernel, sparsity, mask in self._items:
                if self._two_of_four:
                    mask.assign(two_of_four_mask(kernel))
                else:
                    now = sparsity * (1 - (1 - progress) ** 3)
                    mask.assign(magnitude_mask(kernel, now, block=self._block))
            return tf.constant(True)

        tf.cond(due, renew, lambda: tf.constant(False))
        for kernel, _, mask in self._items:
            kernel.assign(kernel * mask)
