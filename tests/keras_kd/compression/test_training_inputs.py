"""Everything that a Keras user may hand to compress: data in every form, Keras 3 objects of every kind."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from compressible import LOSS, X, Y, small_student

import keras_kd
import tflite_tools
from keras_kd.compression import adapt, batches


class Batched(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(10 * index, 10 * index + 10)
        return X[part], Y[part]


class LegacyBatched(tf_keras.utils.Sequence):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(10 * index, 10 * index + 10)
        return X[part], Y[part], np.ones(10, "float32")


DATASETS = {
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(10),
    "tf.data with weights": lambda: tf.data.Dataset.from_tensor_slices((X, Y, np.ones(50))).batch(10),
    "PyDataset": Batched,
    "tf_keras Sequence": LegacyBatched,
}


@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_dataset_trains(kind):
    data = DATASETS[kind]()
    compressed = keras_kd.compress(
        small_student(),
        "prune50",
        data,
        loss=LOSS,
        metrics=["accuracy"],
        validation_data=data,
        epochs=2,
        verbose=0,
    )
    assert compressed.report.layer_sparsity["b"] == 0.5
    assert len(compressed.report.history["prune"]["val_accuracy"]) == 2
    assert compressed.calibration.shape == (50, 6)


def test_a_dataset_of_unknown_length_needs_steps_per_epoch():
    data = tf.data.Dataset.from_generator(
        lambda: ((X[:10], Y[:10]) for _ in range(4)),
        output_signature=(tf.TensorSpec((None, 6), tf.float32), tf.TensorSpec((None,), tf.int64)),
    )
    with pytest.raises(ValueError, match="steps_per_epoch"):
        keras_kd.compress(small_student(), "prune50", data, loss=LOSS, verbose=0)
    compressed = keras_kd.compress(small_student(), "prune50", data, loss=LOSS, steps_per_epoch=4, verbose=0)
    assert compressed.report.layer_sparsity["b"] == 0.5


def test_labels_beside_a_dataset_are_refused():
    with pytest.raises(ValueError, match="yields its own labels"):
        keras_kd.compress(small_student(), "prune50", Batched(), Y, loss=LOSS, verbose=0)


def test_batches_depend_on_seed_and_epoch_alone():
    def order(seed, epoch):
        data = batches.training_batches(np.arange(20), None, batch_size=7, steps_per_epoch=None, seed=seed)
        assert data.steps == 3
        return np.concatenate([x.numpy() for x, _, _ in data.dataset(epoch).take(3)]).tolist()

    tf.random.set_seed(1)
    first = order(0, 0)
    tf.random.set_seed(2)
    assert order(0, 0) == first
    assert sorted(first) == list(range(20))
    assert order(1, 0) != first and order(0, 1) != first
    whole = batches.training_batches(np.arange(20), None, batch_size=7, steps_per_epoch=None, seed=0)
    both = np.concatenate([x.numpy() for x, _, _ in whole.dataset(0).take(6)]).tolist()
    assert both == order(0, 0) + order(0, 1)


def test_sample_weights_reach_the_loss():
    """With all weight on one example, training sees that example only."""
    weight = np.zeros(50, "float32")
    weight[7] = 50.0
    student = small_student()
    compressed = keras_kd.compress(
        student, "prune50@100..100", X, Y, loss=LOSS, batch_size=50, sample_weight=weight, epochs=2, verbose=0
    )
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(Y[7:8], student(X[7:8]))
    # Keras averages weight * loss over the batch: 50 * loss / 50. The masks come on in the second step.
    assert compressed.report.history["prune"]["loss"][0] == pytest.approx(float(expected), rel=1e-5)


def test_class_weight_reaches_the_loss():
    runs = [
        keras_kd.compress(
            small_student(), "prune50", X, Y, loss=LOSS, batch_size=50, class_weight=weights, verbose=0
        )
        for weights in (None, {0: 2.0, 1: 2.0, 2: 2.0})
    ]
    single, double = (run.report.history["prune"]["loss"][0] for run in runs)
    assert double == pytest.approx(2 * single, rel=1e-5)


def test_regression_with_several_outputs_and_losses_by_name():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    middle = keras.layers.Dense(16, activation="relu", name="middle")(hidden)
    model = keras.Model(
        inputs, [keras.layers.Dense(1, name="value")(middle), keras.layers.Dense(3, name="kind")(middle)]
    )
    teacher = keras.models.clone_model(model)
    compressed = keras_kd.compress(
        model,
        "prune50-int8",
        X,
        [X[:, :1], Y],
        teacher=teacher,
        distillation_losses=[
            keras_kd.losses.RegressionDistillation(output_name="value"),
            keras_kd.losses.LogitsDistillation(output_name="kind"),
        ],
        loss={"value": "mse", "kind": LOSS},
        metrics={"kind": ["accuracy"]},
        validation_data=(X, [X[:, :1], Y]),
        verbose=0,
    )
    assert compressed.report.layer_sparsity["middle"] == 0.5
    artifact = compressed.to_tflite()
    outputs = tflite_tools.predict(artifact, X)
    values = list(outputs.values()) if isinstance(outputs, dict) else list(outputs)
    assert sorted(np.asarray(v).shape for v in values) == [(50, 1), (50, 3)]
    by_name = {"value": X[:, :1], "kind": Y}
    again = keras_kd.compress(
        model,
        "prune50",
        X,
        by_name,
        loss={"value": "mse", "kind": LOSS},
        validation_data=(X, by_name),
        verbose=0,
    )
    assert again.report.history["prune"]["val_loss"][0] > 0
    with pytest.raises(ValueError, match=r"unknown outputs \['vale'\].*'value'"):
        keras_kd.compress(model, "prune50", X, [X[:, :1], Y], loss={"vale": "mse"}, verbose=0)


def test_outputs_in_a_dict_go_by_its_keys():
    """The keys are not the layers' names, and not in their order."""
    inputs = keras.Input((6,))
    middle = keras.layers.Dense(16, activation="relu", name="middle")(
        keras.layers.Dense(16, activation="relu")(inputs)
    )
    heads = {
        "value": keras.layers.Dense(1, name="a")(middle),
        "kind": keras.layers.Dense(3, name="b")(middle),
    }
    model = keras.Model(inputs, heads)
    labels = {"value": X[:, :1], "kind": Y}
    compressed = keras_kd.compress(
        model,
        "prune50-int8",
        X,
        labels,
        teacher=keras.models.clone_model(model),
        distillation_losses=[
            keras_kd.losses.RegressionDistillation(output_name="value"),
            keras_kd.losses.LogitsDistillation(output_name="kind"),
            keras_kd.losses.FeatureDistillation(teacher_layer_name="middle", student_layer_name="middle"),
        ],
        loss={"value": "mse", "kind": LOSS},
        loss_weights={"value": 0.5, "kind": 2.0},
        metrics={"kind": ["accuracy"]},
        validation_data=(X, labels),
        optimizer=keras.optimizers.SGD(0.0),
        verbose=0,
    )
    assert compressed.report.layer_sparsity["middle"] == 0.5
    # Nothing moves at a rate of 0, so the last epoch's loss is that of the kept model, quantized as it is.
    answers = tf.nest.flatten(compressed.model.predict(X, verbose=0))  # by sorted keys: kind, value
    wanted = 0.5 * np.mean((answers[1] - X[:, :1]) ** 2) + 2.0 * float(LOSS(Y, answers[0]))
    assert compressed.report.history["quantize"]["val_loss"][-1] == pytest.approx(wanted, rel=1e-3)
    assert compressed.report.history["quantize"]["distillation_loss"][-1] > 0
    found = tflite_tools.predict(compressed.to_tflite(), X)
    assert sorted(np.shape(value) for value in tf.nest.flatten(found)) == [(50, 1), (50, 3)]
    with pytest.raises(ValueError, match=r"unknown outputs \['a'\].*'value'"):
        keras_kd.compress(model, "prune50", X, labels, loss={"a": "mse"}, verbose=0)


def test_the_students_own_compile_is_used():
    student = small_student()
    student.compile(
        keras.optimizers.SGD(0.0), LOSS, metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    )
    compressed = keras_kd.compress(student, "prune50", X, Y, verbose=0)
    assert "top2" in compressed.report.history["prune"]
    # SGD with a rate of zero: what was not pruned has not moved.
    before, after = student.get_layer("b").get_weights()[0], compressed.model.get_layer("b").get_weights()[0]
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


def test_loss_weights_and_weighted_metrics_come_from_the_students_compile_too():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    middle = keras.layers.Dense(16, name="middle")(hidden)
    heads = [keras.layers.Dense(1, name=name)(middle) for name in ("left", "right")]
    model = keras.Model(inputs, heads)
    model.compile(
        keras.optimizers.SGD(0.0),
        {"left": "mse", "right": "mse"},
        loss_weights={"left": 10.0, "right": 1.0},
        weighted_metrics={"left": ["mae"]},
    )
    y = [X[:, :1], X[:, 1:2]]
    expected = model.evaluate(X, y, batch_size=50, verbose=0, return_dict=True)["loss"]
    compressed = keras_kd.compress(model, "prune50@100..100", X, y, batch_size=50, epochs=2, verbose=0)
    logs = compressed.report.history["prune"]
    assert logs["loss"][0] == pytest.approx(expected, rel=1e-5)
    assert any("mae" in name or "mean_absolute_error" in name for name in logs)


def test_a_legacy_student_and_a_legacy_teacher():
    dense = tf_keras.layers.Dense
    student, teacher = (
        tf_keras.Sequential(
            [tf_keras.layers.Input((6,)), dense(16, "relu", name="a"), dense(16, "relu", name="b"), dense(3)]
        )
        for _ in range(2)
    )
    student.compile(
        "adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    before = student.get_weights()
    losses = [keras_kd.losses.LogitsDistillation(), keras_kd.losses.FeatureDistillation("mse", "a", "a")]
    compressed = keras_kd.compress(
        student, "prune50-int8", X, Y, teacher=teacher, distillation_losses=losses, verbose=0
    )
    assert {"accuracy", "feature_distillation"} <= set(compressed.report.history["quantize"])
    for now, then in zip(student.get_weights(), before):
        np.testing.assert_array_equal(now, then)


def test_an_ensemble_teaches():
    teachers = [small_student(), small_student()]
    compressed = keras_kd.compress(small_student(), "prune50", X, Y, teacher=teachers, loss=LOSS, verbose=0)
    assert "distillation_loss" in compressed.report.history["prune"]


def test_a_learned_adapter_is_trained_and_left_behind():
    """Widths differ, so that the feature loss projects; the projection is no part of the result."""
    wide = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(40, activation="relu", name="wide"), keras.layers.Dense(3)]
    )
    losses = keras_kd.losses.FeatureDistillation("mse", "wide", "b")
    compressed = keras_kd.compress(
        small_student(),
        "prune50",
        X,
        Y,
        teacher=wide,
        distillation_losses=losses,
        epochs=30,
        loss=LOSS,
        verbose=0,
    )
    logs = compressed.report.history["prune"]["feature_distillation"]
    assert logs[-1] < 0.7 * logs[0]
    assert compressed.model.count_params() == small_student().count_params()


def test_keras_3_callbacks_are_called_and_can_stop_training():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append("begin")

        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)[:1]))

    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=1, min_delta=10.0)
    compressed = keras_kd.compress(
        small_student(),
        "int8",
        X,
        Y,
        loss=LOSS,
        metrics=["accuracy"],
        validation_data=(X, Y),
        epochs=9,
        callbacks=[Watch(), stop, tf_keras.callbacks.History()],
        verbose=0,
    )
    assert seen[0] == "begin" and seen[1][0] == 0
    assert len(compressed.report.history["quantize"]["loss"]) == 2


def test_a_learning_rate_callback_reaches_the_tf_keras_optimizer():
    rates = []
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates.append(rate) or rate / 2)
    keras_kd.compress(
        small_student(),
        "prune50",
        X,
        Y,
        loss=LOSS,
        optimizer=keras.optimizers.SGD(0.4),
        epochs=3,
        callbacks=[schedule],
        verbose=0,
    )
    assert rates == pytest.approx([0.4, 0.2, 0.1])


def test_callbacks_that_cannot_work_are_all_named():
    with pytest.raises(ValueError) as error:
        adapt.adapt_callbacks(
            [
                keras.callbacks.TensorBoard(),
                keras.callbacks.BackupAndRestore("x.weights.h5"),
                keras.callbacks.EarlyStopping("val_taste"),
                "no callback",
            ]
        )
    for word in ("TensorBoard", "BackupAndRestore", "val_taste", "mode='max'", "str is no callback"):
        assert word in str(error.value)


def test_a_subclassed_or_unbuilt_student_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    for student in (Own(), keras.Sequential([keras.layers.Dense(2)]), "student.keras"):
        with pytest.raises((ValueError, TypeError)):
            keras_kd.compress(student, "prune50", X, Y, loss=LOSS, verbose=0)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_a_teacher_cache_teaches_what_the_teacher_would(form, tmp_path):
    teacher = small_student()
    cache = keras_kd.TeacherCache.build(teacher, X, tmp_path / "cache", layers=("b",), dtype="float32")
    losses = [keras_kd.losses.LogitsDistillation(), keras_kd.losses.FeatureDistillation("mse", "b", "b")]
    # One batch holds all examples, so that the order in which they come does not matter.
    common = {"distillation_losses": losses, "loss": LOSS, "batch_size": 50, "verbose": 0}
    data = (X, Y) if form == "arrays" else (cache.dataset(X, Y, batch_size=50),)
    cached = keras_kd.compress(small_student(), "prune50-int8", *data, teacher=cache, **common)
    asked = keras_kd.compress(small_student(), "prune50-int8", X, Y, teacher=teacher, **common)
    for phase, logs in asked.report.history.items():
        for name, values in logs.items():
            # Sums over the batch in another order.
            np.testing.assert_allclose(cached.report.history[phase][name], values, rtol=1e-3, atol=1e-6)
    assert cached.calibration.shape == (50, 6)


def test_a_cache_without_its_dataset_is_refused(tmp_path):
    cache = keras_kd.TeacherCache.build(small_student(), X, tmp_path / "cache")
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    with pytest.raises(ValueError, match=r"cache\.dataset"):
        keras_kd.compress(small_student(), "prune50", plain, teacher=cache, loss=LOSS, verbose=0)
