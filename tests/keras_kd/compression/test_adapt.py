"""Keras 3 optimizers, losses and metrics as tf_keras objects, piece by piece."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from compressible import LOSS, X, Y, rng, small_student

import keras_kd
from keras_kd.compression import adapt


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(2e-3, beta_1=0.8),
        keras.optimizers.AdamW(2e-3, weight_decay=1e-4),
        keras.optimizers.SGD(2e-3, momentum=0.9, nesterov=True, clipnorm=1.0),
        keras.optimizers.RMSprop(2e-3, rho=0.8),
        keras.optimizers.Lion(2e-3),
        keras.optimizers.Nadam(2e-3),
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, 10)),
        keras.optimizers.SGD(keras.optimizers.schedules.PiecewiseConstantDecay([2], [2e-3, 1e-3])),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_an_adapted_optimizer_takes_the_same_steps(optimizer):
    twin = adapt.adapt_optimizer(optimizer)
    ours, theirs = keras.Variable([1.0, -2.0]), tf.Variable([1.0, -2.0])
    optimizer.build([ours])
    twin.build([theirs])
    for gradient in ([0.5, -1.0], [0.1, 2.0], [-0.3, 0.0]):
        optimizer.apply([tf.constant(gradient)])
        twin.apply_gradients([(tf.constant(gradient), theirs)])
    # Both compute in float32 with operations in another order.
    np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=1e-6)


def test_optimizers_that_tf_keras_lacks_are_refused_by_name():
    with pytest.raises(ValueError, match="Lamb"):
        adapt.adapt_optimizer(keras.optimizers.Lamb())
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        adapt.adapt_optimizer(keras.optimizers.Adam(gradient_accumulation_steps=4))


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2), Y),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), np.eye(3)[Y]),
        (keras.losses.Huber(0.3), np.eye(3)[Y]),
        ("mse", np.eye(3)[Y]),
        (lambda y_true, y_pred: tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1), np.eye(3)[Y]),
    ],
    ids=["ignore_class", "focal", "huber", "name", "function"],
)
def test_an_adapted_loss_is_the_same_number(loss, y):
    outputs, weights = tf.constant(X[:, :3]), rng.uniform(size=50).astype("float32")
    y = y.astype("float32") if y.ndim == 2 else y
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    model.compile(loss=loss)
    legacy = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Activation("linear")])
    legacy.compile(loss=adapt.adapt_loss(loss))
    expected = model.evaluate(outputs, y, sample_weight=weights, batch_size=50, verbose=0)
    found = legacy.evaluate(outputs, y, sample_weight=weights, batch_size=50, verbose=0)
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_that_do_not_exist_or_do_not_reduce_are_refused():
    with pytest.raises(ValueError, match="crossentropee"):
        adapt.adapt_loss("crossentropee")
    with pytest.raises(ValueError, match="reduction"):
        adapt.adapt_loss(keras.losses.MeanSquaredError(reduction=None))


class Spread(keras.metrics.Metric):
    """A metric that tf_keras does not have."""

    def __init__(self, name="spread"):
        super().__init__(name=name)
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.max(y_pred) - keras.ops.min(y_pred))

    def result(self):
        return self.total


def test_metrics_are_rebuilt_or_called_through():
    metrics = [keras.metrics.SparseTopKCategoricalAccuracy(2), Spread(), "accuracy"]
    compressed = keras_kd.compress(
        small_student(), "prune50", X, Y, loss=LOSS, metrics=metrics, validation_data=(X, Y), verbose=0
    )
    logs = compressed.report.history["prune"]
    assert {"sparse_top_k_categorical_accuracy", "spread", "accuracy"} <= set(logs)
    outputs = [compressed.model.predict(part, verbose=0) for part in (X[:32], X[32:])]
    assert logs["val_spread"][-1] == pytest.approx(sum(np.ptp(part) for part in outputs), rel=1e-4)
