"""Does the teacher help while a student is compressed? The same recipe and steps, with it and without it.

    KERAS_HOME=... python benchmarks/compress_with_teacher.py                  # 5 seeds, resumable
    KERAS_HOME=... python benchmarks/compress_with_teacher.py --seeds=1 --output=/tmp/other
    python benchmarks/compress_with_teacher.py --table                         # only print what is there

Fashion-MNIST (`keras.datasets.fashion_mnist`; offline where KERAS_HOME holds it). For every seed a student of
about 12 thousand parameters is trained, on the labels alone or by its teacher, then compressed from those weights on
the same pixels in the same order: on the labels alone; with soft targets of the teacher at the defaults of `compress`;
and with the settings that held-out training images chose. Accuracy is that of the int8 `.tflite` file on the 10,000
test images. The teacher is `--teacher`, or the one in KERAS_KD_SHARED_DATA, or it is trained first.
"""

import functools
import itertools
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
from absl import app, flags

import keras_kd
import tflite_tools
from benchmarks import common, common_fashion, common_methods, compression_tables, stored
from keras_kd.losses import CorrelationDistillation

_RECIPE = flags.DEFINE_string("recipe", "prune75-int8", "Name of the recipe.")
_STARTS = flags.DEFINE_list("starts", ["labels", "teacher"], "What trained the students: labels, teacher.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many students.", lower_bound=1)
_FIRST = flags.DEFINE_integer(
    "first_seed", 0, "The first of the seeds: several processes may share the work."
)
_EXAMPLES = flags.DEFINE_integer("examples", 20_000, "Training images.")
_VIEWS = flags.DEFINE_integer("views", 4, "Flipped and shifted views of each of them.")
_STUDENT_EPOCHS = flags.DEFINE_integer("student_epochs", 20, "Epochs that train a student.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of every phase of the compression.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Examples per step.")
_RATE = flags.DEFINE_float("learning_rate", 4e-3, "Of every phase; it falls to 0 along a cosine.")
_TEACHER = flags.DEFINE_string("teacher", None, "A .keras file of 28x28x1 bytes to 10 logits.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Where students and the teacher's answers are kept.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")
_TABLE = flags.DEFINE_bool("table", False, "Only print the table of what is there.")

# How each compression is taught; None is on the labels alone.
WAYS: dict[str, dict[str, Any] | None] = {
    "labels": None,
    "defaults": {},
    "chosen": {"distillation_losses": CorrelationDistillation(2.0, 2.0), "student_loss_weight": 0.5},
}


class Bench:
    """Data, teacher and results of one call."""

    def __init__(self, results: stored.Results):
        self.results = results
        folder = common.cache_dir(_CACHE.value)
        x, y, self.x_test, self.y_test = common_fashion.images()
        chosen = np.random.default_rng(0).permutation(len(x))[: _EXAMPLES.value]
        teacher = common_fashion.teacher(_TEACHER.value, folder)
        name = f"compress_{_EXAMPLES.value}x{_VIEWS.value}"
        self.views = common_fashion.Views(teacher, x[chosen], y[chosen], _VIEWS.value, folder / name)
        self._students = folder / name
        self.results.put("environment", common.environment())
        self.results.get_or_run(
            "teacher", lambda: {"accuracy": common_fashion.accuracy(teacher, self.x_test, self.y_test)}
        )

    def student(self, start: str, seed: int) -> keras.Model:
        """A trained student; kept, so that an interrupted run goes on with the same one."""
        path = self._students / f"{start}_{seed}_{_STUDENT_EPOCHS.value}x{_BATCH_SIZE.value}.keras"
        if path.is_file():
            return keras.models.load_model(path, compile=False)
        keras.utils.set_random_seed(seed)
        model = common_methods.STUDENTS["12k"]()
        common_methods.train(
            "alone" if start == "labels" else "soft_T2_no_labels",
            model,
            self.views,
            epochs=_STUDENT_EPOCHS.value,
            batch_size=_BATCH_SIZE.value,
            learning_rate=4e-3,
            temperature=2.0,
            seed=seed,
        )
        model.save(path)
        return model

    def measure_student(self, start: str, seed: int) -> dict[str, Any]:
        """The start of every compression of this seed."""
        model = self.student(start, seed)
        found = common_fashion.accuracy(model, self.x_test, self.y_test)
        return {"accuracy": found, "parameters": model.count_params()}

    def compress(self, start: str, seed: int, way: str) -> dict[str, Any]:
        """Compresses, converts, and asks the file."""
        begin = time.monotonic()
        teaching = WAYS[way]
        data = self.views.batches(
            "plain" if teaching is None else "cached", batch_size=_BATCH_SIZE.value, seed=seed
        )
        rate = keras.optimizers.schedules.CosineDecay(_RATE.value, _EPOCHS.value * len(data))
        compressed = keras_kd.compress(
            self.student(start, seed),
            _RECIPE.value,
            data,
            epochs=_EPOCHS.value,
            loss=common_fashion.LOSS,
            optimizer=keras.optimizers.Adam(rate),
            metrics=["accuracy"],
            seed=seed,
            verbose=0,
            **({} if teaching is None else {"teacher": self.views.cache, **teaching}),
        )
        artifact = compressed.to_tflite()
        file = np.asarray(tflite_tools.predict(artifact, self.x_test)).argmax(-1)
        model = compressed.model.predict(self.x_test, batch_size=1000, verbose=0).argmax(-1)
        return {
            "accuracy": float(np.mean(file == self.y_test)),
            "pruned_float_accuracy": common_fashion.accuracy(
                compressed.float_model, self.x_test, self.y_test
            ),
            "qat_accuracy": float(np.mean(model == self.y_test)),
            "agreement": float(np.mean(file == model)),
            "size_bytes": artifact.size_bytes,
            "gzip_bytes": artifact.gzip_bytes,
            "seconds": time.monotonic() - begin,
        }


def settings() -> dict[str, Any]:
    """What the figures depend on."""
    names = ("recipe", "examples", "views", "student_epochs", "epochs", "batch_size", "learning_rate")
    return {"data": "Fashion-MNIST", **{name: flags.FLAGS[name].value for name in names}}


def main(argv: list[str]) -> None:
    """Runs what is not there yet, then prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if not {*_STARTS.value} <= {"labels", "teacher"}:
        raise app.UsageError(f"--starts: unknown {', '.join(_STARTS.value)}")
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    results = stored.Results("compress_with_teacher", settings(), folder)
    if not _TABLE.value:
        bench = Bench(results)
        for start, seed in itertools.product(_STARTS.value, range(_FIRST.value, _FIRST.value + _SEEDS.value)):
            say = f"{start}, seed {seed}"
            found = results.get_or_run(
                f"{start}/student/{seed}", functools.partial(bench.measure_student, start, seed)
            )
            print(f"{say}, student: {100 * found['accuracy']:.2f} %", flush=True)
            for way in WAYS:
                found = results.get_or_run(
                    f"{start}/{way}/{seed}", functools.partial(bench.compress, start, seed, way)
                )
                print(f"{say}, {way}: {100 * found['accuracy']:.2f} %", flush=True)
    print(compression_tables.with_teacher(results.entries))


if __name__ == "__main__":
    app.run(main)
