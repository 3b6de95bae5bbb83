"""What a teacher cache costs and saves: ratios, each within one interleaved run, stored as they are found.

    python benchmarks/teacher_cache.py                          # every part; what is stored is not run again
    python benchmarks/teacher_cache.py --parts=steps --again    # one part, measured anew
    python benchmarks/teacher_cache_tables.py                   # the tables of docs/teacher_cache.md

steps      a cached epoch against plain `fit` with the same augmentation, and against keras.distillation under growing
           teachers; for students of two sizes
build      building against a bare compiled forward loop over the same batches
size       bytes, build time, step time and resident memory by the number of examples, a process for each, in turn
"""

import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_kd
from benchmarks.common import environment
from benchmarks.stored import Results
from keras_kd.losses import LogitsDistillation
from keras_kd.teachers.augmentations import RandomFlip, RandomShift, Sequence

PARTS = ("steps", "build", "size")
_PARTS = flags.DEFINE_list("parts", list(PARTS), f"Which to run: {', '.join(PARTS)}.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved rounds; the fastest counts.", lower_bound=3)
_PAIRS = flags.DEFINE_list("pairs", ["small", "medium"], "`steps` and `build`: sizes of the student.")
_COUNTS = flags.DEFINE_list("counts", ["10000", "100000", "1000000"], "`size`: numbers of examples.")
_AGAIN = flags.DEFINE_bool("again", False, "Measure what is stored, too.")
_ONE = flags.DEFINE_string("one", None, "Used by the script itself: `size` for EXAMPLES,CLASSES.")

BATCH = 128
TOP_K = 20
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
AUGMENT = Sequence((RandomFlip(), RandomShift(2)))


@dataclass(frozen=True)
class Pair:
    """A student, and teachers of about 5, 15 and 45 times its multiplications.

    Args:
      shape: of an image of bytes.
      strides: of the three stages.
      student: width of the first stage.
      teachers: {name: (width, layers in a stage)}.
      batches: of 128 images in an epoch of `steps`.
    """

    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    student: int
    teachers: dict[str, tuple[int, int]]
    batches: int

    def network(self, width: int, depth: int = 1) -> keras.Model:
        """A plain convolutional network of three stages, bytes to 10 logits."""
        x = inputs = keras.Input(self.shape)
        x = layers.Rescaling(1 / 255)(x)
        for scale, stride in zip((1, 2, 3), self.strides):
            for number in range(depth):
                strides = stride if number == 0 else 1
                x = layers.Conv2D(width * scale, 3, strides, padding="same", use_bias=False)(x)
                x = layers.ReLU()(layers.BatchNormalization()(x))
        return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    def new_student(self) -> keras.Model:
        """Fresh weights."""
        return self.network(self.student)

    def pixels(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Random bytes and labels: nothing here depends on their values."""
        generator = np.random.default_rng(0)
        x = generator.integers(0, 256, (count, *self.shape)).astype("uint8")
        return x, generator.integers(0, 10, count).astype("int32")


PAIRS = {
    "small": Pair((28, 28, 1), (2, 1, 2), 14, {"5x": (33, 1), "15x": (31, 2), "45x": (54, 2)}, 96),
    "medium": Pair((32, 32, 3), (1, 2, 2), 24, {"5x": (28, 2), "15x": (49, 2), "45x": (86, 2)}, 24),
}


def macs(model: keras.Model) -> int:
    """Multiplications of the convolutions for one example."""
    return sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        for layer in model.layers
        if isinstance(layer, layers.Conv2D)
    )


def plain_pipeline(x: np.ndarray, y: np.ndarray, batch_size: int = BATCH) -> tf.data.Dataset:
    """What one writes without a cache: shuffle, augment each example with a seed of its own, batch, prefetch."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x))
    seeds = tf.data.Dataset.random().batch(2, drop_remainder=True)
    dataset = tf.data.Dataset.zip((dataset, seeds))
    dataset = dataset.map(
        lambda pair, seed: (AUGMENT(pair[0], tf.cast(seed % 2147483647, tf.int32)), pair[1]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.batch(batch_size).prefetch(2)


Seconds = dict[str, list[float]]


def interleaved(variants: dict[str, Callable[[], Any]]) -> Seconds:
    """Seconds of each, taken in turn; the first round warms up."""
    seconds: Seconds = {name: [] for name in variants}
    for repeat in range(_REPEATS.value + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(seconds: Seconds, name: str, by: str) -> float:
    """One time by the other, each of its fastest round: on a shared machine noise only ever adds."""
    return min(seconds[name]) / min(seconds[by])


def steps(pair: Pair) -> dict[str, Any]:
    """Epochs of the same images: plain, from the cache, and under each live teacher."""
    x, y = pair.pixels(BATCH * pair.batches)
    teachers = {name: pair.network(*size) for name, size in pair.teachers.items()}
    plain, same = pair.new_student(), pair.new_student()
    for student in (plain, same):
        student.compile("adam", LOSS)
    data = plain_pipeline(x, y)
    with tempfile.TemporaryDirectory() as folder:
        cache = keras_kd.TeacherCache.build(
            teachers["15x"], x, folder, views=2, augment=AUGMENT, verbose=False
        )
        cached = keras_kd.Distiller(cache, pair.new_student(), LogitsDistillation(), student_loss_weight=0.1)
        cached.compile("adam", LOSS)
        train = cache.dataset(x, y, batch_size=BATCH)
        stripped = train.map(lambda packed, labels: (packed["keras_kd/inputs"], labels))
        variants: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain.fit(data, verbose=0),
            "plain, cache's pipeline": lambda: same.fit(stripped, verbose=0),
            "cached": lambda: cached.fit(train, verbose=0),
        }
        for name, teacher in teachers.items():
            live = keras.distillation.Distiller(
                teacher,
                pair.new_student(),
                keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
                student_loss_weight=0.1,
            )
            live.compile("adam", LOSS)
            variants[name] = lambda live=live: live.fit(data, verbose=0)  # type: ignore[misc]
        seconds = interleaved(variants)
    return {
        "student_parameters": plain.count_params(),
        "student_macs": macs(plain),
        "plain_ms_per_step": 1e3 * min(seconds["plain"]) / pair.batches,
        "batches": pair.batches,
        "cached_by_plain": ratio(seconds, "cached", "plain"),
        "cached_by_plain_on_its_pipeline": ratio(seconds, "cached", "plain, cache's pipeline"),
        "teachers": {
            name: {
                "parameters_by_student": teacher.count_params() / plain.count_params(),
                "macs_by_student": macs(teacher) / macs(plain),
                "live_by_plain": ratio(seconds, name, "plain"),
                "cached_by_live": ratio(seconds, "cached", name),
            }
            for name, teacher in teachers.items()
        },
        "seconds": seconds,
    }


def build(pair: Pair, augment: Any) -> dict[str, Any]:
    """Examples per second of a build and of a bare loop over the same batches."""
    # Enough batches that making the compiled function, which happens once for a build of any size, does not count.
    x, y = pair.pixels(256 * (96 if pair.shape[-1] == 1 else 24))
    teacher = pair.network(*pair.teachers["15x"])
    forward = tf.function(lambda batch: teacher(batch, training=False))

    def bare() -> None:
        for start in range(0, len(x), 256):
            forward(tf.convert_to_tensor(x[start : start + 256])).numpy()

    def bare_augmented() -> None:
        for batch, _ in plain_pipeline(x, y, 256):
            forward(batch).numpy()

    def cached() -> None:
        with tempfile.TemporaryDirectory() as folder:
            keras_kd.TeacherCache.build(teacher, x, folder, augment=augment, verbose=False)

    seconds = interleaved({"bare": bare_augmented if augment else bare, "build": cached})
    rate = len(x) / min(seconds["build"])
    return {
        "examples": len(x),
        "teacher_macs": macs(teacher),
        "examples_per_s": rate,
        "macs_per_s": rate * macs(teacher),
        "build_by_bare_throughput": ratio(seconds, "bare", "build"),
        "seconds": seconds,
    }


def size(count: int, classes: int) -> dict[str, Any]:
    """One count of examples, in a process of its own."""
    command = [sys.executable, __file__, f"--one={count},{classes}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    return dict(json.loads(result.stdout.strip().splitlines()[-1]))


@functools.cache
def sizes(wanted: tuple[tuple[int, int], ...]) -> dict[tuple[int, int], dict[str, Any]]:
    """Each of (examples, classes), in turn; the smallest of the times and the largest of the memory of all rounds."""
    rounds = [{key: size(*key) for key in wanted} for _ in range(_REPEATS.value)]
    found = {}
    for key in wanted:
        rows = [taken[key] for taken in rounds]
        found[key] = {
            name: max(row[name] for row in rows)
            if name == "peak_resident_mb"
            else min(row[name] for row in rows)
            for name in rows[0]
        }
    return found


def fastest_fit(distiller: keras_kd.Distiller, dataset: tf.data.Dataset) -> float:
    """Seconds of one epoch."""
    fits = []
    for _ in range(8):  # the first one traces
        begin = time.perf_counter()
        distiller.fit(dataset, verbose=0)
        fits.append(time.perf_counter() - begin)
    return min(fits)


def one_size(count: int, classes: int) -> dict[str, Any]:
    """A synthetic teacher, which costs one small matrix product, and the 20 largest of its logits."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 32), dtype=np.uint8)
    weights = generator.normal(size=(32, classes)).astype(np.float32) / 500
    number_bytes = 2 if classes <= 1 << 16 else 4

    def built(examples: np.ndarray, path: str) -> keras_kd.TeacherCache:
        return keras_kd.TeacherCache.build(
            lambda batch: batch.astype(np.float32) @ weights, examples, path, top_k=TOP_K, verbose=False
        )

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        built(x[:512], other)  # what a process does once only does not count
        begin = time.perf_counter()
        cache = built(x, folder)
        build_s = time.perf_counter() - begin
        stored = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir())
        model = keras.Sequential(
            [
                keras.Input((32,)),
                layers.Rescaling(1 / 255),
                layers.Dense(64, "relu"),
                layers.Dense(classes),
            ]
        )
        distiller = keras_kd.Distiller(cache, model, LogitsDistillation(), student_loss_weight=0)
        distiller.compile("adam")
        dataset = cache.dataset(x, batch_size=BATCH)
        short_s, long_s = (fastest_fit(distiller, dataset.take(batches)) for batches in (20, 70))
        step_s = (long_s - short_s) / 50
        # The data themselves are the user's, and grow with their number.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - x.nbytes
    return {
        "examples": count,
        "classes": classes,
        "bytes_by_payload": stored / (count * (TOP_K * (2 + number_bytes) + 4)),
        "build_us_per_example": 1e6 * build_s / count,
        "step_ms": 1e3 * step_s,
        "epoch_start_ms": 1e3 * (short_s - 20 * step_s),
        "peak_resident_mb": peak / 1e6,
    }


def tasks() -> dict[str, Callable[[], Any]]:
    """{key: what to measure} of the parts that were asked for."""
    found: dict[str, Callable[[], Any]] = {}
    for name in _PAIRS.value:
        pair = PAIRS[name]
        if "steps" in _PARTS.value:
            found[f"steps/{name}"] = lambda pair=pair: steps(pair)  # type: ignore[misc]
        if "build" in _PARTS.value:
            found[f"build/{name}"] = lambda pair=pair: build(pair, None)  # type: ignore[misc]
            found[f"build/{name}, augmented"] = lambda pair=pair: build(pair, AUGMENT)  # type: ignore[misc]
    if "size" in _PARTS.value:
        wanted = tuple((int(count), 1000) for count in _COUNTS.value)
        for key in wanted:
            found[f"size/{key[0]}/{key[1]}"] = lambda key=key: sizes(wanted)[key]  # type: ignore[misc]
        # For ImageNet-21k: what picking 20 of so many costs.
        found["size/10000/21841"] = lambda: sizes(((10_000, 21_841),))[10_000, 21_841]
    return found


def main(_: list[str]) -> None:
    """Measure what is not stored yet, and print every entry."""
    if _ONE.value:
        print(json.dumps(one_size(*map(int, _ONE.value.split(",")))))
        return
    unknown = [part for part in _PARTS.value if part not in PARTS]
    unknown += [name for name in _PAIRS.value if name not in PAIRS]
    if unknown:
        raise app.UsageError(f"There is no {unknown[0]!r}; there are {', '.join((*PARTS, *PAIRS))}.")
    settings = {"batch_size": BATCH, "top_k": TOP_K, **environment()}
    results = Results("teacher_cache", settings)
    for key, measure in tasks().items():
        if _AGAIN.value:
            results.put(key, measure())
        print(key, json.dumps(results.get_or_run(key, measure)), flush=True)


if __name__ == "__main__":
    app.run(main)
