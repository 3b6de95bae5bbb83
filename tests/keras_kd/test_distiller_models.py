"""The models a Distiller takes: logits or probabilities, several outputs, masks, taps."""

import keras
import numpy as np
import pytest
from distiller_pairs import FROM_LOGITS, RNG, X, Y, dense, kl, softmax, train
from keras import layers

from keras_kd import Distiller, losses
from keras_kd.errors import TapError, UnknownNameError
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.taps import TappedModel, tap_candidates

# Logits or probabilities.


class Subclassed(keras.Model):
    def __init__(self, seed, activation=None):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.dense = layers.Dense(3, activation)

    def call(self, inputs):
        return self.dense(inputs)


def activated_elsewhere(seed):
    """A softmax that no activation attribute shows."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(3)(inputs)))


class SoftmaxOutside(keras.Model):
    """A Functional model of logits whose class returns probabilities."""

    def call(self, inputs, training=None, mask=None):
        return keras.ops.softmax(super().call(inputs, training=training, mask=mask))


def logits_behind_a_call_of_its_own(seed):
    graph = dense(6, seed)
    return SoftmaxOutside(graph.inputs[0], graph.outputs[0])


SOFTMAX_TEACHERS = {
    "activation of the last layer": lambda: dense(6, 1, activation="softmax"),
    "Softmax layer": lambda: keras.Sequential([dense(6, 1), layers.Softmax()]),
    "Activation layer, reshaped": lambda: keras.Sequential(
        [dense(6, 1), layers.Activation("softmax"), layers.Reshape((3,))]
    ),
    "an operation": lambda: activated_elsewhere(1),
    "subclassed": lambda: Subclassed(1, "softmax"),
    "nested": lambda: keras.Sequential([keras.Input((5,)), dense(6, 1, activation="softmax")]),
    "a call of its own": lambda: logits_behind_a_call_of_its_own(1),
}


@pytest.mark.parametrize("make", SOFTMAX_TEACHERS.values(), ids=SOFTMAX_TEACHERS.keys())
def test_a_softmax_teacher_is_seen_and_its_probabilities_are_taken_for_what_they_are(make):
    teacher, student = make(), dense(4, 2)
    logs = train(Distiller(teacher, student, LogitsDistillation(temperature=2.0)))
    log_p = np.log(np.asarray(teacher(X), "float64"))
    expected = 4 * kl(softmax(log_p, 2), softmax(np.asarray(student(X), "float64"), 2)).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda: dense(6, 1), lambda: Subclassed(1), lambda: dense(6, 1, activation="relu")]
)
def test_logits_are_left_alone(make):
    teacher, student = make(), Subclassed(2)
    logs = train(Distiller(teacher, student, LogitsDistillation(temperature=2.0)))
    t, s = np.asarray(teacher(X), "float64"), np.asarray(student(X), "float64")
    assert logs["distillation_loss"] == pytest.approx(4 * kl(softmax(t, 2), softmax(s, 2)).mean(), rel=1e-4)


def test_from_logits_overrides_for_teacher_and_student_apart():
    teacher, student = Subclassed(1, "softmax"), dense(4, 2)
    logs = train(Distiller(teacher, student, LogitsDistillation(temperature=2.0, from_logits=(True, True))))
    t, s = np.asarray(teacher(X), "float64"), np.asarray(student(X), "float64")
    assert logs["distillation_loss"] == pytest.approx(4 * kl(softmax(t, 2), softmax(s, 2)).mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:The student")
@pytest.mark.parametrize("make", [lambda: dense(4, 2, activation="softmax"), lambda: activated_elsewhere(2)])
def test_a_softmax_student_under_a_teacher_of_logits(make):
    teacher, student = dense(6, 1), make()
    logs = train(
        Distiller(teacher, student, LogitsDistillation(temperature=2.0)),
        loss="sparse_categorical_crossentropy",
    )
    t, log_q = np.asarray(teacher(X), "float64"), np.log(np.asarray(student(X), "float64"))
    assert logs["distillation_loss"] == pytest.approx(
        4 * kl(softmax(t, 2), softmax(log_q, 2)).mean(), rel=1e-4
    )


def test_a_label_loss_that_takes_logits_for_probabilities_is_warned_about():
    distiller = Distiller(dense(6, 1), dense(4, 2), LogitsDistillation())
    with pytest.warns(UserWarning, match="ends in logits"):
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    distiller = Distiller(dense(6, 1), dense(4, 2, activation="softmax"), LogitsDistillation())
    with pytest.warns(UserWarning, match="loses those that round to zero"):
        distiller.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="takes them for logits"):
        distiller.compile("sgd", FROM_LOGITS)


# Several outputs, masks, other tasks.


def two_headed(width, seed, *, as_dict):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    hidden = layers.Dense(width, "tanh")(inputs)
    kind, place = layers.Dense(3, name="kind")(hidden), layers.Dense(2, name="place")(hidden)
    return keras.Model(inputs, {"kind": kind, "place": place} if as_dict else [kind, place])


@pytest.mark.parametrize("as_dict", [True, False])
def test_a_loss_for_each_output(as_dict):
    teacher, student = two_headed(8, 1, as_dict=as_dict), two_headed(4, 2, as_dict=as_dict)
    place = RNG.normal(size=(24, 2)).astype("float32")
    y = {"kind": Y, "place": place} if as_dict else [Y, place]
    loss = {"kind": FROM_LOGITS, "place": "mse"} if as_dict else [FROM_LOGITS, "mse"]
    distiller = Distiller(
        teacher,
        student,
        [
            LogitsDistillation(temperature=2.0, output_name="kind", name="soft"),
            losses.RegressionDistillation(output_name="place", name="follow"),
            losses.NormalizedDistillation(output_name="kind", name="normalized"),
        ],
    )
    logs = train(distiller, y=y, loss=loss)
    flat = lambda outputs: [np.asarray(o, "float64") for o in keras.tree.flatten(outputs)]  # noqa: E731
    (t_kind, t_place), (s_kind, s_place) = flat(teacher(X)), flat(student(X))
    assert logs["soft"] == pytest.approx(4 * kl(softmax(t_kind, 2), softmax(s_kind, 2)).mean(), rel=1e-4)
    assert logs["follow"] == pytest.approx(((t_place - s_place) ** 2).mean(), rel=1e-4)
    expected = np.asarray(losses.normalized_kd(t_kind, s_kind, Y)).mean()
    assert logs["normalized"] == pytest.approx(expected, rel=1e-4)
    evaluated = distiller.evaluate(X, y, verbose=0, return_dict=True)
    assert evaluated["student_loss"] == pytest.approx(logs["student_loss"], rel=1e-5)
    metrics = {"kind": ["accuracy"], "place": ["mae"]} if as_dict else [["accuracy"], ["mae"]]
    distiller.compile(keras.optimizers.SGD(0.0), loss, metrics)
    measured = distiller.evaluate(X, y, verbose=0, return_dict=True)
    assert measured["kind_accuracy"] == pytest.approx(np.mean(s_kind.argmax(-1) == Y), abs=1e-6)
    assert measured["place_mae"] == pytest.approx(np.abs(s_place - place).mean(), rel=1e-5)


def test_a_head_of_a_detector_by_its_name():
    """Anchors' class logits [batch, height, width, anchors, classes] beside their boxes."""

    def detector(width, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4, 4, 1))
        hidden = layers.Conv2D(width, 3, padding="same", activation="relu")(inputs)
        classes = layers.Reshape((4, 4, 2, 3), name="classes")(layers.Conv2D(6, 1)(hidden))
        return keras.Model(inputs, {"classes": classes, "boxes": layers.Conv2D(8, 1, name="boxes")(hidden)})

    teacher, student = detector(6, 1), detector(3, 2)
    x = RNG.normal(size=(5, 4, 4, 1)).astype("float32")
    heads = [
        LogitsDistillation(temperature=2.0, output_name="classes", name="soft"),
        losses.RegressionDistillation("mae", output_name="boxes", name="follow"),
    ]
    logs = train(Distiller(teacher, student, heads, student_loss_weight=0), x, None, None)
    t, s = ({key: np.asarray(v, "float64") for key, v in model(x).items()} for model in (teacher, student))
    expected = 4 * kl(softmax(t["classes"], 2), softmax(s["classes"], 2)).mean()
    assert logs["soft"] == pytest.approx(expected, rel=1e-4)
    assert logs["follow"] == pytest.approx(np.abs(t["boxes"] - s["boxes"]).mean(), rel=1e-4)


def test_nested_losses_skip_an_output_as_in_keras():
    teacher, student = two_headed(8, 1, as_dict=False), two_headed(4, 2, as_dict=False)
    loss = LogitsDistillation(temperature=2.0, loss=["kl_divergence", None])
    logs = train(Distiller(teacher, student, loss, student_loss_weight=0), y=None, loss=None)
    t, s = np.asarray(teacher(X)[0], "float64"), np.asarray(student(X)[0], "float64")
    assert logs["total_loss"] == pytest.approx(4 * kl(softmax(t, 2), softmax(s, 2)).mean(), rel=1e-4)


def test_several_outputs_and_one_loss_is_an_error_that_says_what_to_do():
    distiller = Distiller(
        two_headed(8, 1, as_dict=False), two_headed(4, 2, as_dict=False), LogitsDistillation(), None, 0
    )
    with pytest.raises(ValueError, match="output_name="):
        train(distiller, y=None, loss=None)


def test_an_output_that_does_not_exist_is_named_with_the_nearest():
    distiller = Distiller(
        two_headed(8, 1, as_dict=True),
        two_headed(4, 2, as_dict=True),
        LogitsDistillation(output_name="kinds"),
        None,
        0,
    )
    with pytest.raises(UnknownNameError, match=r"no output 'kinds'\. Did you mean 'kind'"):
        train(distiller, y=None, loss=None)


def test_segmentation_logits_average_over_pixels():
    make = lambda seed, width: keras.Sequential(  # noqa: E731
        [keras.Input((4, 4, 1)), layers.Conv2D(width, 3, padding="same"), layers.Conv2D(3, 1)]
    )
    teacher, student = make(1, 6), make(2, 3)
    x, y = RNG.normal(size=(6, 4, 4, 1)).astype("float32"), RNG.integers(0, 3, (6, 4, 4))
    logs = train(Distiller(teacher, student, LogitsDistillation(temperature=2.0)), x, y)
    t, s = np.asarray(teacher(x), "float64"), np.asarray(student(x), "float64")
    assert logs["distillation_loss"] == pytest.approx(4 * kl(softmax(t, 2), softmax(s, 2)).mean(), rel=1e-4)


def test_masked_time_steps_do_not_count():
    def make(seed, width):
        keras.utils.set_random_seed(seed)
        stack = [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(9, width, keras.initializers.RandomNormal(stddev=2.0), mask_zero=True),
            layers.Dense(3),
        ]
        return keras.Sequential(stack)

    teacher, student = make(1, 6), make(2, 4)
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]])
    logs = train(Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0), x, None, None)
    t, s = np.asarray(teacher(x), "float64"), np.asarray(student(x), "float64")
    each = 9 * kl(softmax(t, 3), softmax(s, 3))
    expected = (each[0, :3].mean() + each[1].mean()) / 2
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


def test_sigmoid_heads():
    teacher, student = dense(6, 1, activation="sigmoid"), dense(4, 2)
    y = RNG.integers(0, 2, (24, 3)).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    logs = train(Distiller(teacher, student, losses.BinaryLogitsDistillation()), y=y, loss=loss)
    p, z = np.asarray(teacher(X), "float64"), np.asarray(student(X), "float64")
    expected = (np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0) - p * z).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)


# Taps.


def nested(width, seed, name):
    keras.utils.set_random_seed(seed)
    inner = keras.Input((8, 8, 4))
    block = layers.Conv2D(width, 3, padding="same", name="conv")(inner)
    block = layers.Add(name="block_3_add")([block, block])
    backbone = keras.Model(inner, layers.ReLU(name="relu")(block), name="backbone")
    inputs = keras.Input((8, 8, 1))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    pooled = layers.GlobalAveragePooling2D(name="pool")(backbone(stem))
    return keras.Model(inputs, layers.Dense(3, name="last")(pooled * 2.0), name=name)


def test_taps_reach_into_nested_models():
    teacher, student = nested(6, 1, "teacher"), nested(6, 2, "student")
    x, y = RNG.normal(size=(8, 8, 8, 1)).astype("float32"), RNG.integers(0, 3, 8)
    of_teacher, of_student = (
        [name for name in tap_candidates(model) if name.startswith("multiply")]
        for model in (teacher, student)
    )
    distiller = Distiller(
        teacher,
        student,
        [
            FeatureDistillation("mse", "backbone/block_3_add", "backbone/block_3_add", name="inside"),
            FeatureDistillation("mse", *of_teacher, *of_student, name="operation"),
        ],
    )
    logs = train(distiller, x, y)
    inside, operation = [], []
    for model in (teacher, student):
        stem = model.get_layer("stem")(x)
        backbone = model.get_layer("backbone")
        inside.append(2 * np.asarray(backbone.get_layer("conv")(stem), "float64"))
        operation.append(2 * np.asarray(backbone(stem), "float64").mean((1, 2)))
    assert logs["inside"] == pytest.approx(((inside[0] - inside[1]) ** 2).mean(), rel=1e-4)
    assert logs["operation"] == pytest.approx(((operation[0] - operation[1]) ** 2).mean(), rel=1e-4)


def test_everything_that_is_wrong_with_taps_comes_in_one_message():
    with pytest.raises(ValueError) as caught:
        Distiller(
            nested(6, 1, "teacher"),
            nested(4, 2, "student"),
            [
                FeatureDistillation("mse", "backbone/block_4_add", "pool"),
                FeatureDistillation("mse", "pool", "pol"),
            ],
        )
    message = str(caught.value)
    assert "2 problems" in message
    assert "no layer 'backbone/block_4_add'" in message and "Did you mean 'backbone/block_3_add'" in message
    assert "no layer 'pol'" in message and "Did you mean 'pool'" in message


def test_a_tap_into_a_subclassed_model_says_why_it_cannot_be():
    teacher = Subclassed(1)
    teacher(X)
    with pytest.raises(ValueError, match="subclassed model, whose layers are called by Python code"):
        Distiller(teacher, dense(4, 2), FeatureDistillation("mse", "dense", "hidden"))
    with pytest.raises(TapError, match=r"SoftmaxOutside\.call"):
        TappedModel(logits_behind_a_call_of_its_own(1), ["hidden"])
    inputs = keras.Input((5,))
    around = keras.Model(inputs, layers.Dense(2)(Subclassed(1)(inputs)))
    with pytest.raises(TapError, match=r"nested model 'subclassed.*' is a subclassed model"):
        TappedModel(around, [f"{around.layers[1].name}/dense"])
    with pytest.raises(TapError, match="not been built"):
        TappedModel(keras.Sequential([layers.Dense(3, name="a")]), ["a"])


def test_widths_that_differ_without_an_adapter_are_refused_before_training():
    teacher, student = dense(6, 1), dense(4, 2)
    with pytest.raises(ValueError, match=r"\(None, 6\).*\(None, 4\)"):
        Distiller(teacher, student, FeatureDistillation("mse", "hidden", "hidden", adapter=None))
    with pytest.raises(ValueError, match=r"\(None, 3\).*\(None, 4\)"):
        Distiller(dense(6, 1), keras.Sequential([keras.Input((5,)), layers.Dense(4)]), LogitsDistillation())
