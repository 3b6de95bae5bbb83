"""`python -m keras_kd` on a user's own files, and its answers to mistakes."""

import json
import pathlib

import keras
import numpy as np
import pytest

from keras_kd.cli import main


@pytest.fixture
def files(tmp_path: pathlib.Path) -> pathlib.Path:
    """A teacher, a student and data of a small separable problem, as files."""
    keras.utils.set_random_seed(0)
    for name, units in (("teacher", 32), ("student", 8)):
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(units, activation="relu"),
                keras.layers.Dense(units, activation="relu"),
                keras.layers.Dense(3),
            ]
        ).save(tmp_path / f"{name}.keras")
    x = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
    y = x[:, :3].argmax(-1)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "validation.npz", x=x[:32], y=y[:32])
    np.savez(tmp_path / "unlabeled.npz", x=x)
    return tmp_path


def flags(files: pathlib.Path, **changes: str | None) -> list[str]:
    values: dict[str, str | None] = {
        "teacher": str(files / "teacher.keras"),
        "student": str(files / "student.keras"),
        "train": str(files / "train.npz"),
        "validation": str(files / "validation.npz"),
        "output_dir": str(files / "out"),
        **changes,
    }
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def test_the_chain_on_files(files: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    assert main([*flags(files, epochs="1", recipe="prune50-int8"), "--nolatency"]) == 0
    printed = capsys.readouterr().out
    assert "int8 .tflite" in printed
    assert "[4/4]" in printed
    assert {"student.keras", "student.tflite", "report.html", "report.json"} <= {
        path.name for path in (files / "out").iterdir()
    }
    assert len(json.loads((files / "out" / "report.json").read_text())["stages"]) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None, "train": None}, "--teacher is missing; --train is missing"),
        ({"student": "absent.keras"}, "--student=absent.keras: there is no such file"),
        ({"recipe": "prune175-int8"}, "sparsity must be in [0, 1)"),
        ({"epochs": "many"}, "--epochs=many"),
        ({"train": "UNLABELED"}, "no array 'y'"),
        ({"teacher": "DATA"}, "Keras cannot load it"),
        ({"learning_speed": "1"}, "learning_speed"),
        ({"student_loss_weight": "2"}, "student_loss_weight"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    files: pathlib.Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], words: str
):
    places = {"UNLABELED": str(files / "unlabeled.npz"), "DATA": str(files / "train.npz")}
    changes = {name: places.get(value or "", value) for name, value in changes.items()}
    assert main(flags(files, **changes)) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert words in captured.err
    assert not (files / "out").exists()


def test_help_lists_the_flags(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in ("teacher", "student", "train", "validation", "recipe", "epochs", "output_dir", "seed"):
        assert f"--{name}=" in text
