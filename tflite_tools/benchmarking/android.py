"""Latency and memory of a file on a phone, through the user's own `adb`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from tflite_tools.benchmarking import adb as bridge
from tflite_tools.benchmarking.adb import Device, DeviceError, DeviceLostError, DeviceTimeoutError
from tflite_tools.benchmarking.android_options import (
    AndroidOptions,
    check_options,
    is_litert_program,
    program_arguments,
)
from tflite_tools.benchmarking.elf import program_abi
from tflite_tools.benchmarking.logs import BenchmarkLog, parse_log, parse_operator_table
from tflite_tools.benchmarking.phone_facts import PhoneFacts, phone_facts, phone_state
from tflite_tools.benchmarking.phone_result import PhoneDetails, PhoneState
from tflite_tools.benchmarking.result import BenchmarkResult, DelegateShare
from tflite_tools.errors import ModelCrashError
from tflite_tools.schema import parse

APK = "org.tensorflow.lite.benchmark"
_SIGNALS = {132: "SIGILL", 134: "SIGABRT", 135: "SIGBUS", 136: "SIGFPE", 137: "SIGKILL", 139: "SIGSEGV"}
_SLOWER = 0.05  # beyond this, the last runs are called slower than the first
_POLL_S = 1.0


def benchmark_android(
    content: bytes,
    *,
    num_threads: int = 1,
    num_runs: int = 50,
    warmup_runs: int = 5,
    op_profile: bool = False,
    adb: str | os.PathLike[str] | None = None,
    serial: str | None = None,
    benchmark_binary: str | os.PathLike[str] | None = None,
    use_apk: bool = False,
    use_xnnpack: bool = True,
    use_gpu: bool = False,
    use_nnapi: bool = False,
    cpu_mask: str | None = None,
    repeat: int = 1,
    cooldown_s: float = 10.0,
    timeout_s: float = 300.0,
    device_dir: str = "/data/local/tmp/tflite_tools",
    keep_files: bool = False,
    extra_args: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> BenchmarkResult:
    """Times a .tflite file on an Android device with TFLite's or LiteRT's own benchmark program.

    Args:
      content: the file's bytes.
      num_threads: threads of the runtime.
      num_runs: timed runs; the program goes on until a second has passed.
      warmup_runs: runs before those, which are not counted.
      op_profile: also measure every operator.
      adb: the adb program; None takes the one on PATH.
      serial: which device; None is right while one is attached.
      benchmark_binary: `benchmark_model` (TFLite) or `benchmark_litert_model` (LiteRT), built for the device.
      use_apk: use the installed benchmark app (org.tensorflow.lite.benchmark) and no binary.
      use_xnnpack: False runs the runtime's own kernels without the XNNPACK delegate.
      use_gpu: use the GPU delegate.
      use_nnapi: use NNAPI, which Android has deprecated since version 15.
      cpu_mask: cores to run on, hexadecimal as `taskset` takes it, for example "f0".
      repeat: how often the whole benchmark runs; the result is that of the one in the middle.
      cooldown_s: seconds of rest between repetitions.
      timeout_s: seconds for one repetition.
      device_dir: folder on the device; created, and removed again if it is empty at the end.
      keep_files: leave model and binary there, so that the next run need not send them.
      extra_args: further arguments of the program.
      progress: called with each line of the program as it comes.

    Returns:
      A `BenchmarkResult` with `phone`. Figures that the program does not print are None.

    Raises:
      ValueError: an argument out of range, all such at once; or a binary for another processor.
      FileNotFoundError: no adb, or no such binary.
      InvalidModelError: no .tflite file, or a broken one.
      DeviceError: no device, several, one that cannot be used, one that went away (DeviceLostError), one that took too
        long (DeviceTimeoutError), or a program that failed or cannot do what was asked; the message says what to do.
      ModelCrashError: the program died on the device.
    """
    options = AndroidOptions(
        num_threads, num_runs, warmup_runs, op_profile, use_xnnpack, use_gpu, use_nnapi, cpu_mask, repeat,
        cooldown_s, timeout_s, device_dir, keep_files, tuple(extra_args),
    )  # fmt: skip
    binary = None if benchmark_binary is None else pathlib.Path(benchmark_binary)
    check_options(options, binary, use_apk)
    parse(content)
    abi, is_litert = None, False
    if binary is not None:
        abi, is_litert = program_abi(binary), is_litert_program(binary)
    if is_litert and (options.use_nnapi or not options.use_xnnpack):
        raise DeviceError(
            f"{binary} is LiteRT's benchmark, which has no switch for NNAPI and none that turns XNNPACK off; take "
            "TFLite's benchmark_model for that."
        )
    program = bridge.find_adb(adb)
    device = Device(program, bridge.choose(bridge.attached(program), serial).serial)
    facts = phone_facts(device)
    if binary is not None and facts.abis and abi not in facts.abis:
        raise ValueError(
            f"{binary} is built for {abi}, but the device runs {', '.join(facts.abis)}; build or download "
            f"{binary.name} for {facts.abis[0]}."
        )
    say = progress or (lambda line: None)
    say(f"Device {device.serial}: {facts.name}")
    with _files(device, content, binary, options, say) as (model, remote, folder, pushed):
        runs: list[tuple[BenchmarkLog, str]] = []
        before = after = phone_state(device)
        for number in range(repeat):
            if number:
                say(f"Cooling down for {cooldown_s:g} s")
                time.sleep(cooldown_s)
            if repeat > 1:
                say(f"Repetition {number + 1} of {repeat}")
            if remote is None:
                text = _run_apk(device, model, options, say)
            else:
                words = [remote, *program_arguments(model, folder, options, is_litert=is_litert)]
                text = _run_binary(device, words, folder, options, say)
            runs.append((_read(text, device, folder, options), text))
        after = phone_state(device)
    return _result(content, runs, device, facts, before, after, pushed, options)


@contextlib.contextmanager
def _files(
    device: Device,
    content: bytes,
    binary: pathlib.Path | None,
    options: AndroidOptions,
    say: Callable[[str], None],
) -> Iterator[tuple[str, str | None, str, tuple[str, ...]]]:
    """Puts model and binary on the device; whatever happens, what was put there is removed again."""
    base = options.device_dir.rstrip("/")
    run = f"{base}/run-{uuid.uuid4().hex[:8]}"
    kept = []
    try:
        device.shell(["mkdir", "-p", run])
        sent = []
        model = f"{base}/{hashlib.sha256(content).hexdigest()[:16]}.tflite"
        kept.append(model)
        if device.push(content, model):
            sent.append("model")
        remote = None
        if binary is not None:
            folder = f"{base}/{hashlib.sha256(binary.read_bytes()).hexdigest()[:16]}"
            remote = f"{folder}/{binary.name}"
            kept.append(folder)
            device.shell(["mkdir", "-p", folder])
            if device.push(binary, remote):
                sent.append("binary")
            device.shell(["chmod", "755", remote])
        say(f"Sent: {', '.join(sent) or 'nothing, model and program were there'}")
        yield model, remote, run, tuple(sent)
    finally:
        leftovers = [run] if options.keep_files else [run, *kept]
        pid = shlex.quote(f"{run}/pid")
        # The program must not go on heating the device after a time limit or Ctrl-C.
        script = f'test -f {pid} && kill -9 "$(cat {pid})" 2>/dev/null; rm -rf {shlex.join(leftovers)}'
        script += f"; rmdir {shlex.quote(base)} 2>/dev/null; true"
        try:
            device.script(script)
        except DeviceError as error:
            say(f"Could not clean up on {device.serial}: {error} These remain there: {', '.join(leftovers)}")


def _run_binary(
    device: Device, words: list[str], folder: str, options: AndroidOptions, say: Callable[[str], None]
) -> str:
    if options.cpu_mask is not None:
        words = ["taskset", options.cpu_mask, *words]
    # A shell of its own, whose process becomes the program: its number is what cleaning up has to end.
    script = shlex.join(["sh", "-c", 'echo $$ > "$0"; exec "$@"', f"{folder}/pid", *words])
    status, text = device.script(script, timeout_s=options.timeout_s, on_line=say, check=False)
    device.shell(["rm", "-f", f"{folder}/pid"])
    if status in _SIGNALS:
        raise ModelCrashError(
            f"The benchmark program was killed by {_SIGNALS[status]} on {device.serial}. Its last words: {_tail(text)}",
            signal_name=_SIGNALS[status],
            exit_code=status,
            stderr=text[-2000:],
        )
    if status:
        raise DeviceError(
            f"The benchmark program ended with status {status} on {device.serial}. Its last words: {_tail(text)}"
        )
    return text


def _run_apk(device: Device, model: str, options: AndroidOptions, say: Callable[[str], None]) -> str:
    if device.shell(["pm", "path", APK], check=False)[0]:
        raise DeviceError(
            f"The benchmark app {APK} is not installed on {device.serial}. Install its APK with `adb install -r -d -g "
            "FILE`, or give benchmark_binary."
        )
    # The app is another user of the device; files of the shell are closed to it by default on some.
    device.shell(["chmod", "644", model])
    device.shell(["chmod", "755", model.rpartition("/")[0]], check=False)
    words = [
        word for word in program_arguments(model, "", options, is_litert=False) if "output_file" not in word
    ]
    device.shell(["logcat", "-c"], check=False)
    start = [
        "am",
        "start",
        "-S",
        "-W",
        "-n",
        f"{APK}/.BenchmarkModelActivity",
        "--es",
        "args",
        " ".join(words),
    ]
    try:
        device.shell(start)
        return _follow_log(device, options, say)
    except BaseException:  # a time limit or Ctrl-C: the app must not go on heating the device
        with contextlib.suppress(DeviceError):
            device.shell(["am", "force-stop", APK], check=False)
        raise


def _follow_log(device: Device, options: AndroidOptions, say: Callable[[str], None]) -> str:
    """The app's lines in the device's log, once the result is among them."""
    deadline = time.monotonic() + options.timeout_s
    seen = 0
    while True:
        text = device.shell(["logcat", "-d", "-v", "brief", "-s", "tflite:*"], check=False)[1]
        lines = text.splitlines()
        for line in lines[seen:]:
            say(line)
        seen = max(seen, len(lines))
        if "Inference timings in us" in text:
            time.sleep(_POLL_S)  # memory and operator lines come after it
            return device.shell(["logcat", "-d", "-v", "brief", "-s", "tflite:*"], check=False)[1]
        if re.search(r"Benchmark(ing)? failed|Failed to (initialize|load)", text):
            raise DeviceError(f"The benchmark app failed on {device.serial}. Its last words: {_tail(text)}")
        if time.monotonic() > deadline:
            raise DeviceTimeoutError(
                f"The benchmark app was still busy on {device.serial} after {options.timeout_s:g} s."
            )
        time.sleep(_POLL_S)


def _read(text: str, device: Device, folder: str, options: AndroidOptions) -> BenchmarkLog:
    log = parse_log(text)
    if log.latency is None:
        raise DeviceError(
            f"The benchmark program on {device.serial} printed no result in a known format. Its last words: "
            f"{_tail(text)}"
        )
    if not options.op_profile:
        return log
    status, table = device.shell(["cat", f"{folder}/profile.csv"], check=False)
    ops = parse_operator_table(table) if status == 0 else None
    return BenchmarkLog(**{**vars(log), "ops": ops or log.ops})


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] or "none"


def _result(
    content: bytes,
    runs: list[tuple[BenchmarkLog, str]],
    device: Device,
    facts: PhoneFacts,
    before: PhoneState,
    after: PhoneState,
    pushed: tuple[str, ...],
    options: AndroidOptions,
) -> BenchmarkResult:
    means = [log.latency.mean or log.latency.median or 0.0 for log, _ in runs if log.latency is not None]
    middle = sorted(range(len(means)), key=means.__getitem__)[(len(means) - 1) // 2]
    log, text = runs[middle]
    shares = tuple(
        DelegateShare(name, taken, total, partitions or 1)
        for name, taken, total, partitions in log.replaced_nodes
        if total
    )
    delegates = [
        name
        for name, used in (
            ("XNNPACK", options.use_xnnpack),
            ("GPU", options.use_gpu),
            ("NNAPI", options.use_nnapi),
        )
        if used
    ]
    return BenchmarkResult(
        target="android",
        runtime=f"{log.tool}, {options.num_threads} thread{'s' if options.num_threads > 1 else ''}, "
        f"{' and '.join(delegates) or 'no delegate'}"
        + (f", cores {options.cpu_mask}" if options.cpu_mask else ""),
        device=facts.name,
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        latency_us=log.latency,
        init_us=log.init_us,
        first_us=log.first_us,
        peak_memory_bytes=log.peak_memory_bytes,
        ops=log.ops if options.op_profile else None,
        delegates=shares or None,
        settings={name: value for name, value in vars(options).items() if name != "extra_args"}
        | {"extra_args": list(options.extra_args)},
        warnings=_warnings(log, means, options),
        phone=PhoneDetails(
            serial=device.serial,
            model=facts.model,
            android=facts.android,
            sdk=facts.sdk,
            abis=facts.abis,
            soc=facts.soc,
            cores=facts.cores,
            tool=log.tool or "unknown",
            pushed=pushed,
            coverage=dict(log.delegates),
            repeats_us=tuple(means),
            before=before,
            after=after,
            log=text,
        ),
    )


def _warnings(log: BenchmarkLog, means: list[float], options: AndroidOptions) -> tuple[str, ...]:
    found = []
    half = max(1, len(means) // 2)
    if len(means) > 1:
        first, last = sum(means[:half]) / half, sum(means[-half:]) / half
        if last > (1 + _SLOWER) * first:
            found.append(
                f"The last repetitions are {100 * (last / first - 1):.0f} % slower than the first: the device heats "
                "up. Give it a longer cooldown_s."
            )
    if options.use_nnapi:
        found.append(
            "NNAPI is deprecated since Android 15; new apps use LiteRT's CompiledModel, the GPU delegate or a vendor's."
        )
    for name, how in log.delegates:
        if how == "not":
            found.append(f"The {name} delegate took nothing: this was measured on the CPU.")
        elif how == "partially":
            found.append(f"The {name} delegate took a part of the graph; the rest ran on the CPU.")
    if log.unknown_flags:
        found.append(
            f"The program does not know {', '.join(f'--{name}' for name in log.unknown_flags)} and went on without."
        )
    if options.op_profile and log.ops is None:
        found.append("The program gave no operator profile in a known format.")
    return tuple(found)


__all__ = ["DeviceError", "DeviceLostError", "DeviceTimeoutError", "benchmark_android"]
