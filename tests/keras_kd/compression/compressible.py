"""A small student and its data, for tests of what `compress` accepts."""

import keras
import numpy as np


def small_student(outputs=3):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((6,), name="features"),
            dense(16, activation="relu", name="a"),
            dense(16, activation="relu", name="b"),
            dense(outputs, name="c"),
        ]
    )


rng = np.random.default_rng(0)
X = rng.normal(size=(50, 6)).astype("float32")
Y = rng.integers(0, 3, 50)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
