"""Callbacks that training with a teacher needs beside Keras's own."""

from typing import Any

import keras


class FitLength(keras.callbacks.Callback):
    """Tells schedules that span the whole fit where it began and how long it is; once, before the first step.

    Args:
      start_and_length: variable of shape [2], in optimizer steps.
    """

    def __init__(self, start_and_length: Any):
        super().__init__()
        self._variable = start_and_length
        self._done = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuse a fit of unknown length before it begins."""
        self._done = False
        if self.params.get("steps") is None:
            raise ValueError(
                "A schedule without steps=... spans the whole fit, and the length of this data set is not known. Give "
                "the schedule its steps, or steps_per_epoch to fit."
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Only in the first epoch that runs, which in a resumed fit is not epoch 0."""
        if self._done:
            return
        self._done = True
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        accumulation = optimizer.gradient_accumulation_steps or 1
        steps_per_epoch = self.params["steps"] / accumulation
        iterations = float(keras.ops.convert_to_numpy(optimizer.iterations))
        start = max(0.0, iterations - epoch * steps_per_epoch)
        self._variable.assign([start, max(1.0, self.params["epochs"] * steps_per_epoch)])


def add_callback(callbacks: Any, extra: keras.callbacks.Callback) -> Any:
    """`callbacks` as `fit` takes them, with one more at the end."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks.append(extra)
        return callbacks
    if callbacks is None:
        return [extra]
    return [*callbacks, extra] if isinstance(callbacks, (list, tuple)) else [callbacks, extra]
