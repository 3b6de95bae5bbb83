"""Does the rebuilt model compute the same? Checked on random inputs after every bridge.

Differences are relative to the largest magnitude of the tensor: max|a - b| / max|a|. A difference per element
relative to that element would blow up wherever a value is near zero.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from keras_kd.compression.bridge_errors import BridgeParityError
from keras_kd.compression.bridge_graph import run_graph
from keras_kd.compression.bridge_inputs import InputUnits
from keras_kd.compression.bridge_precision import float32_twin

# float32 keeps 24 bits; sums over a few thousand products in another order differ by about 1e-6.
LARGEST_RELATIVE_DIFFERENCE = 1e-4


def random_inputs(
    model: keras.Model, units: InputUnits, *, examples: int, seed: int, unknown_size: int = 16
) -> list[np.ndarray]:
    """Seeded inputs for a model: normal values for floats, small non-negative numbers for integers.

    Where the model itself scales and shifts an input, what comes out of that lies in 0..1 or -1..1: a model that
    divides by 255 gets pixels.

    Args:
      model: Keras 3 or tf_keras model.
      units: in which it expects its inputs.
      examples: batch size, where the model leaves it open.
      seed: of the generator.
      unknown_size: length of every other open axis.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for number, tensor in enumerate(model.inputs):
        size, *rest = tuple(tensor.shape)
        shape = (size or examples, *(unknown_size if length is None else length for length in rest))
        dtype = np.dtype(tf.as_dtype(tensor.dtype).as_numpy_dtype)
        if dtype.kind == "b":
            arrays.append(generator.integers(0, 2, shape).astype(bool))
            continue
        scale, shift = units.of(number)
        if np.any(scale != 1) or np.any(shift != 0):
            # 1/255 without a shift is for pixels that become 0..1, with one for those that become -1..1.
            values = (generator.uniform(-1.0 if np.any(shift != 0) else 0.0, 1.0, shape) - shift) / scale
            if np.issubdtype(dtype, np.integer):
                values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
            arrays.append(values.astype(dtype))
        elif np.issubdtype(dtype, np.integer):
            arrays.append(generator.integers(0, 2, shape).astype(dtype))
        else:
            arrays.append(generator.standard_normal(shape).astype(dtype))
    return arrays


def relative_difference(expected: Any, actual: Any) -> float:
    """max|expected - actual| / max|expected| over all elements; 0 where both are all zeros."""
    first, second = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if first.shape != second.shape:
        return float("inf")
    largest = np.max(np.abs(first), initial=0.0)
    with np.errstate(invalid="ignore"):  # two infinities
        gap = np.max(np.abs(first - second), initial=0.0)
    if np.isnan(gap):
        same_nans = np.array_equal(np.isnan(first), np.isnan(second))
        return 0.0 if same_nans and np.allclose(first, second, equal_nan=True) else float("inf")
    return float(gap / largest) if largest > 0 else float(gap)


def check_parity(
    model: keras.Model,
    bridged: tf_keras.Model,
    tensors: dict[str, Any],
    units: InputUnits,
    *,
    examples: int,
    seed: int,
) -> float:
    """Compares the outputs of both models on random inputs, in float32: a model of lower precision by its twin.

    Args:
      model: the Keras 3 model.
      bridged: its tf_keras counterpart.
      tensors: path -> symbolic output in `bridged`, to look for the culprit.
      units: in which the model expects its inputs.
      examples: batch size of the check.
      seed: of the inputs.

    Returns:
      the largest relative difference over all outputs.

    Raises:
      BridgeParityError: it exceeds 1e-4.
    """
    inputs = random_inputs(model, units, examples=examples, seed=seed)
    model = float32_twin(model)
    expected = _flat(model(_pack(model, inputs), training=False))
    actual = _flat(bridged(inputs if len(inputs) > 1 else inputs[0], training=False))
    largest = max(relative_difference(a, b) for a, b in zip(expected, actual, strict=True))
    if not largest <= LARGEST_RELATIVE_DIFFERENCE:
        path, kind, difference = _first_difference(model, bridged, tensors, inputs)
        raise BridgeParityError(
            f"The tf_keras copy of {model.name!r} differs from the original by {largest:.2g} (relative), "
            f"more than the {LARGEST_RELATIVE_DIFFERENCE:g} allowed. The first layer that differs is "
            f"{path!r} ({kind}), by {difference:.2g}." + _own_rounding(model, inputs, expected)
        )
    return largest


def _own_rounding(model: keras.Model, inputs: list[np.ndarray], expected: list[Any]) -> str:
    """A hint where a network amplifies the last digits of its inputs so much that no copy could agree with it."""
    nudged = [
        np.nextafter(array, np.asarray(np.inf, array.dtype)) if array.dtype.kind == "f" else array
        for array in inputs
    ]
    moved = _flat(model(_pack(model, nudged), training=False))
    own = max(relative_difference(a, b) for a, b in zip(expected, moved, strict=True))
    if not own > LARGEST_RELATIVE_DIFFERENCE / 10:
        return ""
    return (
        f" The original differs from itself by {own:.2g} where the inputs change in their last digit: it amplifies "
        "rounding, as networks of random weights may."
    )


def _pack(model: keras.Model, inputs: list[np.ndarray]) -> Any:
    if isinstance(model, keras.Sequential):
        return inputs[0]
    structure = model.input
    if not isinstance(structure, (list, tuple, dict)):
        return inputs[0]
    return keras.tree.pack_sequence_as(structure, inputs)


def _first_difference(
    model: keras.Model, bridged: tf_keras.Model, tensors: dict[str, Any], inputs: list[np.ndarray]
) -> tuple[str, str, float]:
    """Replays both models layer by layer and finds the first output that is off."""
    seen: list[tuple[str, str, Any]] = []

    def visit(operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = operation(*args, **kwargs)
        if all(path != known for known, _, _ in seen):
            seen.append((path, type(operation).__name__, outputs))
        return outputs

    run_graph(model, [tf.convert_to_tensor(array) for array in inputs], visit, training=False)
    wanted = [(path, kind, values) for path, kind, values in seen if path in tensors]
    probe = tf_keras.Model(bridged.inputs, [_flat(tensors[path]) for path, _, _ in wanted])
    results = probe(inputs if len(inputs) > 1 else inputs[0], training=False)
    for (path, kind, values), copies in zip(wanted, results, strict=True):
        difference = max(relative_difference(a, b) for a, b in zip(_flat(values), _flat(copies)))
        if not difference <= LARGEST_RELATIVE_DIFFERENCE:
            return path, kind, difference
    return model.name, type(model).__name__, float("nan")


def _flat(structure: Any) -> list[Any]:
    return list(tf.nest.flatten(structure))
