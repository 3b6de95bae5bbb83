"""The command line of the whole chain: `python -m keras_kd --teacher=... --student=... --train=...`.

Results go to standard output and to the output folder. Whatever is wrong with the arguments or the files
ends in one line on standard error and exit status 2, before anything is trained.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from tflite_tools.cli import load_arrays

_PROGRAM = "python -m keras_kd"
_REQUIRED = ("teacher", "student", "train", "output_dir")
_FILES = ("teacher", "student", "train", "validation", "test")


def define_flags(values: flags.FlagValues) -> None:
    """Define what `main` reads, in a set of flags of its own."""
    kept = {"flag_values": values}
    flags.DEFINE_string("teacher", None, "The trained teacher: a .keras file.", **kept)
    flags.DEFINE_string(
        "student", None, "The student to train, a .keras file; training starts at its weights.", **kept
    )
    flags.DEFINE_string("train", None, "Training data: a .npz file that holds x and y.", **kept)
    flags.DEFINE_string("validation", None, "Validation data: a .npz file that holds x and y.", **kept)
    flags.DEFINE_string(
        "test", None, "Data to measure on, a .npz file; the validation data if not given.", **kept
    )
    flags.DEFINE_string("recipe", "prune75-int8", "The compression, such as prune50-int8 or float16.", **kept)
    flags.DEFINE_integer("epochs", 10, "Passes over the data while distilling.", lower_bound=1, **kept)
    flags.DEFINE_integer(
        "compress_epochs",
        None,
        "Passes over the data in each phase of the compression; a third of --epochs if not given.",
        lower_bound=1,
        **kept,
    )
    flags.DEFINE_integer("batch_size", 32, "Examples per step.", lower_bound=1, **kept)
    flags.DEFINE_float("learning_rate", 1e-3, "Where Adam's cosine decay starts while distilling.", **kept)
    flags.DEFINE_float(
        "temperature",
        None,
        "Of the soft targets; 3 while distilling and 1 while compressing if not given.",
        **kept,
    )
    flags.DEFINE_float(
        "student_loss_weight",
        None,
        "Weight of the labels' loss; 0.1 while distilling and 0.5 while compressing if not given.",
        0.0,
        1.0,
        **kept,
    )
    flags.DEFINE_bool("student_alone", False, "Also train the student without its teacher.", **kept)
    flags.DEFINE_bool("latency", True, "Measure latency on this host.", **kept)
    flags.DEFINE_string("output_dir", None, "Where the files go.", **kept)
    flags.DEFINE_integer("seed", 0, "Of everything random.", **kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chain and return the exit status: 0, or 2 for bad input.

    Args:
      arguments: what stands behind the program's name; None takes them from sys.argv.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    values = flags.FlagValues()
    define_flags(values)
    if not words or any(word in ("--help", "-h", "-help", "help") for word in words):
        print(_help(values))
        return 0 if words else 2
    try:
        rest = values([_PROGRAM, *words])[1:]
        _check(values, rest)
        print(_run(values))
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError, ImportError, flags.Error) as error:
        print(f"{_PROGRAM}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _help(values: flags.FlagValues) -> str:
    lines = [f"usage: {_PROGRAM} --name=value ...", ""]
    for flag in values.flags_by_module_dict()[__name__]:
        default = f" (default: {flag.default})" if flag.default not in (None, False) else ""
        lines.append(f"  --{flag.name}{'' if flag.boolean else '=...'}  {flag.help}{default}")
    lines += ["", f"Needed: {', '.join(f'--{name}' for name in _REQUIRED)}, and --validation or --test."]
    return "\n".join(lines)


def _check(values: Any, rest: Sequence[str]) -> None:
    """All that is missing or wrong among the flags, before anything heavy is imported."""
    problems = [f"unexpected argument {word!r}; arguments are written as --name=value" for word in rest]
    problems += [f"--{name} is missing" for name in _REQUIRED if not values[name].value]
    if not values.validation and not values.test:
        problems.append("--validation or --test is missing: every stage is measured on it")
    for name in _FILES:
        path = values[name].value
        if path and not pathlib.Path(path).is_file():
            problems.append(f"--{name}={path}: there is no such file")
    if values.temperature is not None and values.temperature <= 0:
        problems.append(f"--temperature must be above 0, got {values.temperature}")
    if problems:
        raise ValueError("; ".join(problems) + f". See {_PROGRAM} --help.")


def _run(values: Any) -> str:
    data = {name: _labeled(name, values[name].value) for name in _FILES[2:] if values[name].value}
    import keras

    import keras_kd

    recipe = keras_kd.CompressionRecipe.from_name(values.recipe)
    given = values.temperature is not None
    soft_targets = keras_kd.losses.LogitsDistillation(temperature=values.temperature) if given else None
    teacher, student = _model("teacher", values.teacher), _model("student", values.student)
    steps = -(-len(data["train"][1]) // values.batch_size) * values.epochs
    result = keras_kd.distill_to_tflite(
        teacher,
        student,
        *data["train"],
        recipe=recipe,
        validation_data=data.get("validation"),
        test_data=data.get("test"),
        epochs=values.epochs,
        compress_epochs=values.compress_epochs,
        batch_size=values.batch_size,
        distillation_losses=soft_targets,
        student_loss_weight=values.student_loss_weight,
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(values.learning_rate, steps)),
        student_alone=values.student_alone,
        latency=values.latency,
        output_dir=values.output_dir,
        seed=values.seed,
    )
    written = sorted(path.name for path in pathlib.Path(values.output_dir).iterdir())
    return f"\n{result}\n\nWritten to {values.output_dir}: {', '.join(written)}"


def _labeled(flag: str, path: str) -> tuple[Any, Any]:
    x, y = load_arrays(path, "x", "y")
    if y is None:
        raise ValueError(f"--{flag}={path}: the file holds x, but no array 'y'.")
    return x, y


def _model(flag: str, path: str) -> Any:
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its readers raise, from KeyError to OSError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"--{flag}={path}: Keras cannot load it: {lines[0]}") from error
