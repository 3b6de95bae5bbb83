"""The means in the log are those of `keras.metrics.Mean`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.trackers import LossMean


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("compiled", [False, True])
def test_weighted_mean_of_scalars(dtype, compiled):
    generator = np.random.default_rng(0)
    values, weights = generator.normal(size=20), generator.integers(1, 9, 20)
    mean = LossMean(name="loss")
    update = tf.function(mean.update_state) if compiled else mean.update_state
    for value, weight in zip(values.astype(dtype), weights):
        update(tf.constant(value), tf.constant(weight))
    expected = np.average(values.astype(dtype).astype("float64"), weights=weights)
    # float32 sums of twenty numbers of order 1.
    assert float(mean.result()) == pytest.approx(expected, abs=1e-6)
    mean.reset_state()
    assert float(mean.result()) == 0.0


def test_a_scalar_without_a_weight_counts_once_and_a_python_number_too():
    mean = LossMean()
    mean.update_state(tf.constant(1.0))
    mean.update_state(4.0, 2)
    assert float(mean.result()) == 3.0 and float(mean.count) == 3.0


@pytest.mark.parametrize("weight", [None, np.array([1.0, 0.0, 2.0], "float32")])
def test_other_values_go_the_way_of_keras(weight):
    ours, theirs = LossMean(), keras.metrics.Mean()
    for mean in (ours, theirs):
        mean.update_state(np.array([1.0, 5.0, 3.0], "float32"), weight)
    assert float(ours.result()) == float(theirs.result())
