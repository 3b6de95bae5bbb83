"""What a teacher is worth on Fashion-MNIST: alone, keras.distillation and keras_kd; then pruned and int8.

    KERAS_HOME=... python benchmarks/quality_fashion.py                        # three sizes, 5 seeds, resumable
    KERAS_HOME=... python benchmarks/quality_fashion.py --form=patient --sizes=12k --methods=alone,correlation
    KERAS_HOME=... python benchmarks/quality_fashion.py --form=quick           # a few minutes
    python benchmarks/quality_fashion.py --table                               # only print what is there

Results of one form replace those of another in the same folder: name another with --output to keep both. (Those of the
patient form stand in a file of their own.)

Every method trains the same network from the same start for the same steps on the same pixels, flipped or not, in
another order every epoch. `compress` then prunes each student to 75 % zeros and quantizes it, once on the labels alone
(what TF-MOT does) and once with the teacher; accuracy is that of the int8 `.tflite` on the 10,000 test images.

keras.distillation learns from the teacher's stored answers to the very pixels it sees: `replay_difference` in the
results is how far that is from a live teacher. Which of our methods is the best is read from 5,000 training images that
no student sees, never from the test images.
"""

import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_kd
import tflite_tools
from benchmarks import common, common_fashion, common_methods, stored, tables
from benchmarks.stored import Results

METHODS = (
    "alone",
    "keras",
    "keras_kld",
    "soft",
    "soft_T1_half",
    "soft_T2_no_labels",
    "correlation",
    "correlation_soft",
    "standardized",
)
_STANDARD = {
    "examples": 20_000,
    "epochs": 24,
    "views": 2,  # as it is, and flipped
    "compress_examples": 20_000,
    "compress_epochs": 3,
}
FORMS: dict[str, dict[str, int]] = {
    "standard": _STANDARD,
    "long": {**_STANDARD, "examples": 55_000},
    # Four times the passes over the same images: labels are learned by heart, the teacher's answers are not.
    "patient": {**_STANDARD, "epochs": 96},
    "quick": {
        **_STANDARD,
        "examples": 10_000,
        "epochs": 16,
        "compress_examples": 10_000,
        "compress_epochs": 2,
    },
}
_FORM = flags.DEFINE_enum("form", "standard", list(FORMS), "How much to train.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images, in the place of the form's.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Passes over them, in the place of the form's.")
_PART = flags.DEFINE_enum("part", "all", ["all", "train", "compress"], "What to run.")
_SIZES = flags.DEFINE_list("sizes", ["12k", "2k", "60k"], "Students, in the order in which they are trained.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Which to run.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Students of each kind.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_seed", 0, "The first of them: several processes may share the work.")
_THREADS = flags.DEFINE_integer("threads", 0, "Of TensorFlow within an operation; 0 is all cores.")
_MINUTES = flags.DEFINE_float("minutes", 0, "Begin no run after so many minutes; 0 is without end.")
_TEACHER = flags.DEFINE_string("teacher", None, "A .keras file of 28x28x1 bytes to 10 logits.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Where the teacher's answers are kept between calls.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")
_TABLE = flags.DEFINE_bool("table", False, "Only print the table of what is there.")

BATCH_SIZE, TEMPERATURE, RECIPE = 128, 2.0, "prune75-int8"
# With one seed, on the held-out images, 1e-2 was better than 4e-3 with a teacher and without.
LEARNING_RATE, COMPRESSION_RATE = 1e-2, 4e-3


def results_name() -> str:
    """Of the JSON file: the patient form has one of its own, the other forms replace one another."""
    return "quality_patient" if _FORM.value == "patient" else "quality_fashion"


class Bench:
    """Data, teacher and results of one call."""

    def __init__(self, setting: dict[str, int], folder: pathlib.Path):
        self.setting = setting
        self.folder = common.cache_dir(_CACHE.value)
        x, y, self.x_test, self.y_test = common_fashion.images()
        chosen, held_out = common_fashion.training_images(self.setting["examples"])
        self.held_out = x[held_out], y[held_out]
        x, y = x[chosen], y[chosen]
        self.teacher = common_fashion.teacher(_TEACHER.value, self.folder)
        self.results = Results(
            results_name(),
            {
                "data": "Fashion-MNIST",
                "augmentation": "flips",
                "batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "compression_rate": COMPRESSION_RATE,
                "temperature": TEMPERATURE,
                "recipe": RECIPE,
                **self.setting,
            },
            folder,
        )
        name = f"fashion_{len(x)}x{self.setting['views']}_flips"
        self.views = common_fashion.Views(
            self.teacher,
            x,
            y,
            self.setting["views"],
            self.folder / name,
            augment=common_fashion.FLIPS,
            verbose=True,
        )
        self.results.put("environment", common.environment())
        self.results.get_or_run("teacher", self.about_teacher)
        self.results.get_or_run(
            "answers_difference", lambda: common_methods.answers_difference(self.teacher, self.views)
        )
        self.results.get_or_run(
            "replay_difference",
            lambda: common_methods.replay_difference(
                self.teacher, common_methods.STUDENTS["12k"], self.views, steps=30
            ),
        )

    def about_teacher(self) -> dict[str, Any]:
        """Its accuracy and size."""
        found = common_fashion.accuracy(self.teacher, self.x_test, self.y_test)
        return {
            "accuracy": found,
            "parameters": self.teacher.count_params(),
            "float_bytes": tflite_tools.convert(self.teacher).size_bytes,
        }

    def student_file(self, size: str, method: str, seed: int) -> pathlib.Path:
        """Where a trained student is kept for its compression."""
        trained = f"{self.setting['examples']}x{self.setting['views']}x{self.setting['epochs']}"
        return self.folder / f"quality_{trained}_{size}_{method}_{seed}.keras"

    def train(self, size: str, method: str, seed: int) -> None:
        """Trains one student, measures it, keeps it."""
        self.results.get_or_run(
            f"{size}/float_file",
            lambda: {"size_bytes": tflite_tools.convert(common_methods.STUDENTS[size]()).size_bytes},
        )
        begin = time.monotonic()
        keras.utils.set_random_seed(seed)
        student = common_methods.STUDENTS[size]()
        self.fit(method, student, seed)
        seconds = time.monotonic() - begin
        student.save(self.student_file(size, method, seed))
        found = common_fashion.accuracy(student, self.x_test, self.y_test)
        self.results.put(
            f"{size}/{method}/{seed}",
            {
                "accuracy": found,
                "held_out_accuracy": common_fashion.accuracy(student, *self.held_out),
                "parameters": student.count_params(),
                "seconds": seconds,
            },
        )
        print(f"{size} {method} seed {seed}: {100 * found:.2f} % ({seconds:.0f} s)", flush=True)

    def fit(self, method: str, student: keras.Model, seed: int) -> None:
        """Trains a student with this form's settings."""
        common_methods.train(
            method,
            student,
            self.views,
            epochs=self.setting["epochs"],
            batch_size=BATCH_SIZE,
            learning_rate=LEARNING_RATE,
            temperature=TEMPERATURE,
            seed=seed,
        )

    def compress(self, size: str, method: str, seed: int, taught: bool) -> None:
        """Prunes and quantizes one student, with or without its teacher, and measures the file."""
        begin = time.monotonic()
        student = keras.models.load_model(self.student_file(size, method, seed), compile=False)
        subset = np.random.default_rng(seed).permutation(len(self.views.x))[
            : self.setting["compress_examples"]
        ]
        loss, share = common_methods.compression_loss()
        teaching = {
            "teacher": self.views.cache,
            "distillation_losses": loss,
            "student_loss_weight": share,
        }
        compressed = keras_kd.compress(
            student,
            RECIPE,
            self.views.batches("cached" if taught else "plain", subset, batch_size=BATCH_SIZE, seed=seed),
            epochs=self.setting["compress_epochs"],
            loss=common_fashion.LOSS,
            optimizer=common_methods.adam(
                COMPRESSION_RATE, self.setting["compress_epochs"] * (len(subset) // BATCH_SIZE)
            ),
            seed=seed,
            verbose=0,
            **(teaching if taught else {}),
        )
        artifact = compressed.to_tflite(calibration=self.views.x[subset[:500]])
        outputs = np.asarray(tflite_tools.predict(artifact, self.x_test))
        floating = compressed.float_model.predict(self.x_test, batch_size=1000, verbose=0)
        latency = tflite_tools.benchmark(artifact).latency_us
        found: dict[str, Any] = {
            "accuracy": float(np.mean(outputs.argmax(-1) == self.y_test)),
            "pruned_float_accuracy": float(np.mean(floating.argmax(-1) == self.y_test)),
            "size_bytes": artifact.size_bytes,
            "gzip_bytes": artifact.gzip_bytes,
            "latency_us": None if latency is None else latency.median,
            "seconds": time.monotonic() - begin,
        }
        name = "with_teacher" if taught else "labels_alone"
        self.results.put(f"{size}/{method}/{seed}/{name}", found)
        print(f"{size} {method} seed {seed} {name}: {100 * found['accuracy']:.2f} %", flush=True)


def run(bench: Bench) -> None:
    """Whatever is not there yet, until the time is up."""
    clock = common.Clock(_MINUTES.value)
    for size in _SIZES.value:
        for seed in range(_FIRST.value, _FIRST.value + _SEEDS.value):
            for method in _METHODS.value:
                one_student(bench, clock, size, method, seed)


def one_student(bench: Bench, clock: common.Clock, size: str, method: str, seed: int) -> None:
    """Trains and compresses one student, as far as that is not done."""
    key = f"{size}/{method}/{seed}"
    kinds: tuple[str, ...] = ("labels_alone", "with_teacher") if _PART.value in ("all", "compress") else ()
    if method.startswith("keras"):
        kinds = kinds[:1]  # what keras.distillation trains goes to TF-MOT, which has no teacher
    missing = [kind for kind in kinds if f"{key}/{kind}" not in bench.results.entries]
    kept = bench.student_file(size, method, seed).is_file()
    if (key not in bench.results.entries or (missing and not kept)) and not clock.is_over():
        bench.train(size, method, seed)
        kept = True
    for kind in missing:
        if kept and not clock.is_over():
            bench.compress(size, method, seed, taught=kind == "with_teacher")


def main(argv: list[str]) -> None:
    """Runs, then prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    unknown = ({*_METHODS.value} - {*METHODS}) | ({*_SIZES.value} - {*common_methods.STUDENTS})
    if unknown:
        raise app.UsageError(f"--methods, --sizes: unknown {', '.join(sorted(unknown))}")
    if _THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    if not _TABLE.value:
        given = {"examples": _EXAMPLES.value, "epochs": _EPOCHS.value}
        setting = {**FORMS[_FORM.value], **{name: value for name, value in given.items() if value}}
        run(Bench(setting, folder))
    print(tables.quality(tables.read(results_name(), folder)))


if __name__ == "__main__":
    app.run(main)
