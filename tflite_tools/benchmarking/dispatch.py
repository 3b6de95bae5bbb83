"""benchmark: one function, several places where a file can run."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from tflite_tools.benchmarking.result import BenchmarkResult
from tflite_tools.errors import nearest
from tflite_tools.model_source import content_of

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact

# Where each target lives: a module of this package and its function (content, **options) -> BenchmarkResult.
_TARGETS = {
    "host": ("host", "benchmark_host"),
    "android": ("android", "benchmark_android"),
    "micro": ("micro", "benchmark_micro"),
}


def benchmark(
    artifact: TFLiteArtifact | bytes | str | os.PathLike[str],
    target: str = "host",
    *,
    num_threads: int = 1,
    num_runs: int = 50,
    warmup_runs: int = 5,
    op_profile: bool = False,
    **options: Any,
) -> BenchmarkResult:
    """Measures how fast a .tflite file runs, and in how much memory.

    Args:
      artifact: an artifact, the file's bytes, or a path.
      target: "host" is this machine; "android" a device that `adb` reaches; "micro" TFLite Micro's kernels,
        for a microcontroller's memory.
      num_threads: threads of the runtime.
      num_runs: timed runs, at the least.
      warmup_runs: runs before those, which are not counted.
      op_profile: also measure every operator.
      **options: further options of the target; those of "host" are `use_xnnpack`, `interval`,
        `time_limit_s` and `seed` (see `tflite_tools.benchmarking.host.benchmark_host`), those of the
        others stand at `android.benchmark_android` and `micro.benchmark_micro` in the same package.

    Returns:
      A `BenchmarkResult`. A figure that was not measured is None.

    Raises:
      ValueError: an unknown target, or an argument out of range.
      TypeError: an option that the target does not have.
      InvalidModelError, UnsupportedModelError, ModelCrashError: about the file.
      DeviceError: about an Android device.

    Example:
      >>> benchmark(b"", target="hots")
      Traceback (most recent call last):
        ...
      ValueError: target must be one of 'host', 'android', 'micro', got 'hots'. Did you mean 'host'?
    """
    if target not in _TARGETS:
        raise ValueError(
            f"target must be one of {', '.join(map(repr, _TARGETS))}, got {target!r}.{nearest(target, _TARGETS)}"
        )
    module, function = _TARGETS[target]
    name = f"{__package__}.{module}"
    try:
        run = getattr(importlib.import_module(name), function)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f"target {target!r} is not available in this version of tflite_tools.") from None
    return run(
        content_of(artifact),
        num_threads=num_threads,
        num_runs=num_runs,
        warmup_runs=warmup_runs,
        op_profile=op_profile,
        **options,
    )
