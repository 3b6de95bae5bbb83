"""Saving, reloading, backing up and going on: Distiller files, twins, schedules and killed runs."""

import json
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import keras
import numpy as np
import pytest

from keras_kd import Distiller, losses, schedules
from keras_kd.callbacks import BackupAndRestore
from keras_kd.errors import TeacherMissingError
from keras_kd.losses import FeatureDistillation, LogitsDistillation

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(examples=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, 5)).astype("float32"), rng.integers(0, 3, examples)


def dense(width, seed, name):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(width, "tanh", name="hidden"),
        keras.layers.Dense(3, name="logits"),
    ]
    return keras.Sequential(layers, name=name)


def halved(x):
    return x / 2.0


halved = keras.saving.register_keras_serializable("test_distiller_saving")(halved)


@pytest.mark.parametrize("save_teacher", ["embed", "reference", "none"])
@pytest.mark.parametrize("student_width", [6, 3])  # 6: a twin of the teacher
def test_a_reloaded_distiller_has_the_students_weights(tmp_path, save_teacher, student_width):
    x, y = data()
    teacher, student = dense(6, 1, "network"), dense(student_width, 2, "network")
    distiller = Distiller(
        teacher,
        student,
        [
            LogitsDistillation(temperature=2.5),
            FeatureDistillation("mse", "hidden", "hidden", name="hint"),
            losses.VariationalInformation("hidden", "hidden"),
        ],
        [0.5, schedules.Linear(1.0, 0.0, steps=10), 0.1],
        student_loss_weight=0.25,
        save_teacher=save_teacher,
        teacher_path="teacher.keras",
        teacher_preprocessing=halved,
    )
    distiller.compile(keras.optimizers.Adam(0.01), FROM_LOGITS, metrics=["accuracy"])
    distiller.fit(x, y, verbose=0, shuffle=False)
    json.dumps(distiller.get_config())
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    loaded = keras.models.load_model(path)
    for saved, reloaded in zip(student.get_weights(), loaded.student.get_weights(), strict=True):
        np.testing.assert_array_equal(saved, reloaded)
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), loaded.predict(x, verbose=0))
    np.testing.assert_allclose(
        distiller.evaluate(x, y, verbose=0), loaded.evaluate(x, y, verbose=0), rtol=1e-6
    )
    for a, b in zip(distiller.adapters, loaded.adapters, strict=True):
        for saved, reloaded in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_array_equal(saved, reloaded)
    assert len(loaded.adapters) == (1 if student_width == 6 else 2)
    assert loaded.distillation_loss_weights == [0.5, schedules.Linear(1.0, 0.0, steps=10), 0.1]
    assert loaded.student_loss_weight == 0.25 and loaded.distillation_losses[0].temperature == 2.5
    assert float(loaded.optimizer.iterations) == float(distiller.optimizer.iterations) > 0
    if save_teacher == "embed":
        assert isinstance(loaded.teacher, keras.Model) and not loaded.teacher.trainable
        for saved, reloaded in zip(teacher.get_weights(), loaded.teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(saved, reloaded)
    else:
        assert loaded.teacher is None
        with pytest.raises(TeacherMissingError, match=r"distiller\.teacher"):
            loaded.fit(x, y, verbose=0)
        loaded.teacher = teacher
    # Both go on training from the same state, without being compiled again.
    before = distiller.fit(x, y, verbose=0, shuffle=False).history
    after = loaded.fit(x, y, verbose=0, shuffle=False).history
    assert before.keys() == after.keys()
    for key in before:
        assert before[key] == pytest.approx(after[key], rel=1e-5)


def test_a_teacher_that_is_not_embedded_is_not_in_the_file(tmp_path):
    x, y = data()
    sizes = {}
    for save_teacher in ("embed", "none"):
        distiller = Distiller(
            dense(2000, 1, "teacher"), dense(3, 2, "student"), LogitsDistillation(), save_teacher=save_teacher
        )
        distiller.compile("sgd", FROM_LOGITS)
        distiller.fit(x, y, verbose=0)
        assert distiller.teacher.name == "teacher"
        distiller.save(tmp_path / f"{save_teacher}.keras")
        with zipfile.ZipFile(tmp_path / f"{save_teacher}.keras") as archive:
            sizes[save_teacher] = archive.getinfo("model.weights.h5").file_size
    assert sizes["embed"] > sizes["none"] + 18_000 * 4  # the teacher's 18,003 float32 weights


def test_embedded_files_have_the_layout_of_keras(tmp_path):
    """The weights of a file of keras.distillation load into ours, and ours into Keras's."""
    x, _ = data()
    make = lambda cls, loss: cls(dense(6, 1, "teacher"), dense(3, 2, "student"), loss())  # noqa: E731
    theirs = make(keras.distillation.Distiller, keras.distillation.LogitsDistillation)
    ours = make(Distiller, LogitsDistillation)
    for model in (theirs, ours):
        model(x)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    for weight in ours.student.weights:
        weight.assign(keras.ops.zeros_like(weight))
    ours.load_weights(tmp_path / "theirs.weights.h5")
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), atol=1e-6)
    for weight in ours.student.weights:
        weight.assign(weight + 1.0)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    for model in ("teacher", "student"):
        pairs = zip(getattr(ours, model).get_weights(), getattr(theirs, model).get_weights(), strict=True)
        for saved, loaded in pairs:
            np.testing.assert_array_equal(saved, loaded)


def test_the_wrong_teacher_is_refused_by_its_fingerprint(tmp_path):
    distiller = Distiller(
        dense(6, 1, "t"),
        dense(3, 2, "s"),
        LogitsDistillation(),
        save_teacher="reference",
        teacher_path="big.keras",
    )
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    with pytest.raises(ValueError, match=r"not the teacher.*big\.keras"):
        loaded.teacher = dense(6, 3, "t")
    loaded.teacher = dense(6, 1, "t")


def test_the_student_is_an_ordinary_model_without_a_trace(tmp_path):
    x, y = data()
    student = dense(3, 2, "student")
    config, names = student.get_config(), [weight.path for weight in student.weights]
    distiller = Distiller(
        dense(6, 1, "teacher"),
        student,
        [FeatureDistillation("mse", "hidden", "hidden"), losses.VariationalInformation("hidden", "hidden")],
    )
    distiller.compile("adam", FROM_LOGITS)
    distiller.fit(x, y, verbose=0)
    assert distiller.student is student
    assert [weight.path for weight in student.weights] == names and student.get_config() == config
    assert len(distiller.trainable_variables) == 4 + 2 + 7  # student, projection, variational head
    student.save(tmp_path / "student.keras")
    program = f"""
        import sys, keras, numpy as np
        model = keras.models.load_model({str(tmp_path / "student.keras")!r})
        assert "keras_kd" not in sys.modules
        np.save({str(tmp_path / "out.npy")!r}, model.predict(np.load({str(tmp_path / "x.npy")!r}), verbose=0))
    """
    np.save(tmp_path / "x.npy", x)
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), student.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "remains"),  # a likelihood does not end near zero
    [
        (FeatureDistillation("mse", "hidden", "hidden"), 0.5),
        (losses.VariationalInformation("hidden", "hidden"), 0.8),
    ],
)
def test_adapters_are_trained_by_the_distillers_optimizer(loss, remains):
    x, _ = data()
    distiller = Distiller(dense(6, 1, "t"), dense(3, 2, "s"), loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05))
    before = distiller.adapters[0].get_weights()
    history = distiller.fit(x, epochs=30, verbose=0).history
    for start, end in zip(before, distiller.adapters[0].get_weights(), strict=True):
        assert np.abs(start - end).max() > 1e-3  # kernels, biases, and the spread of a variational head
    assert history["loss"][-1] < remains * history["loss"][0]


# Schedules.


class Record(keras.callbacks.Callback):
    """Keeps a log entry of every batch (Keras logs the running mean of an epoch; each epoch here is one batch)."""

    def __init__(self, key):
        super().__init__()
        self.key, self.values = key, []

    def on_epoch_end(self, epoch, logs=None):
        self.values.append(logs[self.key])


def scheduled(schedule, **kwargs):
    distiller = Distiller(
        dense(6, 1, "t"),
        dense(3, 2, "s"),
        LogitsDistillation(),
        [schedule],
        student_loss_weight=0.0,
        **kwargs,
    )
    distiller.compile(keras.optimizers.SGD(0.0))
    return distiller


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.Constant(2.0), [2, 2, 2, 2]),
        (schedules.Linear(4.0, 0.0), [4, 3, 2, 1]),
        (schedules.Linear(4.0, 0.0, steps=2), [4, 2, 0, 0]),
        (schedules.WarmUp(3.0, steps=3), [0, 1, 2, 3]),
        (schedules.Cosine(1.0, 0.0), [1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules_are_read_at_every_optimizer_step(schedule, expected):
    x, _ = data(8)
    distiller = scheduled(schedule)
    history = distiller.fit(x, batch_size=8, epochs=4, verbose=0).history
    ratio = np.array(history["distillation_loss"]) / np.array(history["logits_distillation"])
    np.testing.assert_allclose(ratio, expected, atol=1e-5)


def test_schedules_are_saved_with_the_distiller(tmp_path):
    x, y = data(8)
    distiller = Distiller(
        dense(6, 1, "t"),
        dense(3, 2, "s"),
        [
            LogitsDistillation(temperature=schedules.Linear(4.0, 2.0)),
            losses.DecoupledDistillation(schedules.Constant(1.0), schedules.WarmUp(8.0, steps=4)),
        ],
        [schedules.Cosine(1.0, 0.1), 0.5],
        student_loss_weight=schedules.Linear(0.9, 0.1, steps=3),
    )
    distiller.compile(keras.optimizers.Adam(0.01), FROM_LOGITS)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert loaded.distillation_losses[0].temperature == schedules.Linear(4.0, 2.0)
    assert loaded.distillation_losses[1].beta == schedules.WarmUp(8.0, steps=4)
    assert loaded.distillation_loss_weights == [schedules.Cosine(1.0, 0.1), 0.5]
    assert loaded.student_loss_weight == schedules.Linear(0.9, 0.1, steps=3)
    # The middle of a fit: both go on at the same place of every schedule.
    goes_on = {"batch_size": 8, "epochs": 4, "initial_epoch": 2, "shuffle": False, "verbose": 0}
    ours, theirs = (model.fit(x, y, **goes_on).history for model in (distiller, loaded))
    for key, values in ours.items():
        assert values == pytest.approx(theirs[key], rel=1e-5), key


def test_a_second_fit_has_a_length_of_its_own():
    x, _ = data(8)
    distiller = scheduled(schedules.Linear(4.0, 0.0))
    for _ in range(2):
        history = distiller.fit(x, batch_size=8, epochs=4, verbose=0).history
        ratio = np.array(history["distillation_loss"]) / np.array(history["logits_distillation"])
        np.testing.assert_allclose(ratio, [4, 3, 2, 1], atol=1e-5)


def test_a_fit_that_is_resumed_goes_on_in_its_schedule():
    x, _ = data(8)
    distiller = scheduled(schedules.Linear(4.0, 0.0))
    distiller.fit(x, batch_size=8, epochs=2, verbose=0)
    history = distiller.fit(x, batch_size=8, epochs=4, initial_epoch=2, verbose=0).history
    ratio = np.array(history["distillation_loss"]) / np.array(history["logits_distillation"])
    np.testing.assert_allclose(ratio, [2, 1], atol=1e-5)


def test_schedules_count_optimizer_steps_and_not_batches():
    x, _ = data(32)
    distiller = Distiller(
        dense(6, 1, "t"), dense(3, 2, "s"), LogitsDistillation(), [schedules.Linear(4.0, 0.0)], 0.0
    )
    distiller.compile(keras.optimizers.SGD(0.0, gradient_accumulation_steps=4))
    history = distiller.fit(x, batch_size=8, epochs=4, verbose=0).history  # 4 batches, one step an epoch
    ratio = np.array(history["distillation_loss"]) / np.array(history["logits_distillation"])
    np.testing.assert_allclose(ratio, [4, 3, 2, 1], atol=1e-5)


def test_temperature_and_student_loss_weight_take_schedules():
    x, y = data(8)
    distiller = Distiller(
        dense(6, 1, "t"),
        dense(3, 2, "s"),
        LogitsDistillation(temperature=schedules.Linear(4.0, 2.0, steps=1)),
        student_loss_weight=schedules.WarmUp(1.0, steps=2),
    )
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    history = distiller.fit(x, y, batch_size=8, epochs=3, verbose=0).history
    t, s = distiller.teacher.predict(x, verbose=0), distiller.student.predict(x, verbose=0)
    for epoch, (temperature, share) in enumerate([(4.0, 0.0), (2.0, 0.5), (2.0, 1.0)]):
        soft = float(np.mean(losses.soft_target_kl(t, s, temperature=temperature)))
        assert history["distillation_loss"][epoch] == pytest.approx(soft, rel=1e-5)
        expected = share * history["student_loss"][epoch] + (1 - share) * soft
        assert history["total_loss"][epoch] == pytest.approx(expected, rel=1e-5)


def test_a_schedule_over_a_fit_of_unknown_length_is_refused():
    x, _ = data(8)
    with pytest.raises(ValueError, match="length of this data set is not known"):
        scheduled(schedules.Linear(1.0, 0.0)).fit((batch for batch in [(x,)]), verbose=0)


# Callbacks.


def test_keras_callbacks_work(tmp_path):
    x, y = data()
    distiller = Distiller(dense(6, 1, "t"), dense(3, 2, "s"), LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS, metrics=["accuracy"])
    history = distiller.fit(
        x,
        y,
        validation_data=(x, y),
        epochs=9,
        verbose=0,
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", monitor="val_total_loss", mode="min", save_best_only=True
            ),
            keras.callbacks.EarlyStopping(monitor="val_loss", patience=2, min_delta=1e-6),
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        ],
    )
    assert len(history.epoch) == 3  # nothing moves at a learning rate of 0, and patience is 2
    best = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(best.predict(x, verbose=0), distiller.predict(x, verbose=0))
    header = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert {"epoch", "total_loss", "val_total_loss", "distillation_loss", "accuracy"} <= set(header)


def test_tensorboard_gets_the_logs(tmp_path):
    pytest.importorskip("tensorboard", reason="Keras's TensorBoard callback needs the package tensorboard")
    x, y = data()
    distiller = Distiller(dense(6, 1, "t"), dense(3, 2, "s"), LogitsDistillation())
    distiller.compile("sgd", FROM_LOGITS)
    distiller.fit(x, y, verbose=0, callbacks=[keras.callbacks.TensorBoard(tmp_path / "board")])
    assert list((tmp_path / "board").rglob("events.*"))


RUN = """
import os, signal, sys
import keras, numpy as np, tensorflow as tf
from keras_kd import Distiller, schedules
from keras_kd import callbacks
from keras_kd.losses import FeatureDistillation, LogitsDistillation

directory, kill_in_epoch, whose = sys.argv[1], int(sys.argv[2]), sys.argv[4]
# Keras's own callback keeps no seed states: it is right where nothing is random.
rate, BackupAndRestore = 0.0, keras.callbacks.BackupAndRestore
if whose == "ours":
    rate, BackupAndRestore = 0.5, callbacks.BackupAndRestore
keras.utils.set_random_seed(3)
make = lambda width: keras.Sequential([keras.Input((5,)), keras.layers.Dense(width, "tanh", name="h"),
                                       keras.layers.Dropout(rate, seed=1), keras.layers.Dense(3)])
distiller = Distiller(make(6), make(4), [LogitsDistillation(), FeatureDistillation("mse", "h", "h")],
                      [schedules.Linear(1.0, 0.0), 0.5])
distiller.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
rng = np.random.default_rng(0)
x, y = rng.normal(size=(24, 5)).astype("float32"), rng.integers(0, 3, 24)

class Kill(keras.callbacks.Callback):
    epoch = -1
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == kill_in_epoch and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

distiller.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[BackupAndRestore(directory), Kill()])
np.savez(sys.argv[3], *distiller.student.get_weights(), *distiller.adapters[0].get_weights())
"""


@pytest.mark.parametrize("whose", ["ours", "keras"])
def test_a_killed_run_that_is_restarted_ends_in_the_same_weights(tmp_path, whose):
    """With an adapter, a schedule over the whole fit, and with our own callback Dropout in both networks."""
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def start(directory, kill_in_epoch, out):
        arguments = [str(tmp_path / directory), str(kill_in_epoch), str(tmp_path / out), whose]
        return subprocess.Popen([sys.executable, str(script), *arguments], stderr=subprocess.PIPE, text=True)

    whole, killed = start("whole", -1, "whole.npz"), start("resumed", 2, "resumed.npz")
    _, complaints = whole.communicate()
    assert whole.returncode == 0, complaints[-2000:]
    killed.communicate()
    assert killed.returncode == -9
    seed_states = pathlib.Path(tmp_path / "resumed" / "seed_states.npz")
    assert not (tmp_path / "resumed.npz").exists() and seed_states.exists() == (whose == "ours")
    resumed = start("resumed", -1, "resumed.npz")
    _, complaints = resumed.communicate()
    assert resumed.returncode == 0, complaints[-2000:]
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "resumed.npz") as b:
        assert a.files == b.files and len(a.files) == 6
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])
    assert not seed_states.exists()


def test_the_backup_of_another_model_is_refused(tmp_path):
    x, y = data(8)
    callback = BackupAndRestore(tmp_path)
    np.savez(callback.seed_states_path, state_0=np.zeros(2), state_1=np.zeros(2))
    distiller = Distiller(dense(6, 1, "t"), dense(3, 2, "s"), LogitsDistillation())
    distiller.compile("sgd", FROM_LOGITS)
    with pytest.raises(ValueError, match="backup of another model"):
        distiller.fit(x, y, verbose=0, callbacks=[callback])
