"""The view and the order of a batch are those of its epoch, however far ahead anybody fetches."""

import contextlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.callbacks import BackupAndRestore
from keras_kd.teachers.augmentations import Jitter

EXAMPLES, BATCH, VIEWS = 48, 16, 5


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(EXAMPLES, 5, 1)).astype("float32")


@pytest.fixture(scope="module")
def cache(x, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    return keras_kd.TeacherCache.build(lambda b: b[:, :3, 0], x, path, views=VIEWS, augment=Jitter(0.1))


class Recording(keras.Model):
    """A linear student that keeps the first number of every example it was trained on."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.seen = []

    def call(self, inputs, training=False):
        if training:
            tf.py_function(lambda batch: self.seen.append(batch.numpy().copy()), [inputs[:, 0, 0]], [])
        return self.dense(keras.ops.reshape(inputs, (-1, 5)))


def passes_of(cache, x, dataset, epochs, *, callbacks=None, **fit):
    """The views of the batches that a fit trained on, a list for each pass over the data."""
    student = Recording()
    student(x[:2])
    distiller = keras_kd.Distiller(
        cache, student, keras_kd.losses.LogitsDistillation(), student_loss_weight=0.0
    )
    distiller.compile("sgd", run_eagerly=True)
    with contextlib.suppress(KeyboardInterrupt):
        distiller.fit(dataset, epochs=epochs, verbose=0, callbacks=callbacks, **fit)
    known = {
        float(number): view
        for view in range(VIEWS)
        for number in cache.inputs(x, np.arange(EXAMPLES), view=view)[:, 0, 0]
    }
    return [sorted({known[float(number)] for number in batch}) for batch in student.seen]


def each_three_times(*views):
    return [[view] for view in views for _ in range(EXAMPLES // BATCH)]


def test_epochs_follow_each_other_whoever_else_reads(cache, x):
    # Ten times as many batches as there are are fetched ahead, and somebody reads all the data before each epoch.
    train = cache.dataset(x, batch_size=BATCH).prefetch(30)
    reader = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: [None for _ in train])
    assert passes_of(cache, x, train, 3, callbacks=[reader]) == each_three_times(0, 1, 2)
    assert passes_of(cache, x, train, 2, callbacks=[reader]) == each_three_times(3, 4)  # a second fit goes on


def test_a_data_set_that_a_fit_does_not_touch_stays_where_it_is(cache, x):
    other = cache.dataset(x, batch_size=BATCH)
    assert passes_of(cache, x, cache.dataset(x, batch_size=BATCH), 2) == each_three_times(0, 1)
    assert passes_of(cache, x, other, 2) == each_three_times(0, 1)


def test_steps_per_epoch_cut_no_pass_short(cache, x):
    train = cache.dataset(x, batch_size=BATCH).prefetch(30)
    # Keras goes on with an iterator until its batches are used up, and epochs do not span two of them.
    with pytest.warns(UserWarning, match="ran out of data"):
        seen = passes_of(cache, x, train, 6, steps_per_epoch=2)
    assert seen == each_three_times(0, 1, 2)


def test_part_of_the_batches_in_each_epoch(cache, x):
    train = cache.dataset(x, batch_size=BATCH).take(2)
    assert passes_of(cache, x, train, 3) == [[0], [0], [1], [1], [2], [2]]


def test_a_fit_that_was_killed_goes_on_with_the_view_of_its_epoch(cache, x, tmp_path):
    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(*more):
        # Kept, since a fit that ends deletes its backup.
        backup = BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        return passes_of(cache, x, cache.dataset(x, batch_size=BATCH), 4, callbacks=[backup, *more])

    assert run(Killed()) == each_three_times(0, 1)
    assert run() == each_three_times(2, 3)


@pytest.mark.parametrize("told", [0, 3], ids=["by the fit", "by both"])
def test_a_fit_that_begins_later_begins_with_the_view_of_its_epoch(cache, x, told):
    train = cache.dataset(x, batch_size=BATCH, initial_epoch=told)
    assert passes_of(cache, x, train, 5, initial_epoch=3) == each_three_times(3, 4)
    assert passes_of(cache, x, train, 6, initial_epoch=5) == each_three_times(
        0
    )  # the sixth pass, of five views
    # Another data set of the cache is still at its beginning, and a fit from the beginning says so.
    other = cache.dataset(x, batch_size=BATCH)
    assert passes_of(cache, x, train, 1) == each_three_times(1)
    assert passes_of(cache, x, other, 1) == each_three_times(0)


def test_epochs_of_some_steps_that_begin_later(cache, x):
    # Two of three batches make an epoch: three of them are two passes, numbered 0 and 1.
    with pytest.warns(UserWarning, match="ran out of data"):
        seen = passes_of(cache, x, cache.dataset(x, batch_size=BATCH), 5, steps_per_epoch=2, initial_epoch=3)
    assert seen[:3] == each_three_times(2)


MIRRORED = """
import sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras_kd
from keras_kd.teachers.augmentations import Jitter
x = np.random.default_rng(0).normal(size=(64, 5, 1)).astype("float32")
y = np.arange(64) % 3
flat = keras.layers.Flatten
cache = keras_kd.TeacherCache.build(lambda b: b[:, :3, 0], x, sys.argv[1], views=4, augment=Jitter(0.5))

def run(batch_size, epochs, **fit):
    keras.utils.set_random_seed(1)
    student = keras.Sequential([keras.Input((5, 1)), flat(), keras.layers.Dense(3)])
    distiller = keras_kd.Distiller(cache, student, keras_kd.losses.LogitsDistillation(), student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(cache.dataset(x, y, batch_size=batch_size, seed=7), epochs=epochs, verbose=0, **fit)
    return student.get_weights()

settings = [
    dict(batch_size=16, epochs=5),
    dict(batch_size=64, epochs=6),
    dict(batch_size=16, epochs=6, steps_per_epoch=2),
]
for setting in settings:
    one = run(**setting)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two = run(**setting)
    for a, b in zip(one, two):  # sums over two halves instead of one batch, twenty steps: float32 rounding
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(setting))
print("same")
"""


def test_two_replicas_give_the_weights_of_one(tmp_path):
    """Four batches and one, shuffled, in four views that differ much: another view or order shows at once."""
    command = [sys.executable, "-c", MIRRORED, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("same"), done.stderr[-3000:]
