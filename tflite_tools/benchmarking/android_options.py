"""What can be asked of a benchmark on a phone, checked, and as the arguments of TFLite's and LiteRT's programs."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class AndroidOptions:
    """What to run; as the arguments of `benchmark_android`."""

    num_threads: int
    num_runs: int
    warmup_runs: int
    op_profile: bool
    use_xnnpack: bool
    use_gpu: bool
    use_nnapi: bool
    cpu_mask: str | None
    repeat: int
    cooldown_s: float
    timeout_s: float
    device_dir: str
    keep_files: bool
    extra_args: tuple[str, ...]


def check_options(options: AndroidOptions, binary: pathlib.Path | None, use_apk: bool) -> None:
    """Refuses what cannot work, before anything is sent.

    Raises:
      ValueError: with every problem found.
      FileNotFoundError: there is no such binary.
    """
    problems = [
        f"{name} must be {least} or more, got {getattr(options, name)!r}"
        for name, least in (("num_threads", 1), ("num_runs", 1), ("warmup_runs", 0), ("repeat", 1))
        if isinstance(getattr(options, name), bool)
        or not isinstance(getattr(options, name), int)
        or getattr(options, name) < least
    ]
    if not options.timeout_s > 0:
        problems.append(f"timeout_s must be above 0, got {options.timeout_s!r}")
    if not options.cooldown_s >= 0:
        problems.append(f"cooldown_s must be 0 or more, got {options.cooldown_s!r}")
    if (binary is None) == (not use_apk):
        problems.append(
            "give either benchmark_binary (TFLite's benchmark_model or LiteRT's benchmark_litert_model, built for the "
            "device) or use_apk (the installed benchmark app)"
        )
    if options.use_gpu and options.use_nnapi:
        problems.append("use_gpu and use_nnapi exclude each other")
    if options.cpu_mask is not None and not re.fullmatch(r"(0x)?[0-9a-fA-F]+", options.cpu_mask):
        problems.append(f"cpu_mask must be hexadecimal, for example 'f0', got {options.cpu_mask!r}")
    if use_apk and options.cpu_mask is not None:
        problems.append("cpu_mask works with benchmark_binary only; an app cannot be started on chosen cores")
    if not options.device_dir.startswith("/") or options.device_dir.rstrip("/").count("/") < 2:
        problems.append(
            f"device_dir must be an absolute path below a folder of the device, got {options.device_dir!r}"
        )
    if use_apk and re.search(r"[\s\"']", options.device_dir):
        problems.append(
            "device_dir may hold no spaces and no quotes with use_apk: the app splits its arguments there"
        )
    if problems:
        raise ValueError("; ".join(problems) + ".")
    if binary is not None and not binary.is_file():
        raise FileNotFoundError(f"There is no file {binary} (benchmark_binary).")


def is_litert_program(binary: pathlib.Path) -> bool:
    """Whether a benchmark program is LiteRT's and not TFLite's.

    LiteRT's releases call it `benchmark_model` too, so the name alone does not tell; but every line that it logs
    begins with its source file's name, which the program therefore holds.
    """
    return "litert" in binary.name.lower() or b"benchmark_litert_model" in binary.read_bytes()


def program_arguments(model: str, folder: str, options: AndroidOptions, *, is_litert: bool) -> list[str]:
    """What the benchmark program is called with.

    Args:
      model: the file on the device.
      folder: where it may write the operator profile.
      options: what to run.
      is_litert: for LiteRT's program, whose flags differ from TFLite's.
    """

    def flag(name: str, value: bool) -> str:
        return f"--{name}={'true' if value else 'false'}"

    words = [
        f"--graph={model}",
        f"--num_threads={options.num_threads}",
        f"--num_runs={options.num_runs}",
        f"--warmup_runs={options.warmup_runs}",
        flag("use_gpu", options.use_gpu),
        "--report_peak_memory_footprint=true",
    ]
    if is_litert:
        words.append(flag("use_cpu", not options.use_gpu))
        if options.op_profile:
            words.append("--use_profiler=true")  # prints the table that TFLite's program writes to a file
        return [*words, *options.extra_args]
    words += [flag("use_xnnpack", options.use_xnnpack), flag("use_nnapi", options.use_nnapi)]
    if options.op_profile:
        words += ["--enable_op_profiling=true", "--op_profiling_output_mode=csv"]
        words.append(f"--op_profiling_output_file={folder}/profile.csv")
    return [*words, *options.extra_args]
