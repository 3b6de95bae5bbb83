"""TensorFlow's converter, run on a SavedModel in a child process: its native code may abort whatever process it is in.

TensorFlow 2.21 ends the process, for example, when it calibrates a graph with loops. The child is started with the
first conversion and kept for the next ones, because importing TensorFlow takes seconds.
"""

import atexit
import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tflite_tools.calibration import Calibration
from tflite_tools.console import captured_console
from tflite_tools.processes import Child, ChildDiedError, how_it_ended


@dataclasses.dataclass(frozen=True)
class Request:
    """What the converter is to do.

    Attributes:
      folder: of the SavedModel.
      signatures: those to keep.
      quantization: as for `convert`.
      io_dtype: type of the file's inputs and outputs; None or "float32" leaves them as they are.
      batch_size: examples in one batch of calibration data.
      sparse: leave out the zeros of pruned weights.
    """

    folder: str
    signatures: tuple[str, ...]
    quantization: str | None
    io_dtype: str | None
    batch_size: int
    sparse: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
      content: the file; empty when there is none.
      failure: what was raised, as "Class: message".
      crash: how the process ended without an answer, as in "was killed by SIGSEGV".
      log: everything that was printed on the way.
    """

    content: bytes = b""
    failure: str | None = None
    crash: str | None = None
    log: str = ""


def run_converter(request: Request, calibrations: Mapping[str, Calibration]) -> bytes:
    """Runs the converter in this process."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        request.folder, signature_keys=list(request.signatures)
    )
    if request.quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if request.sparse:
        converter.optimizations = [*converter.optimizations, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if request.quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibrations:
        converter.representative_dataset = lambda: _batches(calibrations, request.batch_size)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
            if request.quantization == "int8"
            else tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    if request.io_dtype not in (None, "float32"):
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(request.io_dtype)
    return bytes(converter.convert())


def _batches(calibrations: Mapping[str, Calibration], batch_size: int) -> Iterator[Any]:
    """Calibration data as TensorFlow's `representative_dataset` wants them."""
    for signature, data in calibrations.items():
        for batch in data.batches(batch_size):
            # A dictionary names the inputs: the converter orders them by name, not as the model does.
            yield batch if len(calibrations) == 1 else (signature, batch)


def convert_here(request: Request, calibrations: Mapping[str, Calibration]) -> Answer:
    """Runs the converter in this process; an abort ends it."""
    failure, content = None, b""
    with captured_console() as console:
        try:
            content = run_converter(request, calibrations)
        except Exception as error:  # the converter raises everything from ValueError to its own classes
            failure = described(error)
    return Answer(content, failure, log=console.text)


def described(error: Exception) -> str:
    """An error in words that can leave its process."""
    return f"{type(error).__name__}: {error}"


class _Process:
    """The child, started when it is first needed; one conversion at a time."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the child, unless it runs already; returns at once."""
        with self._lock:
            self._running()

    def _running(self) -> Child:
        # After a fork the child still belongs to the process that started it.
        if self._child is None or self._owner != os.getpid() or self._child.process.poll() is not None:
            # Converting needs no GPU, and the caller's own process may hold all of its memory.
            self._child = Child("tflite_tools.converter_worker", {"CUDA_VISIBLE_DEVICES": "-1"})
            self._owner = os.getpid()
        return self._child

    def convert(self, request: Request, calibrations: Mapping[str, Calibration]) -> Answer:
        """Converts in the child."""
        arrays: dict[str, np.ndarray] = {}
        names = [(signature, name) for signature, data in calibrations.items() for name in data.arrays]
        for number, (signature, name) in enumerate(names):
            arrays[str(number)] = calibrations[signature].arrays[name]
        header = {"request": dataclasses.asdict(request), "names": names}
        with self._lock:
            child = self._running()
            try:
                try:
                    answer, found = child.ask(header, arrays)
                except ChildDiedError as death:
                    if death.code:
                        raise
                    # It had been idle for so long that it ended itself, just now.
                    child = self._running()
                    answer, found = child.ask(header, arrays)
            except ChildDiedError as death:
                return Answer(crash=how_it_ended(death.code)[0], log=death.said)
            except (
                BaseException
            ):  # Ctrl-C in the middle: an answer that nobody reads must not be the next one's
                child.process.kill()
                child.close()
                raise
            log = child.printed(answer["log_start"])
        if "failure" in answer:
            return Answer(failure=answer["failure"], log=log)
        return Answer(found["content"].tobytes(), log=log)

    def stop(self) -> None:
        """Ends the child at once."""
        if self._child is not None and self._owner == os.getpid():
            self._child.process.kill()
            self._child.close()
        self._child = None


_process = _Process()
atexit.register(_process.stop)


def start_early() -> None:
    """Lets the child import TensorFlow while the caller traces and writes the model."""
    if sys.executable:
        _process.start()


def convert_apart(request: Request, calibrations: Mapping[str, Calibration]) -> Answer:
    """Runs the converter in the child process; where there is no Python to start, in this one."""
    if not sys.executable:  # a program that carries Python inside it
        return convert_here(request, calibrations)
    return _process.convert(request, calibrations)
