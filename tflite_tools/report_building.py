"""A report from .tflite files: each one inspected, evaluated where there are labeled data, and timed."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tflite_tools.benchmarking.dispatch import benchmark
from tflite_tools.benchmarking.result import BenchmarkResult
from tflite_tools.errors import ModelCrashError, UnsupportedModelError
from tflite_tools.inspection import inspect
from tflite_tools.report import Report, Stage

if TYPE_CHECKING:
    from tflite_tools.artifact import TFLiteArtifact


def report_of_models(
    models: Mapping[str, TFLiteArtifact | bytes | str | os.PathLike[str]],
    x: Any = None,
    y: Any = None,
    *,
    title: str = "Comparison of .tflite files",
    op_profile: bool = False,
    time_limit_s: float = 5.0,
    verbose: bool = True,
) -> Report:
    """Measures several .tflite files and puts them into one report, the reference first.

    Args:
      models: stage name to artifact, bytes or path.
      x: inputs as for `evaluate`, or None to leave the accuracy out.
      y: labels as for `evaluate`.
      title: of the report.
      op_profile: also measure every operator.
      time_limit_s: seconds for timing each file.
      verbose: say on standard error what is being measured.

    Returns:
      The report. A file that the runtime here cannot run keeps its other figures, and a note says why.

    Raises:
      InvalidModelError: a file that is no .tflite file, or a broken one.
      ValueError: data that do not fit a file.

    Example:
      >>> import keras
      >>> from tflite_tools import convert
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
      >>> files = {"float": convert(model), "float16": convert(model, quantization="float16")}
      >>> report = report_of_models(files, time_limit_s=0.1, verbose=False)
      >>> [(stage.name, stage.macs) for stage in report.stages]
      [('float', 8), ('float16', 8)]
    """
    stages, confusion, op_times, class_names = [], {}, {}, None
    for name, model in models.items():
        if verbose:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
        stage, evaluation, timing = _measure(name, model, x, y, op_profile, time_limit_s)
        stages.append(stage)
        if evaluation is not None and evaluation.confusion:
            confusion[name] = evaluation.confusion
            class_names = class_names or tuple(row.name for row in evaluation.per_class)
        if timing is not None and timing.ops:
            op_times[name] = timing.ops
    return Report(
        title,
        tuple(stages),
        confusion=confusion or None,
        class_names=class_names if confusion else None,
        op_times=op_times or None,
    )


def _measure(
    name: str, model: Any, x: Any, y: Any, op_profile: bool, time_limit_s: float
) -> tuple[Stage, Any, BenchmarkResult | None]:
    from tflite_tools.evaluation import evaluate
    from tflite_tools.interpreter import as_artifact

    artifact = as_artifact(model)
    found = inspect(artifact)
    notes: list[str] = []
    evaluation = timing = None
    try:
        timing = benchmark(artifact, op_profile=op_profile, time_limit_s=time_limit_s)
        notes += timing.warnings
        if x is not None:
            evaluation = evaluate(artifact, x, y)
    except (UnsupportedModelError, ModelCrashError) as error:
        notes.append(str(error))
    stage = Stage(
        name,
        accuracy=None if evaluation is None else evaluation.accuracy,
        parameters=found.parameters,
        sparsity=found.sparsity,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        latency_us=None if timing is None or timing.latency_us is None else timing.latency_us.median,
        macs=found.macs,
        notes=tuple(notes),
    )
    return stage, evaluation, timing


def stage_names(paths: list[str]) -> dict[str, str]:
    """Stage name to path: the file's name without its ending, with its folder where two are the same.

    Example:
      >>> stage_names(["a/model.tflite", "b/model.tflite", "c/other.tflite"])
      {'a/model': 'a/model.tflite', 'b/model': 'b/model.tflite', 'other': 'c/other.tflite'}
    """
    stems = [pathlib.PurePath(path).stem for path in paths]
    return {
        stem if stems.count(stem) == 1 else str(pathlib.PurePath(path).with_suffix("")): path
        for stem, path in zip(stems, paths)
    }
