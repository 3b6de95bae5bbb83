"""Saves a compression after every epoch, and takes it up where it was interrupted."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression.trainer import BestEpoch


class BackupMismatchError(ValueError):
    """The backup directory holds another run than the one that was asked for."""


class Backup:
    """Two kinds of files in one directory: a phase that is finished, and the epoch that a phase has reached.

    Args:
      directory: created where it does not exist; None backs nothing up.
      fingerprint: what must be equal for a run to be the same one.

    Raises:
      BackupMismatchError: the directory holds a run with another fingerprint; the differences are listed.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, fingerprint: Mapping[str, Any]):
        self._root = None if directory is None else pathlib.Path(directory)
        self._fingerprint = dict(fingerprint)
        if self._root is None:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / "run.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            differences = [
                f"{key}: {found.get(key)!r} there, {value!r} here"
                for key, value in self._fingerprint.items()
                if found.get(key) != value
            ]
            if differences:
                raise BackupMismatchError(
                    f"backup_dir {str(self._root)!r} holds another run ({'; '.join(differences)}). "
                    "Give another directory, or delete this one."
                )
        else:
            self._replace(path, json.dumps(self._fingerprint).encode())

    def finish(self, phase: str, model: Any, history: Any, best: int | None) -> None:
        """Records that a phase is over, with the weights of `model` by layer."""
        if self._root is None:
            return
        arrays = {
            f"{layer.name}|{index}": value
            for layer in model.layers
            for index, value in enumerate(layer.get_weights())
        }
        self._save(self._root / f"{phase}.npz", arrays, {"history": history, "best": best})

    def finished(self, phase: str, model: Any) -> dict[str, Any] | None:
        """Puts the weights of a finished phase into `model`; returns its history and best epoch, or None."""
        if self._root is None or not (self._root / f"{phase}.npz").exists():
            return None
        arrays, facts = self._load(self._root / f"{phase}.npz")
        for layer in model.layers:
            count = len(layer.get_weights())
            layer.set_weights([arrays[f"{layer.name}|{index}"] for index in range(count)])
        return facts

    def restore(self, phase: str, variables: Sequence[Any], best: BestEpoch) -> dict[str, Any] | None:
        """Puts the last saved epoch of a phase into `variables` and `best`; returns its history and epoch, or None."""
        if self._root is None or not (self._root / f"{phase}.epoch.npz").exists():
            return None
        arrays, facts = self._load(self._root / f"{phase}.epoch.npz")
        for index, variable in enumerate(variables):
            variable.assign(arrays[f"v{index}"])
        kept = [arrays[f"b{index}"] for index in range(facts["kept"])]
        best.restore(facts["best"], kept)
        return facts

    def callback(
        self, phase: str, variables: Sequence[Any], best: BestEpoch, history: Mapping[str, Any]
    ) -> list[Any]:
        """What saves the phase after every epoch; empty where nothing is backed up.

        Args:
          phase: name of the phase.
          variables: everything that training changes.
          best: the callback that keeps the best epoch.
          history: the logs of earlier parts of this phase.
        """
        return [] if self._root is None else [_SaveEpoch(self, phase, variables, best, history)]

    def save_epoch(
        self, phase: str, variables: Sequence[Any], best: BestEpoch, history: Mapping[str, Any], epochs: int
    ) -> None:
        """Saves one epoch; see `callback`."""
        assert self._root is not None  # `callback` gives none without a directory
        arrays = {f"v{index}": variable.numpy() for index, variable in enumerate(variables)}
        state, kept = best.state()
        arrays |= {f"b{index}": value for index, value in enumerate(kept)}
        facts = {"history": dict(history), "epochs": epochs, "best": state, "kept": len(kept)}
        self._save(self._root / f"{phase}.epoch.npz", arrays, facts)

    def clear(self, phases: Sequence[str]) -> None:
        """Deletes the files of a run that has come to its end."""
        if self._root is None:
            return
        for name in ["run.json", *(f"{p}{end}" for p in phases for end in (".npz", ".epoch.npz"))]:
            (self._root / name).unlink(missing_ok=True)

    def _save(self, path: pathlib.Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        temporary = path.with_suffix(".tmp")
        stored: dict[str, Any] = {**arrays, "facts": np.array(json.dumps(facts))}
        with temporary.open("wb") as file:
            np.savez(file, **stored)
        # A run that is killed while it saves leaves the file before, not half of this one.
        temporary.replace(path)

    def _load(self, path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        return arrays, json.loads(str(arrays.pop("facts")))

    def _replace(self, path: pathlib.Path, content: bytes) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)


class _SaveEpoch(tf_keras.callbacks.Callback):
    def __init__(
        self,
        backup: Backup,
        phase: str,
        variables: Sequence[Any],
        best: BestEpoch,
        history: Mapping[str, Any],
    ):
        super().__init__()
        self._backup, self._phase, self._variables, self._best = backup, phase, variables, best
        self._history = {name: list(values) for name, values in history.items()}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        for name, value in (logs or {}).items():
            self._history.setdefault(name, []).append(float(value))
        self._backup.save_epoch(self._phase, self._variables, self._best, self._history, epoch + 1)
