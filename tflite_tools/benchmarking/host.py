"""Latency and memory of a file on this machine, measured in a child process."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

from tflite_tools.benchmarking.result import BenchmarkResult, DelegateShare
from tflite_tools.benchmarking.statistics import noise_warnings, summarize
from tflite_tools.errors import ModelCrashError, UnsupportedModelError
from tflite_tools.processes import crash_error
from tflite_tools.runner import explain_refusal
from tflite_tools.schema import parse

# Loading and the first run may take this long before the child is taken for hung.
_STARTUP_LIMIT_S = 120.0


def benchmark_host(
    content: bytes,
    *,
    num_threads: int = 1,
    num_runs: int = 50,
    warmup_runs: int = 5,
    op_profile: bool = False,
    use_xnnpack: bool = True,
    interval: float | None = 0.01,
    time_limit_s: float = 10.0,
    seed: int = 0,
) -> BenchmarkResult:
    """Times a .tflite file on this machine with the LiteRT interpreter.

    Runs of random inputs are repeated, `num_runs` at least, until the 95 % interval of the median is
    narrower than `interval` on either side, or until `time_limit_s`.

    Args:
      content: the file's bytes.
      num_threads: threads of the runtime.
      num_runs: timed runs, at the least (unless the time limit ends them first).
      warmup_runs: runs before those, which are not counted.
      op_profile: also measure every operator, in a second process.
      use_xnnpack: False runs the runtime's own kernels without the XNNPACK delegate.
      interval: how narrow the median's interval must be, as a fraction of the median; None stops after
        exactly `num_runs`.
      time_limit_s: seconds for the timed runs.
      seed: of the random inputs.

    Returns:
      A `BenchmarkResult`; `warnings` says when the machine was too noisy.

    Raises:
      ValueError: an argument out of range; all such are named at once.
      InvalidModelError: no .tflite file, or a broken one.
      UnsupportedModelError: the runtime refuses the file; the message says why.
      ModelCrashError: the child process died or hung; this process is unharmed.
    """
    _check(num_threads, num_runs, warmup_runs, interval, time_limit_s)
    parse(content)  # a broken file is refused here, in words, before a process is started for it
    load = _load_average()
    request = {
        "num_threads": num_threads,
        "num_runs": num_runs,
        "warmup_runs": warmup_runs,
        "use_xnnpack": use_xnnpack,
        "interval": interval,
        "time_limit_s": time_limit_s,
        "seed": seed,
    }
    answer = run_child("tflite_tools.benchmarking.host_worker", content, request, time_limit_s)
    times = answer["times_us"]
    latency = summarize(times)
    warnings = noise_warnings(times, latency, load, _cores())
    if answer["cut_short"]:
        warnings += (
            f"The time limit of {time_limit_s:g} s ended the benchmark after {len(times)} of {num_runs} runs.",
        )
    if num_threads > _cores():
        warnings += (f"{num_threads} threads share {_cores()} cores.",)
    ops = None
    if op_profile:
        from tflite_tools.benchmarking.operator_profile import operator_profile

        ops, remark = operator_profile(
            content, num_runs=num_runs, num_threads=num_threads, use_xnnpack=use_xnnpack
        )
        warnings += remark
    found = answer["delegates"]
    version = importlib.metadata.version("ai-edge-litert")
    return BenchmarkResult(
        target="host",
        runtime=f"ai-edge-litert {version}, {num_threads} thread{'s' if num_threads > 1 else ''}, "
        f"XNNPACK {'on' if use_xnnpack else 'off'}",
        device=device_name(),
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        latency_us=latency,
        init_us=answer["init_us"],
        first_us=answer["first_us"],
        peak_memory_bytes=answer["peak_memory_bytes"],
        arena_bytes=None,  # the Python interface of the runtime does not tell
        ops=ops,
        delegates=None if found is None else tuple(DelegateShare(**share) for share in found),
        settings=request,
        warnings=warnings,
    )


def _check(
    num_threads: int, num_runs: int, warmup_runs: int, interval: float | None, time_limit_s: float
) -> None:
    problems = [
        f"{name} must be {least} or more, got {value!r}"
        for name, value, least in (
            ("num_threads", num_threads, 1),
            ("num_runs", num_runs, 1),
            ("warmup_runs", warmup_runs, 0),
        )
        if isinstance(value, bool) or not isinstance(value, int) or value < least
    ]
    if interval is not None and not 0 < interval < 1:
        problems.append(f"interval must be between 0 and 1, or None, got {interval!r}")
    if not time_limit_s > 0:
        problems.append(f"time_limit_s must be above 0, got {time_limit_s!r}")
    if problems:
        raise ValueError("; ".join(problems) + ".")


def run_child(module: str, content: bytes, request: dict[str, Any], time_limit_s: float) -> dict[str, Any]:
    """Runs a worker module on a file in a process of its own and returns its answer.

    Raises:
      UnsupportedModelError: the runtime in the child refused the file.
      ModelCrashError: the child died, or did not end in time.
    """
    with tempfile.TemporaryDirectory(prefix="tflite_tools_") as name:
        folder = pathlib.Path(name)
        model, asked, answered, said = (folder / n for n in ("model.tflite", "request", "answer", "stderr"))
        model.write_bytes(content)
        asked.write_text(json.dumps({**request, "model": str(model)}), encoding="utf-8")
        environment = dict(os.environ)
        paths = [str(pathlib.Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(asked), str(answered)],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env=environment,
                # -m looks into the current folder first, where a user may have a file of the same name as a module.
                cwd=folder,
            )
            try:
                code = process.wait(timeout=time_limit_s + _STARTUP_LIMIT_S)
            except BaseException as error:
                process.kill()
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                code = None
        words = said.read_text(encoding="utf-8", errors="replace")[-2000:].strip()
        if code is None:
            raise ModelCrashError(
                f"The child process was still busy after {time_limit_s + _STARTUP_LIMIT_S:g} s and was stopped; this "
                "process is unharmed. One run of the file may take longer than that.",
                stderr=words,
            )
        if code != 0 or not answered.exists():
            raise crash_error(code, "running the file", words)
        answer = json.loads(answered.read_text(encoding="utf-8"))
    if "refused" in answer:
        raise UnsupportedModelError(explain_refusal(answer["refused"], content))
    return answer


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def device_name() -> str:
    """The processor as the system names it, its cores and the system."""
    processor = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor
        )
    except OSError:
        pass
    return f"{processor}, {_cores()} cores, {platform.system()} {platform.machine()}"
