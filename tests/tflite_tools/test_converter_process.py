"""The converter in its child process: its crash is an error here, and nothing of it stays behind."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools import conversion, converter
from tflite_tools.errors import ConversionError


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).random((20, 4), dtype=np.float32)


def child():
    return converter._process._child.process


def test_the_child_makes_the_same_file_and_stays_for_the_next(model, data):
    options = {"quantization": "int8", "calibration": data}
    apart = tflite_tools.convert(model, **options)
    first = child().pid
    assert tflite_tools.convert(model, isolate=False, **options).content == apart.content
    assert tflite_tools.convert(model).notes == () and child().pid == first


def test_a_crash_of_the_converter_is_an_error_here(model, monkeypatch):
    inputs = keras.Input((8, 3))
    recurrent = keras.Model(inputs, keras.layers.GRU(4)(inputs))
    signature = [tf.TensorSpec([1, 8, 3], name="x")]
    looped = tf.function(lambda x: recurrent(x, training=False), input_signature=signature)
    values = np.random.default_rng(0).random((20, 8, 3), dtype=np.float32)
    with pytest.raises(ConversionError, match="cannot quantize this model's loops"):
        tflite_tools.convert(looped, quantization="int8", calibration=values)
    # Without that check TensorFlow 2.21 itself is asked, and its calibrator dies.
    monkeypatch.setattr(conversion, "has_loop", lambda source: False)
    with pytest.raises(ConversionError, match=r"was killed by SIG(SEGV|ABRT); this process is unharmed"):
        tflite_tools.convert(looped, quantization="int8", calibration=values)
    assert tflite_tools.convert(model).size_bytes > 0  # in a new child


def test_a_child_that_somebody_killed_is_replaced(model):
    tflite_tools.convert(model)
    before = child()
    before.kill()
    before.wait()
    assert tflite_tools.convert(model).size_bytes > 0 and child().pid != before.pid


def test_ctrl_c_ends_the_child(model):
    tflite_tools.convert(model)
    before = child()
    before.send_signal(signal.SIGSTOP)  # it will not answer

    def interrupt():
        waited = 0
        while waited < 5:  # looks in a row at which somebody waits for the child's answer
            time.sleep(0.05)
            waited = waited + 1 if converter._process._lock.locked() else 0
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        tflite_tools.convert(model)
    thread.join()
    assert before.returncode == -signal.SIGKILL
    assert tflite_tools.convert(model).size_bytes > 0


def test_an_idle_child_ends_by_itself():
    code = "from tflite_tools import converter_worker as worker; worker._IDLE_S = 0.1; worker.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as idle:
        assert idle.wait(timeout=120) == 0


def test_the_child_does_not_outlive_its_parent():
    code = (
        "import os, signal; from tflite_tools import converter; converter.start_early();"
        "print(converter._process._child.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    stat = pathlib.Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 60
    while not _gone(stat) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _gone(stat)


def _gone(stat):
    try:
        # An orphan that nobody waits for stays as a zombie in some containers.
        return stat.read_text().rsplit(") ", 1)[1].startswith("Z")
    except OSError:
        return True
