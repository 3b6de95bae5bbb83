"""Catches what the converter prints, and turns it into messages a person can act on."""

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator


class CapturedText:
    """What was printed while `captured_console` was open; complete once it has closed."""

    def __init__(self) -> None:
        self.text = ""


@contextlib.contextmanager
def captured_console() -> Iterator[CapturedText]:
    """Catches stdout and stderr, of Python and of native code alike, and Python's warnings.

    Native code writes to the file descriptors 1 and 2, past sys.stdout. They belong to the whole process:
    what other threads print meanwhile is caught as well.
    """
    result = CapturedText()
    in_python = io.StringIO()
    with tempfile.TemporaryFile() as in_native:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        saved = [_duplicate(1), _duplicate(2)]
        try:
            for number, copy in zip((1, 2), saved):
                if copy is not None:
                    os.dup2(in_native.fileno(), number)
            with (
                contextlib.redirect_stdout(in_python),
                contextlib.redirect_stderr(in_python),
                warnings.catch_warnings(record=True) as caught,
            ):
                warnings.simplefilter("default")
                yield result
        finally:
            for number, copy in zip((1, 2), saved):
                if copy is not None:
                    os.dup2(copy, number)
                    os.close(copy)
            in_native.seek(0)
            said = "".join(f"warning: {' '.join(str(warning.message).split())}\n" for warning in caught)
            result.text = in_native.read().decode("utf-8", errors="replace") + in_python.getvalue() + said


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # a process without this descriptor (a service, a window-only program)
        return None


# What a library logs for information only, with the marks of absl and of Python's logging. Programs that run under absl
# see such lines of TensorFlow's that others do not.
_INFORMATION = re.compile(r"^(?:I\d{4} [\d:.]+\s+\d+ [\w./-]+:\d+\] |INFO:)")
# Lines that say nothing about the model: progress, the machine's devices, the converter's own bookkeeping.
_NOISE = re.compile(
    r"^\s*$|cuInit|CUDA|cuda|cuDNN|cuBLAS|TensorRT|absl::InitializeLog|computation_placer|oneDNN"
    r"|cpu_feature_guard|fully_quantize: |Ignored output_format|Ignored drop_control_dependency"
    r"|Reading SavedModel|Reading meta graph|Restoring SavedModel|Running initialization"
    r"|SavedModel load for tags|MLIR V1 optimization|Created TensorFlow Lite|XNNPACK delegate"
    r"|Estimated count of arithmetic|Assets written|Saved artifact|The following endpoints|^\* Endpoint"
    r"|Args:|args_0|Output Type|^\s*TensorSpec|Captures:|Total time|will be removed in a future version"
    r"|deprecat|Statistics for quantized inputs were expected|Compiled the loaded model|uncompiled"
    r"|MLIR crash reproducer|Skipping runtime version metadata"
    r"|without training|untraced functions|grappler|Skipping full serialization",
)
_PREFIX = re.compile(r"^(?:[WE]\d{4} [\d:.]+\s+\d+ [\w./-]+:\d+\] |WARNING:(?:absl|tensorflow):|warning: )")


def remarks(text: str) -> tuple[str, ...]:
    r"""The lines of a converter's output that concern the model, each once, in order.

    Example:
      >>> remarks("fully_quantize: 0, inference_type: 6\nwarning: Weight 'a' is all zeros\n")
      ("Weight 'a' is all zeros",)
      >>> remarks("I1124 14:40:55.100000 139 sharding_util.py:56] Sharding callback duration: 6 microseconds")
      ()
    """
    found: dict[str, None] = {}
    for line in text.splitlines():
        if _INFORMATION.match(line) or _NOISE.search(line):
            continue
        stripped = _PREFIX.sub("", line).strip()
        # Stack dumps and dumps of the whole graph are for the log, not for a person.
        if stripped and not re.match(r'loc\(|<unknown>|"func|"tf|%\d|\^|}|\)|File "|Traceback', stripped):
            found[stripped[:300]] = None
    return tuple(found)
