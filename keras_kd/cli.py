"""The command line of the whole chain: `python -m keras_kd --teacher=... --student=... --train=...`."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

TEACHER = flags.DEFINE_string(
    "teacher", None, "The trained teacher: a .keras (or Keras 3 readable .h5) file."
)
STUDENT = flags.DEFINE_string(
    "student", None, "The student to train: a .keras file; its weights are where it starts."
)
TRAIN = flags.DEFINE_string("train", None, "Training data: a .npz file that holds x and y.")
VALIDATION = flags.DEFINE_string("validation", None, "Validation data: a .npz file that holds x and y.")
TEST = flags.DEFINE_string("test", None, "Data to measure on, a .npz file; the validation data if not given.")
RECIPE = flags.DEFINE_string(
    "recipe", "prune75-int8", "Name of the compression, such as prune50-int8 or float16."
)
EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the data while distilling.", lower_bound=1)
COMPRESS_EPOCHS = flags.DEFINE_integer(
    "compress_epochs",
    None,
    "Passes over the data in each phase of the compression; a third of --epochs by default.",
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples per step.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Peak of Adam's cosine decay while distilling.")
TEMPERATURE = flags.DEFINE_float("temperature", 3.0, "Of the soft targets.")
STUDENT_LOSS_WEIGHT = flags.DEFINE_float("student_loss_weight", 0.1, "Weight of the labels' loss, in [0, 1].")
STUDENT_ALONE = flags.DEFINE_boolean("student_alone", False, "Also train the student without its teacher.")
LATENCY = flags.DEFINE_boolean("latency", True, "Measure latency on this host.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the files go.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.")

_REQUIRED = ("teacher", "student", "train", "output_dir")


def main(arguments: Sequence[str]) -> int:
    """Run the chain; the exit status is 2 for bad input, with one line on standard error."""
    try:
        print(_run(arguments))
    except (ValueError, OSError) as error:
        print(f"keras_kd: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str]) -> Any:
    _check_flags(arguments)
    data = {flag.name: _arrays(flag.value) for flag in (TRAIN, VALIDATION, TEST) if flag.value}
    import keras

    import keras_kd
    from keras_kd.compression.recipe import CompressionRecipe

    recipe = CompressionRecipe.from_name(RECIPE.value)
    teacher, student = _model(TEACHER), _model(STUDENT)
    steps = -(-len(data["train"][1]) // BATCH_SIZE.value) * EPOCHS.value
    result = keras_kd.distill_to_tflite(
        teacher,
        student,
        *data["train"],
        recipe=recipe,
        validation_data=data.get("validation"),
        test_data=data.get("test"),
        epochs=EPOCHS.value,
        compress_epochs=COMPRESS_EPOCHS.value,
        batch_size=BATCH_SIZE.value,
        distillation_losses=keras_kd.losses.LogitsDistillation(temperature=TEMPERATURE.value),
        student_loss_weight=STUDENT_LOSS_WEIGHT.value,
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE.value, steps)),
        student_alone=STUDENT_ALONE.value,
        latency=LATENCY.value,
        output_dir=OUTPUT_DIR.value,
        seed=SEED.value,
    )
    names = ", ".join(sorted(path.name for path in pathlib.Path(OUTPUT_DIR.value).iterdir()))
    return f"\n{result}\n\nWritten to {OUTPUT_DIR.value}: {names}"


def _check_flags(arguments: Sequence[str]) -> None:
    """All that is missing or wrong among the flags, before anything heavy is imported."""
    problems = [f"unknown argument {argument!r}" for argument in arguments[1:]]
    problems += [f"--{name} is missing" for name in _REQUIRED if not flags.FLAGS[name].value]
    if not VALIDATION.value and not TEST.value:
        problems.append("--validation or --test is missing: every stage is measured on it")
    for flag in (TEACHER, STUDENT, TRAIN, VALIDATION, TEST):
        if flag.value and not pathlib.Path(flag.value).is_file():
            problems.append(f"--{flag.name}={flag.value}: there is no such file")
    if not 0 <= STUDENT_LOSS_WEIGHT.value <= 1:
        problems.append(f"--student_loss_weight must be in [0, 1], got {STUDENT_LOSS_WEIGHT.value}")
    if problems:
        raise ValueError("; ".join(problems) + ". See python -m keras_kd --help.")


def _arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    """`x` and `y` of a .npz file."""
    try:
        with np.load(path) as file:
            missing = [name for name in ("x", "y") if name not in file]
            if missing:
                raise ValueError(
                    f"{path} holds {sorted(file.files)}, and {' and '.join(missing)} is missing."
                )
            return file["x"], file["y"]
    except (ValueError, OSError, TypeError, AttributeError) as error:
        # np.load takes a .npy for an array, which is no context manager, and refuses pickles with a long text.
        if isinstance(error, ValueError) and str(error).startswith(path):
            raise
        raise ValueError(
            f"{path} is not a .npz file of plain arrays: {str(error).splitlines()[0]}"
        ) from error


def _model(flag: Any) -> Any:
    import keras

    try:
        return keras.models.load_model(flag.value, compile=False)
    except Exception as error:  # Keras raises whatever its readers raise, from KeyError to OSError
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--{flag.name}={flag.value}: Keras cannot load it: {first_line}") from error


def run() -> None:
    """Entry point; absl reads the flags."""
    app.run(main)
