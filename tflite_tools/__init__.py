"""Convert, inspect, evaluate, compare, benchmark and report on any .tflite file.

Importing this package loads neither TensorFlow nor Keras; `convert` loads them when it is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tflite_tools.version import __version__

if TYPE_CHECKING:
    from tflite_tools.app_source import app_code
    from tflite_tools.artifact import TFLiteArtifact, load
    from tflite_tools.benchmarking.dispatch import benchmark
    from tflite_tools.benchmarking.result import BenchmarkResult
    from tflite_tools.c_source import c_array
    from tflite_tools.comparison import compare
    from tflite_tools.conversion import convert
    from tflite_tools.evaluation import evaluate
    from tflite_tools.inspection import inspect
    from tflite_tools.interpreter import predict
    from tflite_tools.report import Report, Stage
    from tflite_tools.report_building import report_of_models

# Where each public name lives. A name is imported when it is first used, which keeps the import of
# the package itself in milliseconds.
_HOMES = {
    "TFLiteArtifact": "artifact",
    "load": "artifact",
    "convert": "conversion",
    "inspect": "inspection",
    "predict": "interpreter",
    "evaluate": "evaluation",
    "compare": "comparison",
    "benchmark": "benchmarking.dispatch",
    "BenchmarkResult": "benchmarking.result",
    "c_array": "c_source",
    "app_code": "app_source",
    "Report": "report",
    "Stage": "report",
    "report_of_models": "report_building",
}

__all__ = [
    "BenchmarkResult",
    "Report",
    "Stage",
    "TFLiteArtifact",
    "__version__",
    "app_code",
    "benchmark",
    "c_array",
    "compare",
    "convert",
    "evaluate",
    "inspect",
    "load",
    "predict",
    "report_of_models",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
