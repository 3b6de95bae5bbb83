"""Sparse encoding: used where the file gets smaller, runs and says the same; refused with the reason elsewhere."""

import keras
import numpy as np
import pytest

import keras_kd
import tflite_tools
from keras_kd.compression.sparse_file import sparse_if_it_helps

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 16)).astype("float32"), rng.integers(0, 3, 40)


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((16,)),
            dense(96, "relu", name="a"),
            dense(96, "relu", name="b"),
            dense(96, "relu", name="c"),
            dense(3, name="d"),
        ]
    )


def compressed(student, recipe):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras_kd.compress(student, recipe, X, Y, loss=loss, batch_size=40, verbose=0)


@pytest.mark.parametrize("recipe", ["prune75", "prune75-float16"])
def test_float_files_shrink_and_say_the_same(student, recipe):
    found = compressed(student, recipe)
    dense, sparse = found.to_tflite(), found.to_tflite(sparse_encoding=True)
    # A quarter of the values, and an index of one byte or so for each of them.
    assert sparse.size_bytes < 0.75 * dense.size_bytes
    assert "the same answers to 40 examples" in sparse.notes[-1]
    np.testing.assert_array_equal(tflite_tools.predict(sparse, X), tflite_tools.predict(dense, X))
    assert sparse.provenance["recipe"] == recipe


def test_int8_files_stay_dense_with_the_reason(student):
    found = compressed(student, "prune90-int8_ptq")
    artifact = found.to_tflite(sparse_encoding=True)
    assert artifact.content == found.to_tflite().content
    assert "sparse encoding: left out" in artifact.notes[-1] and "does not run" in artifact.notes[-1]


def test_without_zeros_nothing_is_tried(student):
    artifact = compressed(student, "float32").to_tflite(sparse_encoding=True)
    assert "nothing is pruned" in artifact.notes[-1]


def test_a_larger_or_different_file_is_left_out(student):
    """What the converter may do one day: files of other networks stand in for its answers."""
    dense = compressed(student, "prune75").to_tflite()
    wide = keras.Sequential([keras.Input((16,)), keras.layers.Dense(2000), keras.layers.Dense(3)])
    for other, why in ((wide, "it would be"), (keras.models.clone_model(student), "answers otherwise")):
        file = tflite_tools.convert(other, metadata=False)
        assert (file.size_bytes > dense.size_bytes) == (other is wide)
        kept = sparse_if_it_helps(lambda sparse, file=file: file if sparse else dense, X, 0.75)
        assert kept.content == dense.content and why in kept.notes[-1]
