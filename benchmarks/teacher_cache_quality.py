"""What a teacher cache does to accuracy, and what keeping only the largest logits leaves out.

    python benchmarks/teacher_cache_quality.py                                             # goes on where it was
    python benchmarks/teacher_cache_quality.py --parts=accuracy --protocol=few --seeds=0   # a part of it
    python benchmarks/teacher_cache_tables.py                           # the tables of docs/teacher_cache.md

accuracy   Fashion-MNIST: the same student from caches with one view (the images as they are), four and eight views,
           and under the live teacher, which sees a new view of each image in every epoch
top_k      the error of keeping k logits at several temperatures: of the same teacher on the test images, and of
           synthetic rows of 1000 classes

Two protocols, both short so that they fit into minutes, with a student of about 11 thousand parameters: "few" is 1,000
images and 200 epochs, "many" is 10,000 images and 16 epochs.
"""

import json
import pathlib
import sys
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_kd
from benchmarks import common, common_fashion
from benchmarks.stored import Results
from keras_kd.losses import LogitsDistillation
from keras_kd.teachers.cache_topk import top_k_error

PARTS = ("accuracy", "top_k")
_PARTS = flags.DEFINE_list("parts", list(PARTS), f"Which to run: {', '.join(PARTS)}.")
_TEACHER = flags.DEFINE_string(
    "teacher", None, "A .keras file; default: the shared one, or one trained here."
)
_FOLDER = flags.DEFINE_string("cache_dir", None, "Where teacher and caches are kept between runs.")
_PROTOCOLS = flags.DEFINE_list("protocol", ["few", "many"], "`accuracy`: few, many or both.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "`accuracy`: of the students.")
_KINDS = flags.DEFINE_list("kinds", [], "`accuracy`: cached, live, or both if not given.")
_MINUTES = flags.DEFINE_float("minutes", 0, "`accuracy`: begin no further run after so long; 0: run all.")

COMMON = {"widths": [12, 24, 36], "temperature": 2.0, "student_loss_weight": 0.1, "learning_rate": 4e-3}
# In the first many passes over few images are enough to learn them by heart, in the second they are not.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "few": {"examples": 1_000, "epochs": 200, "batch_size": 64, **COMMON},
    "many": {"examples": 10_000, "epochs": 16, "batch_size": 128, **COMMON},
}
# {kind: (views, augmentation)}; None is the live teacher.
KINDS: dict[str, tuple[int, Any] | None] = {
    "K = 1, no augmentation": (1, None),
    "K = 1": (1, common_fashion.AUGMENT),
    "K = 4": (4, common_fashion.AUGMENT),
    "K = 8": (8, common_fashion.AUGMENT),
    "live": None,
}


def student(widths: list[int]) -> keras.Model:
    """About 11 thousand parameters."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(x)
    for width, stride in zip(widths, (2, 1, 2)):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def fresh_views(x: np.ndarray, y: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Shuffled batches, every image in a new view each time it is drawn."""
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    seeds = tf.data.Dataset.random(seed=seed).batch(2, drop_remainder=True)
    dataset = tf.data.Dataset.zip((dataset, seeds)).map(
        lambda pair, two: (common_fashion.AUGMENT(pair[0], tf.cast(two % 2147483647, tf.int32)), pair[1]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.batch(batch_size).prefetch(2)


def trained(teacher: Any, data: tf.data.Dataset, settings: dict[str, Any], seed: int) -> keras.Model:
    """A student after its training."""
    keras.utils.set_random_seed(seed)
    model = student(settings["widths"])
    distiller = keras_kd.Distiller(
        teacher,
        model,
        LogitsDistillation(temperature=settings["temperature"]),
        student_loss_weight=settings["student_loss_weight"],
        save_teacher="none",
    )
    steps = settings["epochs"] * -(-settings["examples"] // settings["batch_size"])
    rate = keras.optimizers.schedules.CosineDecay(settings["learning_rate"], steps)
    distiller.compile(keras.optimizers.Adam(rate), common_fashion.LOSS)
    distiller.fit(data, epochs=settings["epochs"], verbose=0)
    return model


def accuracy(kind: str, settings: dict[str, Any], seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """One student: test accuracy on 10,000 images, and training accuracy, which shows who learned by heart."""
    x, y, x_test, y_test = common_fashion.images()
    count, batch_size = settings["examples"], settings["batch_size"]
    x, y = x[:count], y[:count]
    teacher = common_fashion.teacher(_TEACHER.value, folder)
    how = KINDS[kind]
    if how is None:
        model = trained(teacher, fresh_views(x, y, batch_size, seed), settings, seed)
    else:
        views, augment = how
        name = f"fashion_{count}_{views}{'' if augment else '_plain'}"
        cache = keras_kd.TeacherCache.build(teacher, x, folder / name, views=views, augment=augment)
        model = trained(cache, cache.dataset(x, y, batch_size=batch_size, seed=seed), settings, seed)
    return {
        "accuracy": common_fashion.accuracy(model, x_test, y_test),
        "train_accuracy": common_fashion.accuracy(model, x, y),
        "parameters": model.count_params(),
    }


def zipf_logits(count: int, classes: int) -> np.ndarray:
    """A few classes stand out, the rest falls off slowly, as in large label sets."""
    generator = np.random.default_rng(0)
    base = -1.5 * np.log1p(np.arange(classes)) + generator.normal(0, 1, (count, classes))
    return generator.permuted(base + 6.0, axis=1).astype(np.float32)


def top_k(folder: pathlib.Path) -> dict[str, Any]:
    """{who: {k: a row for each temperature}}."""
    _, _, x_test, y_test = common_fashion.images()
    logits = common_fashion.teacher(_TEACHER.value, folder).predict(x_test, batch_size=500, verbose=0)
    synthetic = zipf_logits(2000, 1000)
    return {
        "trained": {
            "examples": len(logits),
            "classes": logits.shape[1],
            "teacher_accuracy": float(np.mean(logits.argmax(-1) == y_test)),
            "errors": {str(k): top_k_error(logits, k) for k in (1, 2, 3, 5)},
        },
        "synthetic": {
            "examples": len(synthetic),
            "classes": 1000,
            "errors": {str(k): top_k_error(synthetic, k) for k in (5, 10, 20, 50, 100)},
        },
    }


def main(_: list[str]) -> None:
    """Run what is not stored yet, and print it."""
    unknown = [part for part in _PARTS.value if part not in PARTS]
    unknown += [name for name in _PROTOCOLS.value if name not in PROTOCOLS]
    if unknown:
        raise app.UsageError(f"There is no {unknown[0]!r}; there are {', '.join((*PARTS, *PROTOCOLS))}.")
    folder, clock = common.cache_dir(_FOLDER.value), common.Clock(_MINUTES.value)
    if "top_k" in _PARTS.value:
        results = Results("teacher_cache_top_k")
        print(json.dumps(results.get_or_run("errors", lambda: top_k(folder)), indent=1))
    if "accuracy" in _PARTS.value:
        for protocol in _PROTOCOLS.value:
            for seed in map(int, _SEEDS.value):
                accuracies(protocol, seed, folder, clock)


def accuracies(protocol: str, seed: int, folder: pathlib.Path, clock: common.Clock) -> None:
    """The students of one seed that are not stored yet."""
    settings = PROTOCOLS[protocol]
    results = Results(f"teacher_cache_accuracy_{protocol}", settings)
    for kind, how in KINDS.items():
        key = f"{kind}/{seed}"
        if _KINDS.value and ("live" if how is None else "cached") not in _KINDS.value:
            continue
        if clock.is_over() and key not in results.entries:
            print(f"{protocol}, {kind}, seed {seed}: no time; the same command goes on.", flush=True)
            continue
        found = results.get_or_run(key, lambda kind=kind: accuracy(kind, settings, seed, folder))  # type: ignore[misc]
        print(f"{protocol}, {kind}, seed {seed}: {found['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    app.run(main)
