"""A training pass of BatchNormalization: Keras's own operations against TensorFlow's single one, by channels.

    python benchmarks/normalization_time.py

Forwards, a ReLU, and backwards, on float32 maps. The two run in turn and the fastest round of each counts. This is what
`keras_kd/normalization.py` decides by.
"""

import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks.common import environment
from benchmarks.stored import Results
from keras_kd.normalization import FusedNormalization

_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples.", lower_bound=1)
_SIDES = flags.DEFINE_list("sides", ["7", "14", "28"], "Pixels per side of the maps.")
_CHANNELS = flags.DEFINE_list(
    "channels", ["6", "8", "12", "14", "16", "24", "28", "40", "42", "64"], "To try."
)
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Interleaved; the fastest of each counts.", lower_bound=3)
CALLS = 5


def training_pass(layer: Any, variables: list[Any], shape: tuple[int, ...]) -> Callable[[], Any]:
    """Forwards and backwards through one layer."""
    generator = np.random.default_rng(0)
    x, cotangent = (tf.constant(generator.normal(size=shape).astype("float32")) for _ in range(2))

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.nn.relu(layer(x, training=True)) * cotangent)
        return tape.gradient(total, [x, *(variable.value for variable in variables)])

    return run


def measure(shape: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of both, and their ratio."""
    passes = {}
    for name, wrap in (("keras", lambda layer: layer), ("fused", FusedNormalization)):
        layer = keras.layers.BatchNormalization()
        layer.build(shape)
        passes[name] = training_pass(wrap(layer), layer.trainable_variables, shape)
    best = dict.fromkeys(passes, float("inf"))
    for _ in range(_ROUNDS.value):
        for name, run in passes.items():
            begin = time.perf_counter()
            for _ in range(CALLS):
                run()
            best[name] = min(best[name], 1e3 * (time.perf_counter() - begin) / CALLS)
    return {**best, "ratio": best["fused"] / best["keras"]}


def main(_: list[str]) -> None:
    """All sides and channels; what is stored is not measured again."""
    results = Results("normalization_time", {"batch_size": _BATCH.value, **environment()})
    for side in map(int, _SIDES.value):
        for channels in map(int, _CHANNELS.value):
            shape = (_BATCH.value, side, side, channels)
            found = results.get_or_run("x".join(map(str, shape[1:])), functools.partial(measure, shape))
            line = f"{shape!s:<20} keras {found['keras']:6.2f} ms, fused {found['fused']:6.2f} ms"
            print(f"{line}, ratio {found['ratio']:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
