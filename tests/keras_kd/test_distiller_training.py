"""What a training step computes, against NumPy, and how often it runs the two networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import Distiller, losses
from keras_kd.losses import FeatureDistillation, LogitsDistillation

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(examples=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, 5)).astype("float32"), rng.integers(0, 3, examples)


def dense(width, *, seed, name, classes=3, **kwargs):
    init = lambda offset: keras.initializers.GlorotUniform(seed=seed + offset)  # noqa: E731
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(width, "tanh", name="hidden", kernel_initializer=init(0), **kwargs),
            keras.layers.Dense(classes, name="logits", kernel_initializer=init(1)),
        ],
        name=name,
    )


def pair():
    return dense(8, seed=1, name="teacher"), dense(4, seed=11, name="student")


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(teacher, student, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * np.sum(p * (np.log(p) - np.log(q)), -1)


def crossentropy(labels, logits):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def forward(model, x):
    return np.asarray(model(x, training=False), dtype="float64")


def test_logs_are_the_formula_on_the_whole_batch():
    x, y = data()
    teacher, student = pair()
    distiller = Distiller(
        teacher,
        student,
        [LogitsDistillation(temperature=4.0), losses.RegressionDistillation(name="values")],
        [2.0, 0.5],
        student_loss_weight=0.3,
    )
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS, metrics=["accuracy"])
    logs = {key: values[0] for key, values in distiller.fit(x, y, batch_size=24, verbose=0).history.items()}
    t, s = forward(teacher, x), forward(student, x)
    soft, values, hard = kl(t, s, 4.0).mean(), ((t - s) ** 2).mean(), crossentropy(y, s).mean()
    # float32 sums of a few hundred terms of order 1: relative errors near 1e-6.
    assert logs["logits_distillation"] == pytest.approx(soft, rel=1e-5)
    assert logs["values"] == pytest.approx(values, rel=1e-5)
    assert logs["student_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["distillation_loss"] == pytest.approx(2 * soft + 0.5 * values, rel=1e-5)
    assert logs["total_loss"] == pytest.approx(0.3 * hard + 0.7 * (2 * soft + 0.5 * values), rel=1e-5)
    assert logs["loss"] == logs["total_loss"]
    assert logs["accuracy"] == pytest.approx(np.mean(s.argmax(-1) == y), abs=1e-6)
    assert set(logs) == {
        "loss",
        "total_loss",
        "student_loss",
        "distillation_loss",
        "logits_distillation",
        "values",
        "accuracy",
    }


def test_a_step_of_sgd_is_the_gradient_of_soft_targets_alone():
    """Of the last bias the gradient is T (q - p), averaged over the batch."""
    x, _ = data()
    teacher, student = pair()
    before = student.get_layer("logits").bias.numpy()
    t, s = forward(teacher, x), forward(student, x)
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=2.0), student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(1.0))
    distiller.fit(x, batch_size=24, verbose=0)
    gradient = (2.0 * (softmax(s / 2) - softmax(t / 2))).mean(0)
    np.testing.assert_allclose(student.get_layer("logits").bias.numpy(), before - gradient, atol=1e-6)


@pytest.mark.parametrize("weight", [1, 0, 0.25])
def test_sample_weights_weight_both_losses_as_keras_does(weight):
    x, y = data()
    sample_weight = np.linspace(0.0, 3.0, len(x))
    teacher, student = pair()
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=weight)
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    logs = distiller.fit(x, y, sample_weight=sample_weight, batch_size=24, verbose=0).history
    t, s = forward(teacher, x), forward(student, x)
    hard, soft = (sample_weight * crossentropy(y, s)).mean(), (sample_weight * kl(t, s, 3.0)).mean()
    assert logs["total_loss"][0] == pytest.approx(weight * hard + (1 - weight) * soft, rel=1e-5)


def test_class_weights_reach_the_distillation_loss():
    x, y = data()
    teacher, student = pair()
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    class_weight = {0: 1.0, 1: 0.0, 2: 5.0}
    logs = distiller.fit(x, y, class_weight=class_weight, batch_size=24, verbose=0).history
    weights = np.array([class_weight[label] for label in y])
    expected = (weights * kl(forward(teacher, x), forward(student, x), 3.0)).mean()
    assert logs["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_batch_losses_say_once_that_they_take_no_weights():
    x, y = data()
    teacher, student = pair()
    distiller = Distiller(teacher, student, losses.CorrelationDistillation())
    distiller.compile("sgd", FROM_LOGITS)
    with pytest.warns(UserWarning, match="cannot take\\s+sample weights") as caught:
        distiller.fit(x, y, sample_weight=np.ones(24), epochs=2, batch_size=8, verbose=0)
    assert len([w for w in caught if "sample weights" in str(w.message)]) == 1


@keras.saving.register_keras_serializable("test_distiller_training")
class Counter(keras.layers.Layer):
    """Passes its input on and counts its calls inside the compiled step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs

    def compute_output_shape(self, shape):
        return shape


def counted(width, name):
    counter = Counter()
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(width, name="first"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(name="relu"),
        counter,
        keras.layers.Dense(3, name="logits"),
    ]
    return keras.Sequential(layers, name=name), counter


@pytest.mark.parametrize("functional", [False, True])
def test_one_forward_pass_of_each_network_a_step_however_many_losses(functional):
    x, y = data()
    (teacher, teacher_calls), (student, student_calls) = counted(6, "teacher"), counted(4, "student")
    if functional:  # nested, so that the graph has to be retraced
        inputs = keras.Input((5,))
        student = keras.Model(inputs, student(inputs))
    prefix = "student/" if functional else ""
    distiller = Distiller(
        teacher,
        student,
        [
            LogitsDistillation(),
            losses.CorrelationDistillation(),
            FeatureDistillation("mse", "first", f"{prefix}first"),
            FeatureDistillation("mse", "relu", f"{prefix}relu"),
            losses.SimilarityPreserving("relu", f"{prefix}first"),
        ],
    )
    distiller.compile("sgd", FROM_LOGITS)
    teacher_calls.calls.assign(0.0)
    student_calls.calls.assign(0.0)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)  # 6 steps
    assert (float(teacher_calls.calls), float(student_calls.calls)) == (6.0, 6.0)


def test_evaluate_and_predict_run_no_teacher_and_update_no_statistics():
    x, y = data()
    (teacher, teacher_calls), (student, student_calls) = counted(6, "teacher"), counted(4, "student")
    distiller = Distiller(teacher, student, FeatureDistillation("mse", "first", "first"))
    distiller.compile("sgd", FROM_LOGITS, metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    teacher_calls.calls.assign(0.0)
    student_calls.calls.assign(0.0)
    before = [v.numpy() for v in student.get_layer("norm").variables]
    logs = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    predicted = distiller.predict(x, batch_size=8, verbose=0)
    for old, new in zip(before, student.get_layer("norm").variables):
        np.testing.assert_array_equal(old, new.numpy())
    assert (float(teacher_calls.calls), float(student_calls.calls)) == (0.0, 6.0)
    s = forward(student, x)
    np.testing.assert_allclose(predicted, s, atol=1e-6)
    assert set(logs) == {"loss", "total_loss", "student_loss", "accuracy"}
    assert logs["total_loss"] == logs["student_loss"] == pytest.approx(crossentropy(y, s).mean(), rel=1e-5)


def test_evaluate_distillation_measures_the_whole_total():
    x, y = data()
    teacher, student = pair()
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.3)
    distiller.compile("sgd", FROM_LOGITS, evaluate_distillation=True)
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    t, s = forward(teacher, x), forward(student, x)
    expected = 0.3 * crossentropy(y, s).mean() + 0.7 * kl(t, s, 3.0).mean()
    assert history["val_total_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["val_distillation_loss"][0] == pytest.approx(kl(t, s, 3.0).mean(), rel=1e-5)
    assert "val_logits_distillation" in history


def test_validation_logs_leave_out_what_was_not_measured():
    x, y = data()
    distiller = Distiller(*pair(), LogitsDistillation())
    distiller.compile("sgd", FROM_LOGITS, metrics=["accuracy"])
    history = distiller.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    assert {key for key in history if key.startswith("val_")} == {
        "val_loss",
        "val_total_loss",
        "val_student_loss",
        "val_accuracy",
    }
    assert history["val_total_loss"] == history["val_student_loss"] == history["val_loss"]
    assert "distillation_loss" in history  # validation does not hide what training measured


def test_the_teacher_is_the_same_bit_for_bit():
    x, y = data()
    (teacher, _), (student, _) = counted(6, "teacher"), counted(4, "student")
    teacher.compile("sgd", FROM_LOGITS)
    teacher.fit(x, y, verbose=0)  # statistics that a training-mode pass would move
    weights = {w.path: w.numpy() for w in teacher.weights if "calls" not in w.path}
    distiller = Distiller(
        teacher, student, [LogitsDistillation(), FeatureDistillation("mse", "relu", "relu")]
    )
    assert teacher.trainable is False and distiller.teacher is teacher
    distiller.compile("adam", FROM_LOGITS)
    distiller.fit(x, y, epochs=2, verbose=0)
    for weight in teacher.weights:
        if "calls" not in weight.path:
            np.testing.assert_array_equal(weights[weight.path], weight.numpy())


def test_no_labels_at_all():
    x, _ = data()
    teacher, student = pair()
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0)
    distiller.compile("adam")
    history = distiller.fit(x, epochs=20, batch_size=8, verbose=0).history
    assert history["total_loss"][-1] < history["total_loss"][0]
    assert set(history) == {"loss", "total_loss", "distillation_loss", "logits_distillation"}
    np.testing.assert_array_equal(history["total_loss"], history["distillation_loss"])


def test_no_labels_in_a_data_set():
    x, _ = data()
    results = []
    for arguments in (
        {"x": x, "batch_size": 8, "shuffle": False},
        {"x": tf.data.Dataset.from_tensor_slices(x).batch(8)},
        {"x": tf.data.Dataset.from_tensor_slices((x,)).batch(8)},
    ):
        teacher, student = pair()
        distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0)
        distiller.compile(keras.optimizers.SGD(0.1))
        distiller.fit(**arguments, verbose=0)
        results.append(student.get_weights())
    for weights in results[1:]:
        for expected, actual in zip(results[0], weights, strict=True):
            np.testing.assert_allclose(expected, actual, atol=1e-6)


def test_labels_that_are_missing_and_needed_are_asked_for():
    x, _ = data()
    with pytest.raises(ValueError, match="'loss' cannot be None"):
        Distiller(*pair(), LogitsDistillation()).compile("adam")
    distiller = Distiller(*pair(), LogitsDistillation())
    distiller.compile("adam", FROM_LOGITS)
    with pytest.raises(ValueError, match="no labels"):
        distiller.fit(x, verbose=0)
    distiller = Distiller(*pair(), losses.DecoupledDistillation(), student_loss_weight=0)
    distiller.compile("adam")
    with pytest.raises(ValueError, match="DecoupledDistillation needs labels"):
        distiller.fit(x, verbose=0)


def test_regularizers_and_add_loss_keep_their_strength():
    @keras.saving.register_keras_serializable("test_distiller_training")
    class Penalty(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(0.25 * keras.ops.mean(inputs * inputs))
            return inputs

    x, y = data()
    teacher = dense(8, seed=1, name="teacher", kernel_regularizer="l2")
    student = keras.Sequential(
        [keras.Input((5,)), Penalty(), keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))]
    )
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.25)
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    logs = distiller.fit(x, y, batch_size=24, verbose=0).history
    expected = 0.25 * (x.astype("float64") ** 2).mean() + 0.1 * (student.layers[-1].kernel.numpy() ** 2).sum()
    mixture = 0.25 * logs["student_loss"][0] + 0.75 * logs["distillation_loss"][0]
    assert logs["total_loss"][0] - mixture == pytest.approx(expected, rel=1e-4)
    assert logs["student_loss"][0] == pytest.approx(crossentropy(y, forward(student, x)).mean(), rel=1e-5)
    alone = keras.models.clone_model(student)
    alone.set_weights(student.get_weights())
    alone.compile("sgd", FROM_LOGITS)
    ours = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert ours["loss"] == pytest.approx(alone.evaluate(x, y, verbose=0), rel=1e-5)


def test_weight_one_is_plain_training():
    x, y = data()
    alone = dense(4, seed=11, name="student", kernel_regularizer="l2")
    alone.compile(keras.optimizers.Adam(0.01), FROM_LOGITS)
    plain = alone.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    teacher, student = pair()[0], dense(4, seed=11, name="student", kernel_regularizer="l2")
    distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=1)
    distiller.compile(keras.optimizers.Adam(0.01), FROM_LOGITS)
    ours = distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(ours["loss"], plain["loss"], rtol=1e-6)
    for a, b in zip(alone.weights, student.weights):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)


def test_gradient_accumulation_equals_the_large_batch():
    x, y = data(32)
    results = []
    for batch, accumulation in ((16, None), (4, 4)):
        teacher, student = pair()
        distiller = Distiller(teacher, student, [LogitsDistillation(), losses.RegressionDistillation()])
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulation)
        distiller.compile(optimizer, FROM_LOGITS)
        distiller.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
        results.append(student.get_weights())
    for large, accumulated in zip(*results):
        # The same sum in another order.
        np.testing.assert_allclose(large, accumulated, atol=1e-6)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.x[index * 8 : index * 8 + 8], self.y[index * 8 : index * 8 + 8]


def test_all_kinds_of_data_give_the_same_weights():
    x, y = data()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    forms = {
        "numpy": {"x": x, "y": y, "batch_size": 8, "shuffle": False},
        "tf.data": {"x": dataset},
        "PyDataset": {"x": Batches(x, y), "shuffle": False},
        "generator": {"x": ((x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16))},
    }
    results = {}
    for name, arguments in forms.items():
        teacher = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(3), keras.layers.Lambda(lambda z: z * 1.0)]
        )
        teacher.set_weights([np.ones((5, 3), "float32"), np.arange(3, dtype="float32")])
        student = pair()[1]
        distiller = Distiller(teacher, student, LogitsDistillation())  # the Lambda asks for a look at a batch
        distiller.compile(keras.optimizers.SGD(0.1), FROM_LOGITS)
        distiller.fit(**arguments, verbose=0)
        results[name] = student.get_weights()
    for weights in results.values():
        for expected, actual in zip(results["numpy"], weights):
            np.testing.assert_allclose(expected, actual, atol=1e-6)


def test_steps_per_execution_gives_the_same_weights():
    x, y = data()
    results = []
    for steps in (1, 3):
        teacher, student = pair()
        distiller = Distiller(teacher, student, LogitsDistillation())
        distiller.compile(keras.optimizers.SGD(0.1), FROM_LOGITS, steps_per_execution=steps)
        distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        results.append(student.get_weights())
    for one, three in zip(*results):
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_as_many_traces_as_plain_training_and_none_after_the_first_step():
    x, y = data(20)  # batches of 8, 8 and 4

    def traces(model):
        counted = {"traces": 0}
        original = model.train_step

        def step(batch):
            counted["traces"] += 1
            return original(batch)

        model.train_step = step
        model.compile("sgd", FROM_LOGITS)
        model.fit(x, y, batch_size=8, epochs=1, verbose=0)
        after_first_fit = counted["traces"]
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return after_first_fit, counted["traces"]

    plain = traces(pair()[1])
    ours = traces(Distiller(*pair(), [LogitsDistillation(), FeatureDistillation("mse", "hidden", "hidden")]))
    assert ours == plain
    assert ours[0] == ours[1]


def test_jit_compile_warns_on_a_cpu_and_works():
    x, y = data()
    distiller = Distiller(*pair(), LogitsDistillation())
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("a warning about CPUs, on a machine with a GPU")
    with pytest.warns(UserWarning, match="jit_compile=True on a machine without a GPU"):
        distiller.compile("sgd", FROM_LOGITS, jit_compile=True)
    assert np.isfinite(distiller.fit(x, y, batch_size=8, verbose=0).history["loss"][0])
    quiet = Distiller(*pair(), LogitsDistillation())
    quiet.compile("sgd", FROM_LOGITS)
    assert quiet.jit_compile is False


def test_a_subclass_with_its_own_compute_loss_is_obeyed():
    class Scaled(Distiller):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 0.0 * super().compute_loss(x, y, y_pred, sample_weight, training)

    x, y = data()
    teacher, student = pair()
    before = student.get_weights()
    distiller = Scaled(teacher, student, LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(1.0), FROM_LOGITS)
    distiller.fit(x, y, verbose=0)
    for old, new in zip(before, student.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_loss_of_the_users_own_as_keras_describes_it():
    class Cosine(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return 1.0 + keras.ops.mean(keras.losses.cosine_similarity(teacher_outputs, student_outputs))

    x, y = data()
    teacher, student = pair()
    distiller = Distiller(teacher, student, Cosine(), student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    logs = distiller.fit(x, y, verbose=0, batch_size=24).history
    t, s = forward(teacher, x), forward(student, x)
    cosine = (t * s).sum(-1) / np.linalg.norm(t, axis=-1) / np.linalg.norm(s, axis=-1)
    assert logs["cosine"][0] == pytest.approx(1 - cosine.mean(), rel=1e-5)


def test_the_losses_of_keras_itself_work_too():
    x, y = data()
    teacher, student = pair()[0], dense(8, seed=11, name="student")
    theirs = keras.distillation
    distiller = Distiller(
        teacher,
        student,
        [
            theirs.LogitsDistillation(temperature=2.0, loss=keras.losses.KLDivergence()),
            theirs.FeatureDistillation("mse", teacher_layer_name="hidden", student_layer_name="hidden"),
        ],
    )
    distiller.compile(keras.optimizers.SGD(0.0), FROM_LOGITS)
    logs = distiller.fit(x, y, batch_size=24, verbose=0).history
    assert logs["logits_distillation"][0] == pytest.approx(
        kl(forward(teacher, x), forward(student, x), 2.0).mean(), rel=1e-4
    )
    hidden = [np.asarray(model.get_layer("hidden")(x), "float64") for model in (teacher, student)]
    assert logs["feature_distillation"][0] == pytest.approx(((hidden[0] - hidden[1]) ** 2).mean(), rel=1e-4)
