"""Quantizing and dequantizing exactly as TFLite's own kernels do."""

import numpy as np

_BLOCK = 1 << 15  # values


def quantize(values: np.ndarray, scale: float, zero_point: int, dtype: np.dtype | type | str) -> np.ndarray:
    """Real values to integers: round(value / scale) + zero_point, clamped to the type.

    As TFLite's AffineQuantize: the quotient is float32 and halves are rounded away from zero (NumPy rounds
    them to even, which is one step off for one value in two).

    Args:
      values: real values, any shape, without NaN: no integer stands for that.
      scale: > 0, real units per step.
      zero_point: the integer that stands for 0.0.
      dtype: int8, uint8 or int16.

    Returns:
      Integers of the same shape.

    Example:
      >>> quantize(np.array([0.25, 0.75, -0.25, 99.0]), 0.5, 0, "int8").tolist()
      [1, 2, -1, 127]
    """
    limits = np.iinfo(dtype)
    flat = np.asarray(values, np.float32).ravel()
    result = np.empty(flat.shape, dtype)
    # In blocks that stay in the processor's cache; a whole batch is read from memory once and not seven times.
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        quotient = flat[part] / np.float32(scale)
        # Clamped before the zero point is added: float32 holds these whole numbers exactly.
        np.clip(quotient, limits.min - zero_point, limits.max - zero_point, out=quotient)
        steps = _rounded(quotient)
        steps += zero_point
        result[part] = steps
    return result.reshape(np.shape(values))


def _rounded(quotient: np.ndarray) -> np.ndarray:
    """Whole numbers, halves away from zero."""
    steps = np.rint(quotient)  # halves to even
    rest = np.subtract(quotient, steps)
    if rest.size and (rest.max() == 0.5 or rest.min() == -0.5):
        # Rounded towards zero where the rest points away from it: one step further.
        toward_zero = (np.abs(rest) == 0.5) & ((rest > 0) == (quotient > 0))
        steps[toward_zero] += np.sign(quotient[toward_zero])
    return steps


def dequantize(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Integers to real values: scale * (q - zero_point), computed in float64 and returned as float32.

    Example:
      >>> dequantize(np.array([-128, 0, 127], np.int8), 0.5, -128).tolist()
      [0.0, 64.0, 127.5]
    """
    steps = np.asarray(values, np.float64) - zero_point
    return (np.float64(np.float32(scale)) * steps).astype(np.float32)
