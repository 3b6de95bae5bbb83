"""The parent's side of a child process that runs a model: a crash there is an exception here."""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

import numpy as np

from tflite_tools.codec import read_message, write_message
from tflite_tools.errors import InvalidModelError, ModelCrashError, UnsupportedModelError
from tflite_tools.runner import Arrays, TensorSpec

_ERRORS = {
    "UnsupportedModelError": UnsupportedModelError,
    "InvalidModelError": InvalidModelError,
    "KeyError": KeyError,
}


# The child looks for modules where the parent does, whatever folder or notebook that was started in.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from tflite_tools.worker import main; main()"
)


class ChildRunner:
    """Like ModelRunner, in a process of its own.

    The child is a fresh interpreter and not a fork: TensorFlow's threads do not survive a fork, and the
    caller's main module is not imported again, so no `if __name__ == "__main__"` is asked of anybody.

    Args:
      content: the file's bytes.
      timeout_s: a child that takes longer to answer is taken for hung and killed; None waits.
      **options: as ModelRunner.

    Raises:
      UnsupportedModelError, InvalidModelError: as the runtime in the child said.
      ModelCrashError: the child died, or was killed because it took too long.
    """

    def __init__(self, content: bytes, *, timeout_s: float | None = None, **options: Any) -> None:
        if not sys.executable:
            raise RuntimeError(
                "This program has no Python interpreter to start; pass isolate=False to run in-process."
            )
        self._timeout_s = timeout_s
        self._late = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the child)
        self._doing = "loading the model"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        try:
            header, _ = self._ask({"options": options}, {"model": np.frombuffer(content, np.uint8)})
        except BaseException:
            self.close()
            raise
        self.inputs = tuple(_spec(entry) for entry in header["inputs"])
        self.outputs = tuple(_spec(entry) for entry in header["outputs"])
        self.signatures = tuple(header["signatures"])
        self.keeps_state = bool(header["keeps_state"])
        self._own_batch = int(header["own_batch"])
        self._doing = "running the model"

    def own_batch(self) -> int:
        """As ModelRunner."""
        return self._own_batch

    def once(self, feeds: Arrays) -> Arrays:
        """As ModelRunner."""
        return self._run(feeds, once=True)[0]

    def run(self, feeds: Arrays) -> list[Arrays]:
        """As ModelRunner."""
        return self._run(feeds, once=False)

    def _run(self, feeds: Arrays, once: bool) -> list[Arrays]:
        header, arrays = self._ask({"once": once}, feeds)
        results: list[Arrays] = [{} for _ in range(header["calls"])]
        for key, value in arrays.items():
            number, name = key.split(":", 1)
            results[int(number)][name] = value
        return results

    def _ask(self, header: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(self._timeout_s or 0, self._kill_late)
        try:
            if self._timeout_s is not None:
                timer.start()
            write_message(self._process.stdin, header, arrays)
            answer, values = read_message(self._process.stdout)
        except (EOFError, OSError):
            if self._late:
                raise ModelCrashError(
                    f"The child process was killed: {self._doing} took longer than {self._timeout_s:g} s.",
                    signal_name="SIGKILL",
                    exit_code=self._process.wait(),
                ) from None
            raise self._crash() from None
        finally:
            timer.cancel()
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer, values

    def _kill_late(self) -> None:
        self._late = True
        self._process.kill()

    def _crash(self) -> ModelCrashError:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", errors="replace")[-2000:].strip()
        return crash_error(code, self._doing, said)

    def close(self) -> None:
        """Ends the child."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> "ChildRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _spec(entry: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**entry, "shape": tuple(entry["shape"])})


def crash_error(code: int, doing: str, stderr: str) -> ModelCrashError:
    """The error for a child process that died.

    Args:
      code: its exit code; negative for a signal.
      doing: what it was about, as in "while it ran the file".
      stderr: what it said; the last line is quoted.
    """
    name = None
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
    how = f"was killed by {name}" if name else f"ended with exit code {code}"
    tail = f" Its last words: {stderr.splitlines()[-1]}" if stderr else ""
    return ModelCrashError(
        f"The child process {how} while {doing}. The file is broken, or hits a fault of the runtime; this "
        f"process is unharmed.{tail}",
        signal_name=name,
        exit_code=code,
        stderr=stderr,
    )
