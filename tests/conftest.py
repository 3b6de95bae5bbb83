"""Fixtures and settings that every test shares."""

import os
import pathlib
import signal
import threading

# Before TensorFlow is imported anywhere: no GPU probing, no oneDNN reordering of sums between runs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and so would every program that a test interrupts.
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that tests run on the other side of a wire; doctest collection would import them.
collect_ignore = ["arm64/run_on_arm.py", "tflite_tools/device_benchmark.py"]

SHARED_DATA = pathlib.Path(
    os.environ.get("KERAS_KD_SHARED_DATA", pathlib.Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real data sets and models beside the checkout; absent on most machines."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no shared data at {SHARED_DATA} (set KERAS_KD_SHARED_DATA)")
    return SHARED_DATA
