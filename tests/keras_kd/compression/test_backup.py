"""An interrupted compression that is taken up again ends where an uninterrupted one does."""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_kd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(60, 6)).astype("float32"), rng.integers(0, 3, 60)


def student():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return keras.Sequential(
        [keras.Input((6,)), dense(16, "relu", name="a"), dense(16, "relu", name="b"), dense(3, name="c")]
    )


class Interruption(RuntimeError):
    pass


class Interrupt(keras.callbacks.Callback):
    """Raises at the end of a chosen epoch, counted over all phases."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_epoch_end(self, epoch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Interruption


class Kill(Interrupt):
    """Ends the process at once, as a machine that is taken away does."""

    def on_epoch_end(self, epoch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def compress(**kwargs):
    return keras_kd.compress(
        student(),
        "prune50-cluster6-int8",
        X,
        Y,
        loss=LOSS,
        metrics=["accuracy"],
        validation_data=(X, Y),
        optimizer=keras.optimizers.Adam(1e-2),
        epochs=3,
        batch_size=20,
        verbose=0,
        **kwargs,
    )


@pytest.fixture(scope="module")
def uninterrupted():
    return compress()


# Epochs 1-3 prune, 4-6 cluster, 7-9 quantize: inside each phase, and at the end of one.
@pytest.mark.parametrize(
    "at", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow), 8]
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(at, uninterrupted, tmp_path):
    with pytest.raises(Interruption):
        compress(backup_dir=tmp_path, callbacks=[Interrupt(at)])
    assert (tmp_path / "run.json").exists()
    resumed = compress(backup_dir=tmp_path)
    assert resumed.report.to_dict() == uninterrupted.report.to_dict()
    for found, wanted in zip(resumed.model.get_weights(), uninterrupted.model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(uninterrupted, tmp_path):
    here = pathlib.Path(__file__)
    program = (
        f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as run; "
        f"run.compress(backup_dir={str(tmp_path)!r}, callbacks=[run.Kill(8)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} >= {"run.json", "prune.npz", "cluster.npz"}
    resumed = compress(backup_dir=tmp_path)
    for found, wanted in zip(resumed.model.get_weights(), uninterrupted.model.get_weights(), strict=True):
        # Another process may add in another order of threads.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_directory_is_refused(tmp_path):
    with pytest.raises(Interruption):
        compress(backup_dir=tmp_path, callbacks=[Interrupt(1)])
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        compress(backup_dir=tmp_path, seed=1)


def test_the_teachers_adapter_is_resumed_too(tmp_path):
    def run(**kwargs):
        keras.utils.set_random_seed(1)
        teacher = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(40, "relu", name="wide"), keras.layers.Dense(3)]
        )
        losses = keras_kd.losses.FeatureDistillation("mse", "wide", "b")
        keras.utils.set_random_seed(2)  # the adapter's initial weights
        return keras_kd.compress(
            student(),
            "prune50@4x1",
            X,
            Y,
            teacher=teacher,
            distillation_losses=losses,
            loss=LOSS,
            epochs=3,
            batch_size=20,
            verbose=0,
            **kwargs,
        )

    wanted = run()
    with pytest.raises(Interruption):
        run(backup_dir=tmp_path, callbacks=[Interrupt(2)])
    found = run(backup_dir=tmp_path)
    assert found.report.history == wanted.report.history
