"""A sample of real examples out of whatever the caller trains with."""

from typing import Any

import keras
import numpy as np

from keras_kd.probing import first_inputs

Arrays = Any  # a NumPy array, or a nest of them


def sample_of(x: Any, y: Any = None, *, count: int) -> tuple[Arrays, Arrays | None]:
    """Up to `count` examples, spread evenly over the data: data sorted by class gives every class.

    Args:
      x: arrays in any nesting, a batched `tf.data.Dataset` or a `PyDataset` of (x, y[, weight]); of those two the first
        batches are taken.
      y: labels, where `x` is arrays.
      count: examples at most.

    Returns:
      (inputs, labels or None), NumPy arrays.

    Raises:
      ValueError: there is not one example, or x and y differ in length.

    Example:
      >>> sample_of(np.arange(10), np.arange(10) % 2, count=3)
      (array([0, 4, 9]), array([0, 0, 1]))
    """
    leaves = keras.tree.flatten(x)
    if all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves):
        labels = [] if y is None else keras.tree.flatten(y)
        sizes = {len(leaf) for leaf in [*leaves, *labels]}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"x and y must have the same number of examples, at least one; got {sorted(sizes)}."
            )
        total = sizes.pop()
        places = np.linspace(0, total - 1, min(count, total)).astype(int)

        def pick(array: Any) -> np.ndarray:
            return np.asarray(array)[places]

        return keras.tree.map_structure(pick, x), None if y is None else keras.tree.map_structure(pick, y)
    return _first_batches(x, count)


def _first_batches(x: Any, count: int) -> tuple[Arrays, Arrays | None]:
    batches: list[tuple[Any, Any]] = []
    taken = 0
    _, x = first_inputs(x)
    for batch in (x[index] for index in range(len(x))) if isinstance(x, keras.utils.PyDataset) else x:
        inputs, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
        batches.append(keras.tree.map_structure(keras.ops.convert_to_numpy, (inputs, labels)))
        taken += len(keras.tree.flatten(batches[-1][0])[0])
        if taken >= count:
            break
    if not taken:
        raise ValueError("x holds not one example.")
    joined = keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[:count], *[inputs for inputs, _ in batches]
    )
    if any(labels is None for _, labels in batches):
        return joined, None
    labels = keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[:count], *[item for _, item in batches]
    )
    return joined, labels


def batches_of(arrays: Arrays, size: int) -> list[Arrays]:
    """Slices of `size` examples, the last one shorter."""
    total = len(keras.tree.flatten(arrays)[0])
    return [
        keras.tree.map_structure(lambda array, start=start: array[start : start + size], arrays)
        for start in range(0, total, size)
    ]
