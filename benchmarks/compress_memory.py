"""What a compression costs in memory: the peak for MobileNetV2, and whether ten calls in one process pile up.

    python benchmarks/compress_memory.py
    python benchmarks/compress_memory.py --side=224 --output=/tmp/other

Random images and weights: memory depends on shapes only. The peak is the process's own (`ru_maxrss`), with
TensorFlow, whose import alone is printed beside it.
"""

import gc
import os
import pathlib
import resource
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
from benchmarks import common, compression_tables, stored

FLAGS = flags.FLAGS
flags.DEFINE_integer("side", 96, "Pixels per side of MobileNetV2's input.", lower_bound=32)
flags.DEFINE_integer("batch_size", 32, "Examples per step.", lower_bound=1)
flags.DEFINE_integer("calls", 10, "Compressions of a small model in this process.", lower_bound=2)
flags.DEFINE_string("recipe", "prune50-int8", "Name of the recipe.")
flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")


def resident_mib() -> float:
    """Memory that this process holds now (Linux)."""
    fields = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compress(model: keras.Model, count: int) -> None:
    """One epoch per phase on random images."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(count, *model.input_shape[1:])).astype("float32")
    y = generator.integers(0, 10, count)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    keras_kd.compress(
        model, FLAGS.recipe, x, y, loss=loss, batch_size=FLAGS.batch_size, verbose=0
    ).to_tflite()


def small_model() -> keras.Model:
    """A few layers."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def main(_: list[str]) -> None:
    model = small_model()
    held = []
    for _number in range(FLAGS.calls):
        compress(model, 2 * FLAGS.batch_size)
        gc.collect()
        held.append(round(resident_mib(), 1))
    before = peak_mib()
    begin = time.monotonic()
    side = FLAGS.side
    large = keras.applications.MobileNetV2(
        weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None
    )
    compress(large, 2 * FLAGS.batch_size)
    # The first calls fill caches of the allocator and of TensorFlow; growth is what comes after the third.
    growth = (held[-1] - held[2]) / (len(held) - 3) if len(held) > 3 else None
    result: dict[str, Any] = {
        "recipe": FLAGS.recipe,
        "held_after_each_call_mib": held,
        "growth_per_call_mib": None if growth is None else round(growth, 2),
        "peak_before_mobilenet_mib": round(before, 1),
        "peak_with_mobilenet_mib": round(peak_mib(), 1),
        "side": side,
        "batch_size": FLAGS.batch_size,
        "seconds": round(time.monotonic() - begin, 1),
    }
    folder = pathlib.Path(FLAGS.output) if FLAGS.output else stored.RESULTS
    results = stored.Results("compress_memory", {"recipe": FLAGS.recipe, "side": side}, folder)
    results.put("environment", common.environment())
    results.put("run", result)
    print(compression_tables.memory(results.entries))


if __name__ == "__main__":
    app.run(main)
