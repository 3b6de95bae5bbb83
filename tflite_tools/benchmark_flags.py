"""The flags of `benchmark` that belong to one target only."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import Any

from absl import flags

# Flag -> the targets that read it. A flag given for another target is an error, never ignored.
_READ_BY = {
    "use_xnnpack": ("host", "android"),
    "time_limit_s": ("host", "micro"),
    "adb": ("android",),
    "serial": ("android",),
    "benchmark_binary": ("android",),
    "use_apk": ("android",),
    "use_gpu": ("android",),
    "use_nnapi": ("android",),
    "cpu_mask": ("android",),
    "repeat": ("android",),
    "cooldown_s": ("android",),
    "timeout_s": ("android",),
    "device_dir": ("android",),
    "keep_files": ("android",),
    "extra_args": ("android",),
    "board": ("micro",),
    "flash_bytes": ("micro",),
    "arena_bytes": ("micro",),
    "npu": ("micro",),
    "picture": ("micro",),
}
# Flags that are written here and are no options of the benchmark itself.
_OUTPUTS = ("picture",)


def define_target_flags(values: flags.FlagValues) -> None:
    """Adds them to a command."""
    flags.DEFINE_bool("use_xnnpack", True, "host, android: use the XNNPACK delegate.", flag_values=values)
    flags.DEFINE_float("time_limit_s", 10.0, "host, micro: seconds for the runs.", flag_values=values)
    flags.DEFINE_string(
        "adb", None, "android: the adb program; default: the one on PATH.", flag_values=values
    )
    flags.DEFINE_string(
        "serial", None, "android: which device, as `adb devices` lists it.", flag_values=values
    )
    flags.DEFINE_string(
        "benchmark_binary", None, "android: benchmark_model or benchmark_litert_model.", flag_values=values
    )
    flags.DEFINE_bool("use_apk", False, "android: use the installed benchmark app.", flag_values=values)
    flags.DEFINE_bool("use_gpu", False, "android: use the GPU delegate.", flag_values=values)
    flags.DEFINE_bool("use_nnapi", False, "android: use NNAPI (deprecated).", flag_values=values)
    flags.DEFINE_string(
        "cpu_mask", None, "android: cores to run on, for taskset, e.g. f0", flag_values=values
    )
    flags.DEFINE_integer("repeat", 1, "android: how often the whole benchmark runs.", flag_values=values)
    flags.DEFINE_float("cooldown_s", 10.0, "android: rest between repetitions, seconds.", flag_values=values)
    flags.DEFINE_float("timeout_s", 300.0, "android: seconds for one repetition.", flag_values=values)
    flags.DEFINE_string(
        "device_dir", "/data/local/tmp/tflite_tools", "android: folder on the device.", flag_values=values
    )
    flags.DEFINE_bool("keep_files", False, "android: leave model and program there.", flag_values=values)
    flags.DEFINE_multi_string(
        "extra_args", [], "android: an argument for the program; may be repeated.", flag_values=values
    )
    flags.DEFINE_string(
        "board", None, "micro: does it fit this board? e.g. raspberry-pi-pico", flag_values=values
    )
    flags.DEFINE_integer("flash_bytes", None, "micro: flash that there is for the model.", flag_values=values)
    flags.DEFINE_integer("arena_bytes", None, "micro: memory in one piece that there is.", flag_values=values)
    flags.DEFINE_string(
        "npu", None, "micro: also estimate an Ethos-U, e.g. ethos-u55-128", flag_values=values
    )
    flags.DEFINE_string(
        "picture", None, "micro: draw the activations over time to this file.", flag_values=values
    )


def target_options(values: Any, target: str) -> dict[str, Any]:
    """The options that a target reads.

    Raises:
      ValueError: flags of another target were given; all are named.
    """
    wrong = [
        f"--{name} belongs to --target={' or '.join(targets)}"
        for name, targets in _READ_BY.items()
        if values[name].present and target not in targets
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; --target is {target}.")
    if values.picture:
        problems: list[str] = []
        check_picture(values.picture, problems)
        if problems:
            raise ValueError(f"{'; '.join(problems)}.")
    options = {
        name: getattr(values, name)
        for name, targets in _READ_BY.items()
        if target in targets and name not in _OUTPUTS and getattr(values, name) is not None
    }
    if target == "android":
        # Not on standard output, where the result goes.
        options["progress"] = lambda line: print(line, file=sys.stderr, flush=True)
    return options


def check_picture(path: str, problems: list[str]) -> None:
    """Adds what keeps a picture from being drawn, before anything is measured for it.

    Raises:
      ImportError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The picture needs matplotlib: pip install 'keras-kd[report]'")
    if pathlib.Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        problems.append(f"a picture's name ends in .png, .svg or .pdf, got {path!r}")


def write_pictures(values: Any) -> None:
    """Draws what was asked for beside the result."""
    if values.picture:
        from tflite_tools.benchmarking.memory_timeline import write_memory_picture

        write_memory_picture(pathlib.Path(values.model).read_bytes(), values.picture)
