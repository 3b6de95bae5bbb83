"""A look at the first batch of whatever `fit` takes, without using it up."""

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_EXAMPLES = 8


def first_inputs(x: Any) -> tuple[Any, Any]:
    """The inputs of the first batch, and the data to go on with.

    Args:
      x: what `fit` takes as `x`: arrays or tensors in any nesting, a `tf.data.Dataset`, a
        `keras.utils.PyDataset`, an iterable of batches, or a generator.

    Returns:
      (inputs of up to a batch, data). `data` is `x` itself except for a generator, whose first batch is put back.

    Example:
      >>> import numpy as np
      >>> inputs, data = first_inputs(iter([(np.zeros((2, 3)), np.zeros(2))]))
      >>> inputs.shape, len(list(data))
      ((2, 3), 1)
    """
    if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
        batch = next(iter(x))
    elif isinstance(x, keras.utils.PyDataset):
        batch = x[0]
    elif isinstance(x, Iterator):
        batch = next(x)
        x = itertools.chain([batch], x)
        # Keras asks whether its data is a generator by type, and a chain is none.
        x = (item for item in x)
    elif hasattr(x, "__getitem__") or isinstance(x, (dict, list, tuple)):
        return keras.tree.map_structure(lambda array: array[:_EXAMPLES], x), x
    else:
        batch = next(iter(x))
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return keras.tree.map_structure(_local, inputs), x


def _local(value: Any) -> Any:
    """One replica's part of a distributed value."""
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value
