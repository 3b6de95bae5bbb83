"""The notebook on phones and microcontrollers, run from its first cell to its last on the real recordings."""

import importlib.util

import notebooks
import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_notebook(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ST_HAR", str(shared_data / "st_har"))
    monkeypatch.setenv("NOTEBOOK_OUTPUT", str(tmp_path))
    notebooks.run("04_phone_and_microcontroller.ipynb", tmp_path)
    assert (tmp_path / "har.tflite").stat().st_size < 8 * 1024
    assert {path.name for path in (tmp_path / "firmware").iterdir()} == {
        "har.h",
        "har.cc",
        "har_firmware.h",
        "README.md",
    }
    assert (tmp_path / "activations.png").stat().st_size > 1000
