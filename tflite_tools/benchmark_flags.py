"""The flags of `benchmark` that belong to one target only."""

from __future__ import annotations

from typing import Any

from absl import flags

# Flag -> the targets that read it. A flag given for another target is an error, never ignored.
_READ_BY = {
    "use_xnnpack": ("host", "android"),
    "time_limit_s": ("host", "micro"),
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
    return {
        name: getattr(values, name)
        for name, targets in _READ_BY.items()
        if target in targets and name not in _OUTPUTS and getattr(values, name) is not None
    }


def write_pictures(values: Any) -> None:
    """Draws what was asked for beside the result."""
    if values.picture:
        import pathlib

        from tflite_tools.benchmarking.memory_timeline import write_memory_picture

        write_memory_picture(pathlib.Path(values.model).read_bytes(), values.picture)
