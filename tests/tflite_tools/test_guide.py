"""The commands of the guide to tflite_tools, run from the first to the last on files like a reader's."""

import pathlib
import re
import shlex

import docs_setup
import numpy as np
import pytest

import tflite_tools
from tflite_tools.cli import main

# Two epochs are too few for BatchNormalization's averages, which the calibration data are compared with.
pytestmark = pytest.mark.filterwarnings("ignore:The calibration data")

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "tflite_tools.md"
COMMANDS = re.findall(r"^python -m tflite_tools (.+)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a reader has: files, and data for them."""
    given = docs_setup.classification()
    folder = tmp_path_factory.mktemp("guide")
    teacher, data = given["teacher"], given["x_train"]
    teacher.save(folder / "model.keras")
    tflite_tools.convert(teacher).save(folder / "float.tflite")
    int8 = tflite_tools.convert(teacher, quantization="int8", calibration=data)
    for name in ("int8", "model"):
        int8.save(folder / f"{name}.tflite")
    np.savez(folder / "test.npz", x=given["x_test"], y=given["y_test"])
    np.savez(folder / "train.npz", x=data)
    return folder


def test_the_guide_has_its_commands():
    assert [line.split()[0] for line in COMMANDS] == [
        "inspect", "evaluate", "compare", "benchmark", "report", "convert",
    ]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.split()[0])
def test_a_command_of_the_guide(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(shlex.split(line)) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.strip()
    for path in re.findall(r"--(?:html|plot|output)=(\S+)", line):
        assert pathlib.Path(path).stat().st_size > 1000
