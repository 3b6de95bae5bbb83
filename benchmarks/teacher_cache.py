"""What a teacher cache costs and saves: ratios, each within one interleaved run.

    python benchmarks/teacher_cache.py                                   # steps, build, top_k
    python benchmarks/teacher_cache.py --parts=size                      # 10^4 to 10^6 examples, a process for each
    python benchmarks/teacher_cache.py --parts=accuracy --data=fashion_mnist --teacher=teacher.keras

steps      a cached epoch against plain `fit` on the same pipeline, and against keras.distillation with growing teachers
build      building against a bare compiled forward loop over the same batches
top_k      the error of keeping k logits, at several temperatures
size       bytes, build time, step time and resident memory by the number of examples
accuracy   students under cached views against students under the live teacher, several seeds
"""

import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_kd
from keras_kd.losses import LogitsDistillation
from keras_kd.teachers.augmentations import RandomFlip, RandomShift, Sequence
from keras_kd.teachers.cache_topk import top_k_error

PARTS = ("steps", "build", "top_k", "size", "accuracy")
_PARTS = flags.DEFINE_list("parts", ["steps", "build", "top_k"], f"Which to run: {', '.join(PARTS)}.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Interleaved repeats; medians are taken.", lower_bound=3)
_BATCHES = flags.DEFINE_integer(
    "batches", 24, "Batches of 128 per epoch of `steps` and `build`.", lower_bound=4
)
_TEACHERS = flags.DEFINE_list("teachers", ["5x", "15x", "45x"], "`steps`: sizes of the teacher.")
_COUNTS = flags.DEFINE_list("counts", ["10000", "100000", "1000000"], "Examples of `size`.")
_TEACHER = flags.DEFINE_string("teacher", None, "`accuracy`: a .keras file for 28x28x1 bytes.")
_EXAMPLES = flags.DEFINE_integer("examples", 10000, "`accuracy`: training images.")
_EPOCHS = flags.DEFINE_integer("epochs", 8, "`accuracy`: passes over them.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "`accuracy`: students of each kind.")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
_ONE = flags.DEFINE_integer("one", None, "Used by the script itself: `size` for this many examples.")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
AUGMENT = Sequence((RandomFlip(), RandomShift(2)))


def network(width: int, depth: int = 1) -> keras.Model:
    """A plain convolutional network on 28x28x1 bytes."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(x)
    for scale, stride in ((1, 1), (2, 2), (3, 2)):
        for number in range(depth):
            x = layers.Conv2D(width * scale, 3, stride if number == 0 else 1, padding="same", use_bias=False)(
                x
            )
            x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def student() -> keras.Model:
    """About 12 thousand parameters."""
    return network(14)


# About 5, 15 and 45 times the student's multiplications.
TEACHERS: dict[str, Callable[[], keras.Model]] = {
    "5x": lambda: network(34),
    "15x": lambda: network(28, depth=2),
    "45x": lambda: network(49, depth=2),
}


def macs(model: keras.Model) -> int:
    """Multiplications of the convolutions for one example."""
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        for layer in model.layers
        if isinstance(layer, layers.Conv2D)
    )


def pixels(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 28, 28, 1)).astype("uint8")
    return x, generator.integers(0, 10, count).astype("int32")


def plain_pipeline(x: np.ndarray, y: np.ndarray, batch_size: int = 128) -> tf.data.Dataset:
    """What one writes without a cache: shuffle, augment each example with a seed of its own, batch, prefetch."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    seeds = tf.data.Dataset.random().batch(2, drop_remainder=True)
    dataset = tf.data.Dataset.zip((dataset, seeds))
    dataset = dataset.map(
        lambda pair, seed: (AUGMENT(pair[0], tf.cast(seed % 2147483647, tf.int32)), pair[1]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.batch(batch_size).prefetch(2)


def interleaved(variants: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each, taken in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(_REPEATS.value + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def steps() -> list[dict[str, Any]]:
    x, y = pixels(128 * _BATCHES.value)
    variants: dict[str, Callable[[], Any]] = {}
    plain = student()
    plain.compile("adam", LOSS)
    data = plain_pipeline(x, y)
    variants["plain"] = lambda: plain.fit(data, verbose=0)
    folders = []
    for name in _TEACHERS.value:
        teacher = TEACHERS[name]()
        folders.append(tempfile.TemporaryDirectory())
        cache = keras_kd.TeacherCache.build(
            teacher, x, folders[-1].name, views=2, augment=AUGMENT, verbose=False
        )
        cached = keras_kd.Distiller(cache, student(), LogitsDistillation(), student_loss_weight=0.1)
        cached.compile("adam", LOSS)
        train = cache.dataset(x, y, batch_size=128)
        live = keras.distillation.Distiller(
            teacher,
            student(),
            keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
            student_loss_weight=0.1,
        )
        live.compile("adam", LOSS)
        variants[f"cached {name}"] = lambda cached=cached, train=train: cached.fit(train, verbose=0)  # type: ignore[misc]
        variants[f"live {name}"] = lambda live=live: live.fit(data, verbose=0)  # type: ignore[misc]
    seconds = interleaved(variants)
    size = macs(student())
    return [
        {
            "teacher": name,
            "teacher/student MACs": macs(TEACHERS[name]()) / size,
            "plain ms/step": 1e3 * seconds["plain"] / _BATCHES.value,
            "cached/plain": seconds[f"cached {name}"] / seconds["plain"],
            "live/plain": seconds[f"live {name}"] / seconds["plain"],
            "cached/live": seconds[f"cached {name}"] / seconds[f"live {name}"],
        }
        for name in _TEACHERS.value
    ]


def build() -> list[dict[str, Any]]:
    x, _ = pixels(256 * _BATCHES.value)
    rows = []
    for name in ("5x", "15x"):
        teacher = TEACHERS[name]()
        forward = tf.function(lambda batch, teacher=teacher: teacher(batch, training=False))

        def bare(forward: Any = forward) -> None:
            for start in range(0, len(x), 256):
                forward(tf.convert_to_tensor(x[start : start + 256])).numpy()

        def cached(teacher: Any = teacher, augment: Any = None) -> None:
            with tempfile.TemporaryDirectory() as folder:
                keras_kd.TeacherCache.build(teacher, x, folder, augment=augment, verbose=False)

        seconds = interleaved({"bare": bare, "build": cached})
        rows.append(
            {
                "teacher": name,
                "bare examples/s": len(x) / seconds["bare"],
                "build/bare throughput": seconds["bare"] / seconds["build"],
            }
        )
    return rows


def zipf_logits(count: int, classes: int) -> np.ndarray:
    """Synthetic teachers' logits: a few classes stand out, the rest falls off slowly, as in large label sets."""
    generator = np.random.default_rng(0)
    base = -1.5 * np.log1p(np.arange(classes)) + generator.normal(0, 1, (count, classes))
    return generator.permuted(base + 6.0, axis=1).astype(np.float32)


def top_k() -> list[dict[str, Any]]:
    logits = zipf_logits(2000, 1000)
    rows = []
    for k in (5, 10, 20, 50, 100):
        for row in top_k_error(logits, k):
            rows.append({"classes": 1000, "k": k, **row})
    return rows


def size() -> list[dict[str, Any]]:
    rows = []
    for count in _COUNTS.value:
        command = [sys.executable, __file__, f"--one={count}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        rows.append(json.loads(result.stdout.strip().splitlines()[-1]))
    return rows


def one_size(count: int) -> dict[str, Any]:
    """A synthetic teacher of 1000 classes, the 20 largest kept."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    weights = generator.normal(size=(32, 1000)).astype(np.float32) / 500
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cache = keras_kd.TeacherCache.build(
            lambda batch: batch.astype(np.float32) @ weights, x, folder, top_k=20, verbose=False
        )
        build_s = time.perf_counter() - begin
        stored = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir())
        model = keras.Sequential(
            [keras.Input((32,)), layers.Rescaling(1 / 255), layers.Dense(64, "relu"), layers.Dense(1000)]
        )
        distiller = keras_kd.Distiller(cache, model, LogitsDistillation(), student_loss_weight=0)
        distiller.compile("adam")
        dataset = cache.dataset(x, batch_size=128)
        distiller.fit(dataset.take(20), verbose=0)
        begin = time.perf_counter()
        distiller.fit(dataset.take(70), verbose=0)
        steps_s = time.perf_counter() - begin
        # The data themselves are the user's, and grow with their number.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - x.nbytes
        return {
            "examples": count,
            "bytes/payload": stored / (count * (20 * 4 + 4)),
            "build us/example": 1e6 * build_s / count,
            "step ms": 1e3 * steps_s / 70,
            "peak resident MB": peak / 1e6,
        }


def accuracy() -> list[dict[str, Any]]:
    if not _TEACHER.value:
        raise ValueError("--parts=accuracy needs --teacher=<a .keras file for Fashion-MNIST>")
    teacher = keras.models.load_model(_TEACHER.value, compile=False)
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    x, y, x_test = x[: _EXAMPLES.value, ..., None], y[: _EXAMPLES.value].astype("int32"), x_test[..., None]

    def train(teacher: Any, data: tf.data.Dataset, seed: int) -> float:
        keras.utils.set_random_seed(seed)
        model = student()
        distiller = keras_kd.Distiller(
            teacher, model, LogitsDistillation(temperature=2.0), student_loss_weight=0.1, save_teacher="none"
        )
        total = _EPOCHS.value * -(-len(x) // 128)
        rate = keras.optimizers.schedules.CosineDecay(4e-3, total)
        distiller.compile(keras.optimizers.Adam(rate), LOSS)
        distiller.fit(data, epochs=_EPOCHS.value, verbose=0)
        model.compile(metrics=["sparse_categorical_accuracy"])
        return float(
            100
            * model.evaluate(x_test, y_test, batch_size=500, verbose=0, return_dict=True)[
                "sparse_categorical_accuracy"
            ]
        )

    kinds: dict[str, tuple[int, Any]] = {
        "K = 1, no augmentation": (1, None),
        "K = 1": (1, AUGMENT),
        "K = 4": (4, AUGMENT),
        "K = 8": (8, AUGMENT),
    }
    rows = []
    for name, (views, augment) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            cache = keras_kd.TeacherCache.build(
                teacher, x, folder, views=views, augment=augment, verbose=False
            )
            build_s = time.perf_counter() - begin
            begin = time.perf_counter()
            found = [
                train(cache, cache.dataset(x, y, batch_size=128, seed=seed), seed)
                for seed in range(_SEEDS.value)
            ]
            rows.append(_accuracy_row(f"cached, {name}", found, build_s, time.perf_counter() - begin))
    begin = time.perf_counter()
    found = [train(teacher, plain_pipeline(x, y), seed) for seed in range(_SEEDS.value)]
    rows.append(_accuracy_row("live", found, None, time.perf_counter() - begin))
    return rows


def _accuracy_row(name: str, found: list[float], build_s: float | None, train_s: float) -> dict[str, Any]:
    return {
        "teacher": name,
        "accuracy %": statistics.mean(found),
        "lowest": min(found),
        "highest": max(found),
        "build s": build_s,
        "train s (all seeds)": train_s,
    }


def table(title: str, rows: list[dict[str, Any]]) -> str:
    def text(value: Any) -> str:
        if value is None:
            return "-"
        return (
            f"{value:.4g}"
            if isinstance(value, float) and abs(value) < 1000
            else f"{value:,.0f}"
            if isinstance(value, float)
            else str(value)
        )

    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells]
    return "\n".join([title, *lines, ""])


def main(_: list[str]) -> None:
    """Run the parts that were asked for."""
    if _ONE.value:
        print(json.dumps(one_size(_ONE.value)))
        return
    unknown = [part for part in _PARTS.value if part not in PARTS]
    if unknown:
        raise app.UsageError(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}.")
    run = {"steps": steps, "build": build, "top_k": top_k, "size": size, "accuracy": accuracy}
    found: dict[str, Any] = {}
    for part in _PARTS.value:
        found[part] = run[part]()
        if not _JSON.value:
            print(table(part, found[part]), flush=True)
    if _JSON.value:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
