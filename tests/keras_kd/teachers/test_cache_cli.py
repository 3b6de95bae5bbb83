"""`python -m keras_kd.teachers.cache`."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.cache_cli import main


@pytest.fixture
def files(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 1)).astype("uint8")
    np.savez(tmp_path / "train.npz", x=x)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(5)])
    model.save(tmp_path / "teacher.keras")
    return tmp_path, x, model


def arguments(folder, *more):
    return [
        f"--path={folder / 'cache'}",
        f"--teacher={folder / 'teacher.keras'}",
        f"--data={folder / 'train.npz'}",
        *more,
    ]


def test_build_info_and_verify(files, capsys):
    folder, x, model = files
    options = ("--views=2", "--augment=RandomFlip,RandomShift:1", "--top_k=2", "--dtype=float32")
    assert main(["build", *arguments(folder, *options)]) == 0
    assert "60" in capsys.readouterr().out
    cache = TeacherCache.open(folder / "cache")
    live = model.predict(cache.inputs(x, np.arange(60), view=1), verbose=0)
    np.testing.assert_allclose(
        cache.targets(np.arange(60), view=1)["outputs"].max(-1), live.max(-1), rtol=1e-5
    )
    assert main(["info", str(folder / "cache")]) == 0
    assert "[5] (the 2 largest) as float32" in capsys.readouterr().out
    assert main(["info", f"--path={folder / 'cache'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == 2
    assert main(["verify", f"--path={folder / 'cache'}"]) == 0
    shard = folder / "cache" / "shard-000001.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 255
    shard.write_bytes(bytes(content))
    capsys.readouterr()
    assert main(["verify", f"--path={folder / 'cache'}"]) == 1
    assert "shard-000001.bin was altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biuld"], "Did you mean 'build'?"),
        (["info"], "--path is missing"),
        (["info", "--path=/nowhere/at/all"], "is not a folder"),
        (["build", "--path=somewhere"], "--teacher is missing; --data is missing"),
        (["build", "--path=c", "--teacher=no.keras", "--data=."], "there is no such file"),
    ],
)
def test_bad_command_lines_end_in_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_augmentation_lists_the_nearest(files, capsys):
    assert main(["build", *arguments(files[0], "--augment=RandomFlop")]) == 2
    assert "Did you mean 'RandomFlip'" in capsys.readouterr().err


def test_it_runs_as_a_module(files):
    TeacherCache.build(
        lambda batch: batch.reshape(len(batch), -1)[:, :5],
        files[1],
        files[0] / "cache",
        batch_size=60,
        dtype="float32",
    )
    command = [sys.executable, "-m", "keras_kd.teachers.cache", "info", str(files[0] / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "examples" in result.stdout and "60" in result.stdout
