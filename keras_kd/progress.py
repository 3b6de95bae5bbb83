"""Lines that say how far a long stage has come, for terminals, logs and notebooks alike."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import keras

# A line at most this often: enough to see that work goes on, few enough to read afterwards.
_INTERVAL_S = 5.0


class StageClock:
    """Numbers the stages of a chain and says what each took.

    Args:
      total: how many stages there will be.
      stream: where the lines go; standard output if None.
      enabled: False prints nothing.

    Example:
      >>> clock = StageClock(total=2)
      >>> clock.start("teacher")
      [1/2] teacher
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, enabled: bool = True) -> None:
        self._total = total
        self._number = 0
        self._stream = stream
        self._enabled = enabled

    def start(self, title: str) -> None:
        """Open the next stage."""
        self._number += 1
        self.say(f"[{self._number}/{self._total}] {title}", indent="")

    def say(self, text: str, *, indent: str = "      ") -> None:
        """Print one line below the current stage."""
        if self._enabled:
            print(f"{indent}{text}", file=self._stream or sys.stdout, flush=True)


class ProgressLines(keras.callbacks.Callback):
    """A Keras callback that prints one short line every few seconds, and always one for the last epoch.

    Unlike the progress bar of `fit` it stays readable in a log file, and it keeps to one line for stages
    of many short epochs.

    Args:
      clock: where the lines go.
      show: names of the logs to print, in this order; those that are absent are left out.
    """

    def __init__(self, clock: StageClock, *, show: tuple[str, ...]) -> None:
        super().__init__()
        self._clock = clock
        self._show = show
        self._begin = self._last = 0.0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Start the clock."""
        self._begin = self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Print where the fit stands, if the last line is old enough or this is the end."""
        now = time.monotonic()
        epochs = self.params.get("epochs") or epoch + 1
        if epoch + 1 < epochs and now - self._last < _INTERVAL_S:
            return
        self._last = now
        values = "  ".join(
            f"{name} {float((logs or {})[name]):.4f}" for name in self._show if name in (logs or {})
        )
        self._clock.say(f"epoch {epoch + 1}/{epochs}  {values}  ({now - self._begin:.0f} s)")
