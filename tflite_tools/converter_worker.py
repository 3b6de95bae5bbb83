"""The child process in which TensorFlow's converter runs; `converter.py` starts it."""

import os
import select
import signal
import sys
import warnings
from typing import Any

import numpy as np

from tflite_tools.calibration import Calibration
from tflite_tools.codec import pipes_of_child, read_message, write_message
from tflite_tools.converter import Request, described, run_converter

# It holds some hundred megabytes; after this time without work it ends and frees them.
_IDLE_S = 120.0


def main() -> None:
    """Converts what it is sent until the pipe closes, or until nothing comes for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    requests, answers = pipes_of_child()
    warnings.showwarning = _print_warning
    warnings.simplefilter("default")
    import tensorflow  # noqa: F401  (while the parent prepares the first request)

    while select.select([requests], [], [], _IDLE_S)[0]:
        try:
            header, arrays = read_message(requests)
        except EOFError:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        answer: dict[str, Any] = {"log_start": os.fstat(2).st_size}
        found: dict[str, np.ndarray] = {}
        try:
            found["content"] = np.frombuffer(_convert(header, arrays), np.uint8)
        except Exception as error:  # the converter raises everything from ValueError to its own classes
            answer["failure"] = described(error)
        sys.stdout.flush()
        sys.stderr.flush()
        write_message(answers, answer, found)


def _convert(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    by_signature: dict[str, dict[str, np.ndarray]] = {}
    for number, (signature, name) in enumerate(header["names"]):
        by_signature.setdefault(signature, {})[name] = arrays[str(number)]
    calibrations = {signature: Calibration(values) for signature, values in by_signature.items()}
    return run_converter(Request(**header["request"]), calibrations)


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
