"""Half precision and replicas."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from distiller_pairs import FROM_LOGITS, X, Y, dense, train
from keras import layers

from keras_kd import Distiller
from keras_kd.losses import FeatureDistillation, LogitsDistillation

# Half precision.


def mixed(width, seed, policy):
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(width, "tanh", name="hidden", dtype=policy)
    return keras.Sequential([keras.Input((5,)), hidden, layers.Dense(3, dtype="float32")], name=policy)


@pytest.mark.parametrize(
    ("teacher_policy", "student_policy"), [("float32", "mixed_float16"), ("mixed_float16", "float32")]
)
def test_mixed_precision_both_ways(teacher_policy, student_policy):
    dtypes = {}

    @keras.saving.register_keras_serializable("test_distiller_models")
    class Spy(layers.Layer):
        def call(self, inputs):
            dtypes[self.name] = keras.backend.standardize_dtype(inputs.dtype)
            return inputs

    teacher, student = mixed(6, 1, teacher_policy), mixed(4, 2, student_policy)
    teacher = keras.Sequential(
        [keras.Input((5,)), Spy(name="to_teacher", dtype="float32", autocast=False), teacher]
    )
    student = keras.Sequential(
        [keras.Input((5,)), Spy(name="to_student", dtype="float32", autocast=False), student]
    )
    losses_used = [
        LogitsDistillation(),
        FeatureDistillation("mse", f"{teacher_policy}/hidden", f"{student_policy}/hidden"),
    ]
    distiller = Distiller(teacher, student, losses_used)
    distiller.compile(keras.optimizers.Adam(0.01), FROM_LOGITS)
    is_scaled = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (student_policy == "mixed_float16")
    history = distiller.fit(X, Y, epochs=15, verbose=0).history
    assert np.all(np.isfinite(history["loss"])) and history["loss"][-1] < history["loss"][0]
    assert dtypes == {"to_teacher": "float32", "to_student": "float32"}
    assert all(keras.backend.standardize_dtype(a.dtype) == "float32" for a in distiller.adapters[0].variables)


def test_half_precision_gives_nearly_the_loss_of_single_precision():
    values = []
    for policy in ("float32", "mixed_float16"):
        logs = train(Distiller(dense(6, 1), mixed(4, 2, policy), LogitsDistillation()))
        values.append(logs["total_loss"])
    # Ten bits of fraction in the hidden layer: a few parts in a thousand.
    assert values[1] == pytest.approx(values[0], rel=5e-3)


# Replicas.

MIRRORED = """
    import json, sys
    import numpy as np, tensorflow as tf, keras
    devices = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(devices[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    from keras_kd import Distiller, losses, schedules
    from keras_kd.losses import FeatureDistillation, LogitsDistillation
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 5)).astype("float32"), rng.integers(0, 3, 32)
    w = rng.uniform(0.5, 2.0, 32)

    def run():
        keras.utils.set_random_seed(1)
        make = lambda width: keras.Sequential([keras.Input((5,)), keras.layers.Dense(width, "tanh", name="h",
            kernel_regularizer="l2"), keras.layers.Dense(3), keras.layers.Lambda(lambda z: z * 1.0)])
        distiller = Distiller(make(8), make(4), [LogitsDistillation(), FeatureDistillation("mse", "h", "h")],
                              [schedules.Linear(1.0, 0.5), 0.5], student_loss_weight=0.3)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9),
                          keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        data = tf.data.Dataset.from_tensor_slices((x, y, w)).batch(16)
        logs = distiller.fit(data, epochs=3, verbose=0, validation_data=data).history
        return [v.tolist() for v in distiller.student.get_weights()], logs

    one, logs_of_one = run()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two, logs_of_two = run()
    # Sums over two halves instead of one batch, six steps: float32 rounding.
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, atol=2e-6)
    assert logs_of_one.keys() == logs_of_two.keys()
    for key in logs_of_one:
        np.testing.assert_allclose(logs_of_one[key], logs_of_two[key], rtol=1e-4, err_msg=key)
    print("same")
"""


def test_two_replicas_give_the_weights_of_one_device():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(MIRRORED)], capture_output=True, text=True)
    assert done.stdout.strip().endswith("same"), done.stderr[-3000:]
