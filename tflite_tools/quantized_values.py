"""Quantizing and dequantizing exactly as TFLite's own kernels do."""

import numpy as np


def quantize(values: np.ndarray, scale: float, zero_point: int, dtype: np.dtype | type | str) -> np.ndarray:
    """Real values to integers: round(value / scale) + zero_point, clamped to the type.

    As TFLite's AffineQuantize: the quotient is float32 and halves are rounded away from zero (NumPy rounds
    them to even, which is one step off for one value in two).

    Args:
      values: real values, any shape.
      scale: > 0, real units per step.
      zero_point: the integer that stands for 0.0.
      dtype: int8, uint8, int16 or int32.

    Returns:
      Integers of the same shape. NaN becomes the zero point.

    Example:
      >>> quantize(np.array([0.25, 0.75, -0.25, 99.0]), 0.5, 0, "int8").tolist()
      [1, 2, -1, 127]
    """
    limits = np.iinfo(dtype)
    quotient = np.asarray(values, np.float32) / np.float32(scale)
    quotient = np.nan_to_num(quotient, nan=0.0, posinf=np.inf, neginf=-np.inf)
    # trunc(q + 0.5) in float32 would round 0.49999997 up, so the fraction is compared instead.
    whole = np.trunc(quotient)
    rounded = whole + np.where(np.abs(quotient - whole) >= 0.5, np.sign(quotient), 0)
    return np.clip(rounded.astype(np.float64) + zero_point, limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Integers to real values: scale * (q - zero_point), computed in float64 and returned as float32.

    Example:
      >>> dequantize(np.array([-128, 0, 127], np.int8), 0.5, -128).tolist()
      [0.0, 64.0, 127.5]
    """
    steps = np.asarray(values, np.float64) - zero_point
    return (np.float64(np.float32(scale)) * steps).astype(np.float32)
