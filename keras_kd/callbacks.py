"""Callbacks that training with a teacher needs beside Keras's own."""

import pathlib
from typing import Any

import keras
import numpy as np


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Keras's BackupAndRestore, and the state of the random layers with it.

    Keras 3.15 backs up a model's weights and its optimizer, and not the seed states of Dropout and its like: a
    resumed run draws other numbers than an uninterrupted one. This one keeps them in `seed_states.npz` beside Keras's
    own files, so that the two runs end in the same weights, if the data comes in the same order in each epoch.

    Args:
      backup_dir: directory of its own for the backup.
      **kwargs: `save_freq`, `double_checkpoint`, `delete_checkpoint` of `keras.callbacks.BackupAndRestore`.

    Example:
      >>> import tempfile
      >>> callback = BackupAndRestore(tempfile.mkdtemp())
      >>> callback.seed_states_path.name
      'seed_states.npz'
    """

    def __init__(self, backup_dir: Any, **kwargs: Any):
        super().__init__(str(backup_dir), **kwargs)
        self.seed_states_path = pathlib.Path(backup_dir) / "seed_states.npz"

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore what a killed run has left."""
        super().on_train_begin(logs)
        if not self.seed_states_path.exists():
            return
        with np.load(self.seed_states_path) as saved:
            states = _seed_states(self.model)
            if len(saved.files) != len(states):
                raise ValueError(
                    f"{self.seed_states_path} holds {len(saved.files)} seed states and the model has "
                    f"{len(states)}: it is the backup of another model. Give each run a backup_dir of its own."
                )
            for index, state in enumerate(states):
                state.assign(saved[f"state_{index}"])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Back up at the end of an epoch."""
        before = self._newest_backup()
        super().on_epoch_end(epoch, logs)
        self._follow(before)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Back up where `save_freq` counts batches."""
        if not isinstance(self.save_freq, int):
            super().on_train_batch_end(batch, logs)
            return
        before = self._newest_backup()
        super().on_train_batch_end(batch, logs)
        self._follow(before)

    def on_train_end(self, logs: Any = None) -> None:
        """Delete the backup of a run that has finished."""
        super().on_train_end(logs)
        if self.delete_checkpoint:
            self.seed_states_path.unlink(missing_ok=True)

    def _newest_backup(self) -> int:
        """When Keras last wrote a backup, in ns; it alone knows how it counts batches over epochs."""
        files = self.seed_states_path.parent.glob("*.weights.h5")
        return max((file.stat().st_mtime_ns for file in files), default=0)

    def _follow(self, before: int) -> None:
        if self._newest_backup() != before:
            self._save_seed_states()

    def _save_seed_states(self) -> None:
        states = _seed_states(self.model)
        arrays = {f"state_{index}": keras.ops.convert_to_numpy(state) for index, state in enumerate(states)}
        # Written under another name and renamed, so that a run killed here leaves the old backup whole.
        temporary = self.seed_states_path.with_suffix(".part.npz")
        np.savez(temporary, **arrays)
        temporary.replace(self.seed_states_path)


def _seed_states(model: keras.Model) -> list[Any]:
    """The states of a model's seed generators: among its variables, and not among its weights."""
    return [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]


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
