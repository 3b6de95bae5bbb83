"""Pruned weights stored without their zeros, where that helps and the file still runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

import tflite_tools
from tflite_tools.errors import ConversionError, ModelCrashError, UnsupportedModelError

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact


def sparse_if_it_helps(
    make: Callable[[bool], TFLiteArtifact], sample: Any, sparsity: float | None
) -> TFLiteArtifact:
    """The sparse file if it is smaller, runs, and answers exactly as the dense one; otherwise the dense one.

    Args:
      make: converts, with sparse encoding or without.
      sample: inputs to ask both files.
      sparsity: fraction of zeros in all kernels; without zeros there is nothing to try.

    Returns:
      A file whose last note says what was decided and why.
    """
    dense = make(False)
    if not sparsity:
        return _noted(dense, "sparse encoding: not tried, nothing is pruned")
    try:
        sparse = make(True)
    except ConversionError as error:
        return _noted(dense, f"sparse encoding: left out, the converter failed ({_first_line(error)})")
    sizes = f"{sparse.size_bytes:,} bytes instead of {dense.size_bytes:,}"
    if sparse.size_bytes >= dense.size_bytes:
        return _noted(dense, f"sparse encoding: left out, it would be {sizes}")
    try:
        found = tflite_tools.predict(sparse, sample, isolate=True)
    except (UnsupportedModelError, ModelCrashError) as error:
        return _noted(
            dense, f"sparse encoding: left out, the file of {sizes} does not run ({_first_line(error)})"
        )
    wanted = tflite_tools.predict(dense, sample)
    pairs = zip(keras.tree.flatten(wanted), keras.tree.flatten(found), strict=True)
    if not all(np.array_equal(one, other) for one, other in pairs):
        return _noted(dense, f"sparse encoding: left out, the file of {sizes} answers otherwise")
    return _noted(sparse, f"sparse encoding: {sizes}, the same answers to {_length(sample)} examples")


def _noted(artifact: TFLiteArtifact, note: str) -> TFLiteArtifact:
    return dataclasses.replace(artifact, notes=(*artifact.notes, note))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _length(sample: Any) -> int:
    return len(keras.tree.flatten(sample)[0])
