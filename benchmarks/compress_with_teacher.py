"""Does the teacher help while a student is compressed? The same recipe and steps, with it and without it.

    KERAS_HOME=... python benchmarks/compress_with_teacher.py
    KERAS_HOME=... python benchmarks/compress_with_teacher.py --recipe=prune90-int8 --seeds=3 --json

Fashion-MNIST (`keras.datasets.fashion_mnist`; offline where KERAS_HOME holds it). For every seed a student is
trained on the labels, then compressed twice from those weights: on the labels alone, and with soft targets of
the teacher. Accuracy is that of the int8 `.tflite` file on the 10,000 test images. `--teacher` names a saved
Keras model of raw pixels 28x28x1 to 10 logits; without it one is trained first.
"""

import json
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
from keras_kd.losses import LogitsDistillation

FLAGS = flags.FLAGS
flags.DEFINE_string("recipe", "prune75-int8", "Name of the recipe.")
flags.DEFINE_integer("seeds", 5, "How many students.", lower_bound=1)
flags.DEFINE_integer("examples", 10_000, "Training images used for the compression.")
flags.DEFINE_integer("student_epochs", 4, "Epochs in which the student is trained before it is compressed.")
flags.DEFINE_integer("epochs", 3, "Epochs of every phase of the compression.")
flags.DEFINE_integer("batch_size", 100, "Examples per step.")
flags.DEFINE_float("temperature", 3.0, "Of the soft targets.")
flags.DEFINE_float("student_loss_weight", 0.1, "Share of the labels beside the teacher.")
flags.DEFINE_string("teacher", None, "Path of a saved Keras teacher.")
flags.DEFINE_bool("json", False, "Print JSON instead of the table.")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def convnet(width: int) -> keras.Model:
    """Raw pixels to logits."""
    layers = keras.layers
    blocks: list[Any] = [keras.Input((28, 28, 1)), layers.Rescaling(1 / 255.0)]
    for factor, strides in ((1, 1), (2, 2), (4, 2)):
        blocks += [
            layers.Conv2D(factor * width, 3, strides=strides, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
    blocks += [layers.GlobalAveragePooling2D(), layers.Dense(8 * width, activation="relu"), layers.Dense(10)]
    return keras.Sequential(blocks)


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int) -> keras.Model:
    """Adam with a cosine decay."""
    steps = epochs * -(-len(x) // FLAGS.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(4e-3, steps)), LOSS, metrics=["accuracy"]
    )
    model.fit(x, y, batch_size=FLAGS.batch_size, epochs=epochs, verbose=0)
    return model


def accuracy_of_file(
    student: keras.Model, teacher: keras.Model | None, data: tuple[np.ndarray, ...], seed: int
) -> float:
    """Compresses, converts, and asks the file."""
    x, y, x_test, y_test = data
    compressed = keras_kd.compress(
        student,
        FLAGS.recipe,
        x,
        y,
        teacher=teacher,
        distillation_losses=LogitsDistillation(FLAGS.temperature) if teacher is not None else None,
        student_loss_weight=FLAGS.student_loss_weight,
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        loss=LOSS,
        # The same optimizer for both; the student's own ended at a rate of zero.
        optimizer=keras.optimizers.Adam(1e-3),
        metrics=["accuracy"],
        seed=seed,
        verbose=0,
    )
    outputs = tflite_tools.predict(compressed.to_tflite(), x_test)
    return float(np.mean(np.asarray(outputs).argmax(-1) == y_test))


def main(_: list[str]) -> None:
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    order = np.random.default_rng(0).permutation(len(x))[: FLAGS.examples]
    x, y = x[order, ..., None].astype("float32"), y[order].astype("int32")
    x_test, y_test = x_test[..., None].astype("float32"), y_test.astype("int32")
    if FLAGS.teacher:
        teacher = keras.models.load_model(FLAGS.teacher)
    else:
        keras.utils.set_random_seed(1000)
        teacher = trained(convnet(48), x, y, 8)
    teacher_accuracy = float(np.mean(teacher.predict(x_test, verbose=0).argmax(-1) == y_test))
    rows = []
    for seed in range(FLAGS.seeds):
        begin = time.monotonic()
        keras.utils.set_random_seed(seed)
        student = trained(convnet(8), x, y, FLAGS.student_epochs)
        before = float(np.mean(student.predict(x_test, verbose=0).argmax(-1) == y_test))
        data = (x, y, x_test, y_test)
        without = accuracy_of_file(student, None, data, seed)
        with_teacher = accuracy_of_file(student, teacher, data, seed)
        rows.append(
            {"seed": seed, "student": before, "without_teacher": without, "with_teacher": with_teacher}
        )
        if not FLAGS.json:
            print(
                f"seed {seed}: student {before:.4f}, compressed without the teacher {without:.4f}, "
                f"with it {with_teacher:.4f} ({time.monotonic() - begin:.0f} s)",
                flush=True,
            )
    summary: dict[str, dict[str, Any]] = {}
    for column in ("student", "without_teacher", "with_teacher"):
        values = np.array([row[column] for row in rows])
        # With one seed there is no spread to speak of.
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        summary[column] = {"mean": float(values.mean()), "std": spread}
    result = {
        "dataset": "Fashion-MNIST",
        "recipe": FLAGS.recipe,
        "examples": FLAGS.examples,
        "epochs": FLAGS.epochs,
        "temperature": FLAGS.temperature,
        "student_loss_weight": FLAGS.student_loss_weight,
        "teacher_accuracy": teacher_accuracy,
        "student_parameters": convnet(8).count_params(),
        "runs": rows,
        "summary": summary,
    }
    if FLAGS.json:
        print(json.dumps(result, indent=2))
        return
    print(f"\n{FLAGS.recipe}, {FLAGS.seeds} seeds, teacher {100 * teacher_accuracy:.2f} %")
    for column, text in (
        ("student", "student before"),
        ("without_teacher", "int8 file, labels alone"),
        ("with_teacher", "int8 file, with the teacher"),
    ):
        spread = summary[column]["std"]
        print(
            f"{text:<30} {100 * summary[column]['mean']:6.2f} % ± {'-' if spread is None else f'{100 * spread:.2f}'}"
        )


if __name__ == "__main__":
    app.run(main)
