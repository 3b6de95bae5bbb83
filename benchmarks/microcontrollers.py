"""Small students for small devices: ResNet8, an accelerometer, vowels as time series, and few labels.

    KERAS_KD_SHARED_DATA=... python benchmarks/microcontrollers.py                       # all parts, resumable
    KERAS_KD_SHARED_DATA=... python benchmarks/microcontrollers.py --parts=har,vowels    # a minute a seed

resnet8     MLPerf Tiny's ResNet8 on CIFAR-10-JPEG (the CIFAR-10 images as JPEGs): alone, distilled, int8
har         st_har, walking/standing/running from 26 samples of an accelerometer, split by file, never by window
vowels      JapaneseVowels, nine speakers from 25 steps of 12 coefficients
few_labels  Fashion-MNIST with 1,000 labels: on those alone, and with a teacher on the unlabelled rest

The data of the first three are read from the folder that KERAS_KD_SHARED_DATA names; a part whose data are not there is
skipped, with the reason.
"""

import io
import os
import pathlib
import sys
import tarfile
from collections.abc import Callable
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
from benchmarks.common_fashion import LOSS, accuracy
from keras_kd.losses import LogitsDistillation

PARTS = ("har", "vowels", "few_labels", "resnet8")
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to run.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Students of each kind.", lower_bound=1)
_RESNET8_SEEDS = flags.DEFINE_integer("resnet8_seeds", 1, "Students of `resnet8`, minutes each.")
_RESNET8_EXAMPLES = flags.DEFINE_integer("resnet8_examples", 10_000, "Its training images.")
_RESNET8_EPOCHS = flags.DEFINE_integer("resnet8_epochs", 8, "Passes over them.")
_MINUTES = flags.DEFINE_float("minutes", 0, "Begin no run after so many minutes; 0 is without end.")
_TEACHER = flags.DEFINE_string("teacher", None, "`few_labels`: a .keras file of 28x28x1 bytes to 10 logits.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Where a teacher's answers are kept between calls.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")

SHARED = pathlib.Path(os.environ.get("KERAS_KD_SHARED_DATA", "/nonexistent"))
SERIES_EPOCHS, SERIES_BATCH = 60, 32
FEW_LABELS, FEW_EXAMPLES, FEW_VIEWS, FEW_STEPS = 1000, 55_000, 8, 1716
RESNET8_METHOD = "correlation"
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def har() -> Arrays:
    """Windows [.., 26, 1, 3] of g, half overlapping in training; every fourth file of a class is for the test."""
    parts: dict[bool, list[tuple[np.ndarray, int]]] = {False: [], True: []}
    for label, name in enumerate(("stationary", "walking", "running")):
        files = sorted((SHARED / "st_har" / "dataset" / name).glob("*.csv"))
        for number, path in enumerate(files):
            is_test = number % 4 == 3
            rows = np.genfromtxt(path, delimiter=",", dtype=np.float32, invalid_raise=False)
            rows = rows[~np.isnan(rows).any(1)][:, :3] / 4000.0
            step = 26 if is_test else 13
            windows = [rows[start : start + 26] for start in range(0, len(rows) - 25, step)]
            parts[is_test] += [(window, label) for window in windows]
    found = []
    for is_test in (False, True):
        found.append(np.stack([window for window, _ in parts[is_test]])[:, :, None])
        found.append(np.array([label for _, label in parts[is_test]], np.int32))
    return found[0], found[1], found[2], found[3]


def vowels() -> Arrays:
    """Series [.., 25, 1, 12], each coefficient scaled by the training data."""
    data = np.load(SHARED / "ucr_from_aeon" / "ucr_small.npz")
    x, x_test = (data[f"JapaneseVowels_x_{part}"].astype("float32")[:, :, None] for part in ("train", "test"))
    y, y_test = (data[f"JapaneseVowels_y_{part}"].astype("int32") - 1 for part in ("train", "test"))
    mean, std = x.mean((0, 1, 2)), x.std((0, 1, 2))
    return (x - mean) / std, y, (x_test - mean) / std, y_test


def series_network(shape: tuple[int, ...], classes: int, *widths: int) -> keras.Model:
    """Convolutions along time, as [time, 1, channels]: what the kernels of microcontrollers take."""
    layers = keras.layers
    blocks: list[Any] = [keras.Input(shape)]
    for number, width in enumerate(widths):
        blocks += [
            layers.Conv2D(width, (5, 1), strides=(1 + number % 2, 1), padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    return keras.Sequential([*blocks, layers.GlobalAveragePooling2D(), layers.Dense(classes)])


def shuffled(x: np.ndarray, y: np.ndarray, seed: int) -> tf.data.Dataset:
    """Batches in another order every epoch."""
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed)
    return data.batch(SERIES_BATCH, drop_remainder=True).prefetch(2)


def fit(model: keras.Model, data: tf.data.Dataset, epochs: int) -> None:
    """Adam with a cosine decay."""
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * len(data))
    model.compile(keras.optimizers.Adam(rate), LOSS)
    model.fit(data, epochs=epochs, verbose=0)


def int8_file(
    student: keras.Model,
    data: Any,
    calibration: np.ndarray,
    test: tuple[np.ndarray, np.ndarray],
    **kwargs: Any,
) -> dict[str, Any]:
    """Quantization-aware training, the file's accuracy and its bytes."""
    compressed = keras_kd.compress(student, "int8", data, loss=LOSS, verbose=0, **kwargs)
    artifact = compressed.to_tflite(calibration=calibration)
    outputs = np.asarray(tflite_tools.predict(artifact, test[0]))
    return {
        "accuracy": float(np.mean(outputs.argmax(-1) == test[1])),
        "size_bytes": artifact.size_bytes,
        "gzip_bytes": artifact.gzip_bytes,
        "parameters": student.count_params(),
    }


def series(
    results: stored.Results,
    clock: common.Clock,
    part: str,
    data: Arrays,
    teacher_widths: tuple[int, ...],
    widths: tuple[int, ...],
) -> None:
    """A teacher, then students alone, distilled, and as int8 files."""
    x, y, x_test, y_test = data
    classes = int(y.max()) + 1
    keras.utils.set_random_seed(1000)
    teacher = series_network(x.shape[1:], classes, *teacher_widths)
    fit(teacher, shuffled(x, y, 1000), SERIES_EPOCHS)
    results.put(
        f"{part}/teacher",
        {"accuracy": accuracy(teacher, x_test, y_test), "parameters": teacher.count_params()},
    )
    for seed in range(_SEEDS.value):
        for method in ("alone", "distilled"):
            key = f"{part}/{method}/{seed}"
            if f"{key}/int8" in results.entries or clock.is_over():
                continue
            keras.utils.set_random_seed(seed)
            student = series_network(x.shape[1:], classes, *widths)
            trained: keras.Model = student
            teaching: dict[str, Any] = {}
            if method == "distilled":
                loss = LogitsDistillation(2.0)
                trained = keras_kd.Distiller(teacher, student, loss, student_loss_weight=0.1)
                teaching = {"teacher": teacher, "distillation_losses": loss, "student_loss_weight": 0.1}
            fit(trained, shuffled(x, y, seed), SERIES_EPOCHS)
            results.put(key, {"accuracy": accuracy(student, x_test, y_test)})
            found = int8_file(
                student, shuffled(x, y, seed), x[:500], (x_test, y_test), epochs=10, seed=seed, **teaching
            )
            results.put(f"{key}/int8", found)
            print(f"{key}: int8 {100 * found['accuracy']:.2f} %, {found['size_bytes']:,} bytes", flush=True)


def few_labels(results: stored.Results, clock: common.Clock) -> None:
    """1,000 labelled images; the same number of steps for all."""
    work = common.cache_dir(_CACHE.value)
    x, y, x_test, y_test = common_fashion.images()
    network = common_fashion.teacher(_TEACHER.value, work)
    folder = work / f"fashion_{FEW_EXAMPLES}x{FEW_VIEWS}"
    chosen, _ = common_fashion.training_images(FEW_EXAMPLES)
    views = common_fashion.Views(network, x[chosen], y[chosen], FEW_VIEWS, folder, verbose=True)
    ways = {
        "labels": ("alone", True),
        "labels and teacher": ("soft", True),
        "teacher, no labels": ("soft_T2_no_labels", False),
    }
    for seed in range(_SEEDS.value):
        labelled = np.random.default_rng(seed).permutation(len(views.x))[:FEW_LABELS]
        for name, (method, few) in ways.items():
            key = f"few_labels/{name}/{seed}"
            if key in results.entries or clock.is_over():
                continue
            keras.utils.set_random_seed(seed)
            student = common_methods.STUDENTS["12k"]()
            steps = (FEW_LABELS if few else len(views.x)) // 128
            common_methods.train(
                method,
                student,
                views,
                epochs=FEW_STEPS // steps,
                batch_size=128,
                learning_rate=1e-2,
                temperature=2.0,
                seed=seed,
                subset=labelled if few else None,
            )
            found = accuracy(student, x_test, y_test)
            results.put(key, {"accuracy": found, "parameters": student.count_params()})
            print(f"{key}: {100 * found:.2f} %", flush=True)


def cifar10_jpeg(folder: pathlib.Path) -> Arrays:
    """Bytes [.., 32, 32, 3] and labels in alphabetical order of the classes; decoded once and kept."""
    found = []
    for part in ("train", "test"):
        kept = folder / f"cifar10_jpeg_{part}.npz"
        if not kept.is_file():
            images, names = [], []
            with tarfile.open(SHARED / "cifar10_jpeg" / f"{part}.tar.xz") as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(".jpg"):
                        content = archive.extractfile(member)
                        assert content is not None
                        images.append(tf.io.decode_jpeg(io.BytesIO(content.read()).getvalue(), 3).numpy())
                        names.append(pathlib.PurePath(member.name).parent.name)
            _, labels = np.unique(names, return_inverse=True)
            np.savez(kept, x=np.stack(images), y=labels.astype("int32"))
        with np.load(kept) as arrays:
            found += [arrays["x"], arrays["y"]]
    return found[0], found[1], found[2], found[3]


def resnet8() -> keras.Model:
    """MLPerf Tiny's network for image classification: 32x32x3 bytes to 10 logits."""
    layers = keras.layers

    def conv(x: Any, width: int, strides: int = 1, kernel: int = 3) -> Any:
        return layers.BatchNormalization()(
            layers.Conv2D(width, kernel, strides, padding="same", use_bias=False)(x)
        )

    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(conv(layers.Rescaling(1 / 255)(inputs), 16))
    for width, strides in ((16, 1), (32, 2), (64, 2)):
        y = conv(layers.ReLU()(conv(x, width, strides)), width)
        x = conv(x, width, strides, kernel=1) if strides > 1 else x
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def resnet8_part(results: stored.Results, clock: common.Clock) -> None:
    """ResNet8 alone, distilled from cached views, and both as int8 files."""
    work = common.cache_dir(_CACHE.value)
    x, y, x_test, y_test = cifar10_jpeg(work)
    network = keras.models.load_model(SHARED / "teachers" / "cifar10_jpeg_teacher.keras", compile=False)
    results.get_or_run(
        "resnet8/teacher",
        lambda: {"accuracy": accuracy(network, x_test, y_test), "parameters": network.count_params()},
    )
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[: _RESNET8_EXAMPLES.value])
    folder = work / f"cifar_{len(chosen)}x2_flips"
    views = common_fashion.Views(
        network, x[chosen], y[chosen], 2, folder, augment=common_fashion.FLIPS, verbose=True
    )
    for seed in range(_RESNET8_SEEDS.value):
        for name, method in (("alone", "alone"), ("distilled", RESNET8_METHOD)):
            key = f"resnet8/{name}/{seed}"
            kept = work / f"resnet8_{name}_{seed}_{_RESNET8_EPOCHS.value}x{len(chosen)}.keras"
            if key not in results.entries and not clock.is_over():
                keras.utils.set_random_seed(seed)
                student = resnet8()
                common_methods.train(
                    method,
                    student,
                    views,
                    epochs=_RESNET8_EPOCHS.value,
                    batch_size=128,
                    learning_rate=4e-3,
                    temperature=2.0,
                    seed=seed,
                )
                student.save(kept)
                results.put(key, {"accuracy": accuracy(student, x_test, y_test)})
                print(f"{key}: {100 * results.entries[key]['accuracy']:.2f} %", flush=True)
            if kept.is_file() and f"{key}/int8" not in results.entries and not clock.is_over():
                student = keras.models.load_model(kept, compile=False)
                teaching: dict[str, Any] = {}
                if name == "distilled":
                    loss, share = common_methods.compression_loss()
                    teaching = {
                        "teacher": views.cache,
                        "distillation_losses": loss,
                        "student_loss_weight": share,
                    }
                # The images are stored class by class: a half that is not drawn would be half of the classes.
                half = np.random.default_rng(seed).permutation(len(views.x))[: len(views.x) // 2]
                data = views.batches("cached" if teaching else "plain", half, batch_size=128, seed=seed)
                found = int8_file(student, data, views.x[half[:300]], (x_test, y_test), seed=seed, **teaching)
                results.put(f"{key}/int8", found)
                print(f"{key}: int8 {100 * found['accuracy']:.2f} %", flush=True)


def missing(part: str) -> str | None:
    """Why a part cannot run here, or None."""
    needed = {
        "har": "st_har/dataset",
        "vowels": "ucr_from_aeon/ucr_small.npz",
        "resnet8": "cifar10_jpeg/train.tar.xz",
    }
    if part in needed and not (SHARED / needed[part]).exists():
        return f"KERAS_KD_SHARED_DATA names no folder with {needed[part]}"
    return None


def main(argv: list[str]) -> None:
    """Runs the parts whose data are there, then prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    unknown = {*_PARTS.value} - {*PARTS}
    if unknown:
        raise app.UsageError(
            f"--parts: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}."
        )
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    clock = common.Clock(_MINUTES.value)
    settings = {
        "resnet8": {
            "examples": _RESNET8_EXAMPLES.value,
            "epochs": _RESNET8_EPOCHS.value,
            "augmentation": "flips",
            "method": RESNET8_METHOD,
        },
        "series_epochs": SERIES_EPOCHS,
        "few_labels": {
            "labels": FEW_LABELS,
            "examples": FEW_EXAMPLES,
            "views": FEW_VIEWS,
            "steps": FEW_STEPS,
        },
    }
    results = stored.Results("microcontrollers", settings, folder)
    run: dict[str, Callable[[], None]] = {
        "har": lambda: series(results, clock, "har", har(), (32, 64, 64), (8, 12, 16)),
        "vowels": lambda: series(results, clock, "vowels", vowels(), (64, 96, 96), (8, 12, 16)),
        "few_labels": lambda: few_labels(results, clock),
        "resnet8": lambda: resnet8_part(results, clock),
    }
    for part in _PARTS.value:
        reason = missing(part)
        if reason:
            print(f"{part} is skipped: {reason}", flush=True)
        else:
            run[part]()
    print(tables.microcontrollers(tables.read("microcontrollers", folder)))


if __name__ == "__main__":
    app.run(main)
