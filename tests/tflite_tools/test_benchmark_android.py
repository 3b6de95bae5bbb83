"""Target "android" over the true protocol: a real adbd on loopback, a real adb, and a program that runs the model."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import fake_phone
import pytest
import tiny_models

from tflite_tools import BenchmarkResult, benchmark
from tflite_tools.benchmarking import adb as bridge
from tflite_tools.benchmarking.adb import (
    Attached,
    Device,
    DeviceError,
    DeviceLostError,
    DeviceTimeoutError,
    choose,
)
from tflite_tools.benchmarking.elf import program_abi
from tflite_tools.benchmarking.phone_facts import read_state
from tflite_tools.cli import main
from tflite_tools.errors import InvalidModelError, ModelCrashError

# --- without a device ---


def test_choosing_a_device():
    phone = Attached("R58M", "device", "model:Phone")
    other = Attached("emulator-5554", "device", "")
    locked = Attached("ABC", "unauthorized", "")
    assert choose([phone], None) == phone
    assert choose([phone, other], "emulator-5554") == other
    with pytest.raises(DeviceError, match="No device is attached"):
        choose([], None)
    with pytest.raises(
        DeviceError, match=r"(?s)choose one with serial.*R58M \(device\) model:Phone.*emulator-5554"
    ):
        choose([phone, other], None)
    with pytest.raises(DeviceError, match=r"(?s)No attached device has the serial 'X'.*R58M"):
        choose([phone], "X")
    with pytest.raises(DeviceError, match="'unauthorized': unlock it"):
        choose([locked], None)


def elf(machine, bits=2, order=1):
    head = bytearray(20)
    head[:6] = b"\x7fELF" + bytes([bits, order])
    head[18:20] = machine.to_bytes(2, "little" if order == 1 else "big")
    return bytes(head)


def test_the_elf_header(tmp_path):
    path = tmp_path / "program"
    for machine, bits, abi in (
        (183, 2, "arm64-v8a"),
        (40, 1, "armeabi-v7a"),
        (62, 2, "x86_64"),
        (3, 1, "x86"),
    ):
        path.write_bytes(elf(machine, bits))
        assert program_abi(path) == abi
    assert program_abi(pathlib.Path(sys.executable).resolve()) == {
        "x86_64": "x86_64",
        "aarch64": "arm64-v8a",
    }.get(os.uname().machine)
    for content, says in ((b"#!/bin/sh\n", "ELF file is expected"), (b"", "is empty"), (elf(8), "machine 8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=says):
            program_abi(path)


def test_all_bad_arguments_at_once():
    with pytest.raises(ValueError) as caught:
        benchmark(
            tiny_models.dense_float(), "android", num_threads=0, repeat=0, use_gpu=True, use_nnapi=True,
            cpu_mask="f0; reboot", device_dir="/", timeout_s=0,
        )  # fmt: skip
    for part in (
        "num_threads",
        "repeat",
        "exclude each other",
        "cpu_mask",
        "device_dir",
        "timeout_s",
        "benchmark_binary",
    ):
        assert part in str(caught.value)


def test_no_adb(tmp_path):
    program = tmp_path / "benchmark_model"
    program.write_bytes(elf(183))
    with pytest.raises(FileNotFoundError, match="There is no adb at '/nowhere/adb'"):
        benchmark(tiny_models.dense_float(), "android", benchmark_binary=program, adb="/nowhere/adb")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        benchmark(tiny_models.dense_float(), "android", benchmark_binary=tmp_path / "nothing")
    with pytest.raises(InvalidModelError):
        benchmark(b"no model", "android", benchmark_binary=program)


def test_heat_and_clocks():
    state = read_state(
        "  temperature: 312\nzone battery 31200\nzone cpu-1-0 45100\nzone cpu-0-0 44000\nzone skin 60000\n"
        "zone cpu-off 0\nzone  \nclock 1785600\nclock 2841600\nclock \n"
    )
    assert (state.battery_celsius, state.processor_celsius) == (31.2, 45.1)
    assert state.clocks_khz == (1785600, 2841600)
    assert str(state) == "battery 31.2 °C, processor 45.1 °C, clocks 1786 to 2842 MHz"
    nothing = read_state("")
    assert (nothing.battery_celsius, nothing.processor_celsius, nothing.clocks_khz) == (None, None, ())


# --- over the protocol ---


def test_a_whole_run(run, phone, tmp_path):
    lines = []
    result = run(num_threads=2, op_profile=True, progress=lines.append)
    found = result.latency_us
    assert (result.target, result.kind) == ("android", "measured")
    assert found.runs == 5 and 0 < found.min <= found.median <= found.max
    assert result.init_us > 0 and result.first_us > 0
    assert result.peak_memory_bytes == round(2.25 * 2**20)
    assert [op.name for op in result.ops] == ["Fully Connected (NC, F32) GEMM"]
    details = result.phone
    assert (details.model, details.android, details.sdk) == ("Nobody Test Phone 1", "14", 34)
    assert (details.abis, details.soc) == (("x86_64", "x86"), "Loopback L1")
    assert details.cores == len(list(pathlib.Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))
    assert details.coverage == {"XNNPACK": "completely"}
    assert details.pushed == ("model", "binary")
    assert details.before.battery_celsius == 31.2
    assert "2 threads" in result.runtime and "count=5" in details.log
    assert any("count=5" in line for line in lines)  # it was told while it ran
    (called,) = (line for line in details.log.splitlines() if line.startswith("Called with:"))
    for word in (
        "num_threads=2",
        "num_runs=5",
        "warmup_runs=1",
        "use_xnnpack=true",
        "use_gpu=false",
        "use_nnapi=false",
    ):
        assert f" --{word} " in f"{called} "
    assert BenchmarkResult.from_dict(json.loads(result.to_json())) == result
    assert "Nobody Test Phone 1" in str(result) and "battery 31.2 °C" in str(result)
    assert not (tmp_path / "device").exists()  # nothing is left behind


@pytest.mark.parametrize(
    "name",
    [
        "with space",
        "it's",
        'say "hi"',
        "a; touch broken",
        "$(touch broken)",
        "`touch broken`",
        "-rf",
        "a&&b|c>d*?",
    ],
)
def test_strings_reach_the_device_as_they_are(run, tmp_path, name):
    folder = tmp_path / name
    result = run(device_dir=str(folder), keep_files=True)
    assert result.latency_us.runs == 5
    assert [path.suffix for path in folder.glob("*.tflite")] == [".tflite"]
    # No shell took any of it for a command.
    assert not list(pathlib.Path.cwd().glob("broken")) and not list(tmp_path.rglob("broken"))
    assert not pathlib.Path("/broken").exists()


def test_a_push_is_skipped_when_size_and_hash_match(run, tmp_path):
    assert run(keep_files=True).phone.pushed == ("model", "binary")
    assert run(keep_files=True).phone.pushed == ()
    (model,) = (tmp_path / "device").glob("*.tflite")
    content = bytearray(model.read_bytes())
    content[-1] ^= 1  # the same size, another hash
    model.write_bytes(content)
    assert run(keep_files=True).phone.pushed == ("model",)
    assert not list((tmp_path / "device").glob("run-*"))


def test_the_program_may_die_or_fail(run, tmp_path):
    with pytest.raises(ModelCrashError, match=r"killed by SIGABRT.*going to crash"):
        run(extra_args=["--behave=crash"])
    with pytest.raises(DeviceError, match=r"ended with status 1.*Could not open"):
        run(extra_args=["--behave=fail"])
    with pytest.raises(DeviceError, match="no result in a known format"):
        run(extra_args=["--behave=silent"])
    assert not (tmp_path / "device").exists()


def device_processes(mark):
    """Command lines of running processes that hold a text."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if mark in words and "device_benchmark.py" in words:
            found.append(words)
    return found


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_time_limit_ends_the_program_and_cleans_up(run, tmp_path):
    with pytest.raises(DeviceTimeoutError, match="still busy after 2 s"):
        run(extra_args=["--behave=hang"], timeout_s=2.0)
    assert wait_until(lambda: not device_processes(str(tmp_path)))
    assert not (tmp_path / "device").exists()


def test_ctrl_c_ends_the_program_and_cleans_up(phone, program, tmp_path):
    model = tmp_path / "m.tflite"
    model.write_bytes(tiny_models.dense_float())
    command = [sys.executable, "-m", "tflite_tools", "benchmark", f"--model={model}", "--target=android"]
    command += [f"--benchmark_binary={program}", f"--serial={phone.serial}", "--extra_args=--behave=hang"]
    command += [f"--device_dir={tmp_path / 'device'}"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert wait_until(lambda: device_processes(str(tmp_path / "device")), 30)
    # As a terminal does: the whole group gets it, adb included.
    os.killpg(started.pid, signal.SIGINT)
    started.communicate(timeout=30)
    assert started.returncode == 130
    assert wait_until(lambda: not device_processes(str(tmp_path / "device")))
    assert not (tmp_path / "device").exists()


def test_a_device_that_goes_away(phones, program, tmp_path):
    phone = fake_phone.Phone(phones / "leaving").start()
    lines = []
    timer = threading.Thread(
        target=lambda: (wait_until(lambda: any("going to hang" in line for line in lines), 30), phone.stop())
    )
    timer.start()
    with pytest.raises(DeviceLostError, match="went away"):
        benchmark(
            tiny_models.dense_float(), "android", benchmark_binary=program, serial=phone.serial,
            device_dir=str(tmp_path / "device"), extra_args=["--behave=hang"], timeout_s=60, progress=lines.append,
        )  # fmt: skip
    timer.join()
    # What could not be removed is named.
    assert any("Could not clean up" in line and str(tmp_path / "device") in line for line in lines)
    fake_phone.end_orphans(phone.serial, str(tmp_path / "device"))


def adb_that(folder, does):
    """The real adb, which runs a line of shell before it pushes anything."""
    path = folder / "adb"
    path.write_text(f'#!/bin/sh\ncase " $* " in *" push "*) {does};; esac\nexec adb "$@"\n')
    path.chmod(0o755)
    return path


def test_a_device_that_goes_away_while_files_are_sent(phones, program, tmp_path):
    phone = fake_phone.Phone(phones / "sending").start()
    adb = adb_that(tmp_path, f"kill -9 {phone.process.pid}")
    with pytest.raises(DeviceLostError, match="went away"):
        benchmark(
            tiny_models.dense_float(), "android", benchmark_binary=program, serial=phone.serial, adb=adb,
            device_dir=str(tmp_path / "device"),
        )  # fmt: skip
    phone.stop()
    fake_phone.end_orphans(phone.serial, str(tmp_path / "device"))


def test_ctrl_c_while_files_are_sent_cleans_up(phone, program, tmp_path):
    model = tmp_path / "m.tflite"
    model.write_bytes(tiny_models.dense_float())
    command = [sys.executable, "-m", "tflite_tools", "benchmark", f"--model={model}", "--target=android"]
    command += [f"--benchmark_binary={program}", f"--serial={phone.serial}"]
    command += [
        f"--device_dir={tmp_path / 'device'}",
        f"--adb={adb_that(tmp_path, 'kill -INT $PPID; sleep 1')}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and not done.stdout
    assert not (tmp_path / "device").exists()


def test_several_devices_and_a_wrong_binary(phones, phone, program, tmp_path):
    tablet = fake_phone.Phone(
        phones / "tablet", {"ro.product.model": "Tablet", "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a"}
    ).start()
    try:
        with pytest.raises(DeviceError, match=r"(?s)Several devices are attached.*" + phone.serial):
            benchmark(tiny_models.dense_float(), "android", benchmark_binary=program)
        with pytest.raises(
            ValueError, match="is built for x86_64, but the device runs arm64-v8a, armeabi-v7a"
        ):
            benchmark(tiny_models.dense_float(), "android", benchmark_binary=program, serial=tablet.serial)
    finally:
        tablet.stop()
        subprocess.run(["adb", "disconnect", tablet.serial], capture_output=True, timeout=30)


def test_it_runs_on_the_chosen_cores(run):
    core = min(os.sched_getaffinity(0))
    result = run(cpu_mask=f"{1 << core:x}")
    assert f"On cores: [{core}]" in result.phone.log and f"cores {1 << core:x}" in result.runtime


def test_a_phone_that_heats_up(run, tmp_path):
    counter = tmp_path / "count"
    lines = []
    arguments = ["--delay=0.02", f"--slower={counter}"]
    result = run(repeat=3, cooldown_s=0.1, extra_args=arguments, progress=lines.append)
    rests = [line for line in lines if line.startswith(("Repetition", "Cooling"))]
    rest = "Cooling down for 0.1 s"
    assert rests == ["Repetition 1 of 3", rest, "Repetition 2 of 3", rest, "Repetition 3 of 3"]
    first, second, third = result.phone.repeats_us
    assert first < second < third  # 20, 40 and 60 ms
    assert result.latency_us.mean == second  # the one in the middle
    assert any("slower than the first: the device heats up" in warning for warning in result.warnings)


def test_an_exit_status_is_never_taken_for_another(phone):
    device = Device(bridge.find_adb(), phone.serial)
    assert device.shell(["sh", "-c", "exit 7"], check=False) == (7, "")
    assert device.shell(["printf", "%s", "tflite_tools_status_=0 \n$HOME"]) == (
        0,
        "tflite_tools_status_=0 \n$HOME",
    )
    with pytest.raises(DeviceError, match="status 3"):
        device.shell(["sh", "-c", "echo no; exit 3"])


def test_the_command(phone, program, tmp_path, capsys):
    model = tmp_path / "m.tflite"
    model.write_bytes(tiny_models.dense_float())
    common = ["benchmark", f"--model={model}", "--target=android", f"--serial={phone.serial}", "--num_runs=3"]
    common += [f"--device_dir={tmp_path / 'device'}"]
    assert main([*common, f"--benchmark_binary={program}", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["latency_us"]["runs"] == 3 and "Nobody Test Phone 1" in err
    assert main(common) == 2
    assert "give either benchmark_binary" in capsys.readouterr().err
