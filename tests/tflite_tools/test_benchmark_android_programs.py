"""Target "android" with the several programs that measure: TFLite's old and new, LiteRT's, the app; and the matrix."""

import json
import pathlib
import sys

import fake_phone
import pytest
import tiny_models

from tflite_tools import benchmark
from tflite_tools.benchmarking.adb import DeviceError, DeviceTimeoutError
from tflite_tools.benchmarking.matrix import benchmark_matrix
from tflite_tools.cli import main


def test_the_old_format(run):
    result = run(extra_args=["--behave=old"])
    assert result.phone.tool == "benchmark_model" and result.latency_us.runs == 5
    assert result.latency_us.p95 is None and result.latency_us.median is None and result.latency_us.mean > 0
    assert not any("does not know" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", ["benchmark_litert_model", "benchmark_model"])
def test_litert(run, phones, name):
    """Its releases bear either name; what is inside tells."""
    program = fake_phone.benchmark_program(
        phones / f"litert of {name}", name, holds="benchmark_litert_model.h"
    )
    result = run(benchmark_binary=program, op_profile=True, extra_args=["--behave=litert"])
    found = result.latency_us
    assert result.phone.tool == "benchmark_litert_model"
    assert found.runs == 5 and 0 < found.min <= found.median <= found.p95 <= found.max
    assert result.init_us > 0 and result.first_us > 0 and result.peak_memory_bytes == round(2.25 * 2**20)
    # Its profile stands in the log; preparing the tensors is no part of an inference.
    assert [(op.name, op.share) for op in result.ops] == [("Fully Connected (NC, F32) GEMM", 1.0)]
    # It was asked for nothing that it does not know, and what it cannot do is refused.
    assert not any("does not know" in warning for warning in result.warnings)
    for options in ({"use_xnnpack": False}, {"use_nnapi": True}):
        with pytest.raises(DeviceError, match="no switch for NNAPI and none that turns XNNPACK off"):
            run(benchmark_binary=program, **options)


def test_a_flag_that_the_program_does_not_know_is_told(run):
    result = run(extra_args=["--use_turbo=true"])
    assert "The program does not know --use_turbo and went on without." in result.warnings
    assert result.latency_us.runs == 5


def test_nnapi_is_called_deprecated(run):
    result = run(use_nnapi=True)
    assert any("deprecated since Android 15" in warning for warning in result.warnings)
    assert "--use_nnapi=true" in result.phone.log


def test_a_matrix_on_the_phone(phone, program, tmp_path, capsys):
    model = tmp_path / "m.tflite"
    model.write_bytes(tiny_models.dense_float())
    command = ["matrix", f"--models={model}", "--target=android", f"--serial={phone.serial}", "--num_runs=3"]
    command += [
        f"--benchmark_binary={program}",
        f"--device_dir={tmp_path / 'device'}",
        "--delegates=none,gpu",
    ]
    assert main([*command, f"--output={tmp_path / 'matrix.json'}"]) == 0
    assert "none x1" in capsys.readouterr().out
    none, gpu = json.loads((tmp_path / "matrix.json").read_text())["cells"]
    assert "--use_xnnpack=false" in none["result"]["phone"]["log"]
    assert "--use_gpu=true" in gpu["result"]["phone"]["log"] and gpu["result"]["latency_us"]["runs"] == 3


def test_a_matrix_whose_phone_goes_away(phones, program, tmp_path):
    phone = fake_phone.Phone(phones / "matrix").start()
    cells = []

    def leave(line):
        if "going to hang" in line:
            phone.stop()

    try:
        benchmark_matrix(
            {"m": tiny_models.dense_float()}, "android", threads=(1, 2, 4), on_cell=cells.append,
            benchmark_binary=program, serial=phone.serial, device_dir=str(tmp_path / "device"),
            extra_args=["--behave=hang"], timeout_s=60, progress=leave,
        )  # fmt: skip
    finally:
        phone.stop()
        fake_phone.end_orphans(phone.serial, str(tmp_path / "device"))
    assert "went away" in cells[0].error
    assert [cell.error for cell in cells[1:]] == ["not run: the device went away before"] * 2


def test_a_matrix_of_nothing_but_failures_is_no_success(phone, program, tmp_path, capsys):
    model = tmp_path / "m.tflite"
    model.write_bytes(tiny_models.dense_float())
    command = [
        "matrix",
        f"--models={model}",
        "--target=android",
        f"--benchmark_binary={program}",
        "--serial=X",
    ]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "failed" in out and "nothing was measured" in err.splitlines()[-1] and "serial 'X'" in err


def test_the_benchmark_app(phone, tmp_path):
    """`am` and logcat stand in for those of Android: the app's lines come from the same program."""
    script = pathlib.Path(__file__).with_name("device_benchmark.py")
    log = tmp_path / "log"
    options = {"serial": phone.serial, "use_apk": True, "device_dir": str(tmp_path / "device"), "num_runs": 3}
    phone.program("pm", "exit 1")
    with pytest.raises(DeviceError, match=r"org.tensorflow.lite.benchmark is not installed"):
        benchmark(tiny_models.dense_float(), "android", **options)
    phone.program("pm", "echo package:/data/app/base.apk")
    # The last argument of `am start` is the whole command line, which the app splits at spaces.
    phone.program(
        "am",
        f'for last; do :; done; {sys.executable} {script} $last 2>&1 | sed "s/^/I\\/tflite  ( 123): /" > {log}',
    )
    phone.program("logcat", f'case "$1" in -c) rm -f {log};; *) cat {log};; esac')
    result = benchmark(tiny_models.dense_float(), "android", **options)
    assert result.latency_us.runs == 3 and result.phone.pushed == ("model",)
    # An app that hangs is stopped.
    stopped = tmp_path / "stopped"
    phone.program("am", f'if [ "$1" = force-stop ]; then echo "$2" > {stopped}; fi')
    phone.program("logcat", "echo 'I/tflite  ( 123): Loading the model'")
    with pytest.raises(DeviceTimeoutError, match=r"app was still busy .* after 0.5 s"):
        benchmark(tiny_models.dense_float(), "android", **options, timeout_s=0.5)
    assert stopped.read_text().strip() == "org.tensorflow.lite.benchmark"
