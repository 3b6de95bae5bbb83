"""The parent's side of a child process that runs a model: a crash there is an exception here."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
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
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {} import main; main()"


class ChildDiedError(Exception):
    """A child is gone without an answer.

    Attributes:
      code: its exit code; negative for a signal.
      said: the end of what it printed.
      late: whether it was killed because it took too long.
    """

    def __init__(self, code: int, said: str, late: bool) -> None:
        super().__init__(code)
        self.code, self.said, self.late = code, said, late


class Child:
    """A Python process that answers messages; a module's `main` does its work.

    It is a fresh interpreter and not a fork: TensorFlow's threads do not survive a fork, and the caller's main
    module is not imported again, so no `if __name__ == "__main__"` is asked of anybody.

    Args:
      module: whose `main` runs in the child.
      environment: variables to set in the child.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the child)
        self._late = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START.format(module), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **(environment or {})},
        )

    def ask(
        self, header: dict[str, Any], arrays: Arrays, timeout_s: float | None = None
    ) -> tuple[dict[str, Any], Arrays]:
        """Sends a message and waits for the answer.

        Raises:
          ChildDiedError: there is none.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        timer = threading.Timer(timeout_s or 0, self._kill_late)
        try:
            if timeout_s is not None:
                timer.start()
            write_message(self.process.stdin, header, arrays)
            return read_message(self.process.stdout)
        except (EOFError, OSError):
            code = self.process.wait()
            raise ChildDiedError(code, self.printed()[-2000:].strip(), self._late) from None
        finally:
            timer.cancel()

    def _kill_late(self) -> None:
        self._late = True
        self.process.kill()

    def printed(self, start: int = 0) -> str:
        """What the child has printed, from byte `start` on."""
        # The file's position is shared with the child, which writes there; pread leaves it alone.
        number = self._stderr.fileno()
        content = os.pread(number, max(0, os.fstat(number).st_size - start), start)
        return content.decode("utf-8", errors="replace")

    def close(self) -> None:
        """Ends the child."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stderr.close()


class ChildRunner:
    """Like ModelRunner, in a process of its own.

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
        self._doing = "loading the model"
        self._child = Child("tflite_tools.worker")
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
        try:
            answer, values = self._child.ask(header, arrays, self._timeout_s)
        except ChildDiedError as death:
            if death.late:
                raise ModelCrashError(
                    f"The child process was killed: {self._doing} took longer than {self._timeout_s:g} s.",
                    signal_name="SIGKILL",
                    exit_code=death.code,
                ) from None
            raise crash_error(death.code, self._doing, death.said) from None
        if "error" in answer:
            raise _ERRORS[answer["error"]](answer["message"])
        return answer, values

    def close(self) -> None:
        """Ends the child."""
        self._child.close()

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
      doing: what it was about, as in "while running the model".
      stderr: what it said; the last line is quoted.
    """
    how, name = how_it_ended(code)
    tail = f" Its last words: {stderr.splitlines()[-1]}" if stderr else ""
    return ModelCrashError(
        f"The child process {how} while {doing}. The file is broken, or hits a fault of the runtime; this "
        f"process is unharmed.{tail}",
        signal_name=name,
        exit_code=code,
        stderr=stderr,
    )


def how_it_ended(code: int) -> tuple[str, str | None]:
    """An exit code in words, and the name of the signal behind it.

    Example:
      >>> how_it_ended(-6), how_it_ended(3)
      (('was killed by SIGABRT', 'SIGABRT'), ('ended with exit code 3', None))
    """
    if code >= 0:
        return f"ended with exit code {code}", None
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}", name
