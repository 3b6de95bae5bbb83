"""The distillation objective on its own: plain TensorFlow tensors, no Keras model runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses, schedules
from keras_kd.errors import UnknownNameError, nearest
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.objective import DistillationObjective
from keras_kd.taps import TappedModel, tap_candidates
from keras_kd.teachers.targets import pack, unpack

RNG = np.random.default_rng(0)
T, S = RNG.normal(size=(6, 3)).astype("float32"), RNG.normal(size=(6, 3)).astype("float32")


def test_plain_tensors_inside_a_graph():
    objective = DistillationObjective(
        [LogitsDistillation(temperature=2.0), FeatureDistillation("mse", "wide", "narrow")],
        [schedules.Linear(1.0, 0.0), 0.5],
    )
    assert (objective.teacher_layer_names, objective.student_layer_names) == (("wide",), ("narrow",))
    objective.bind(teacher_feature_shapes={"wide": (None, 5)}, student_feature_shapes={"narrow": (None, 4)})
    objective.resolve(teacher_outputs_are_logits=True, student_outputs_are_logits=True)
    assert not objective.needs_probe and objective.needs_total_steps
    assert [tuple(v.shape) for v in objective.trainable_variables] == [(4, 5), (5,)]
    wide, narrow = tf.random.normal((6, 5), seed=1), tf.random.normal((6, 4), seed=2)

    @tf.function
    def step(number):
        with tf.GradientTape() as tape:
            total, values = objective(
                tf.constant(T),
                tf.constant(S),
                {"wide": wide},
                {"narrow": narrow},
                sample_weight=tf.range(6.0),
                step=number,
                total_steps=tf.constant(10.0),
            )
        return total, values, tape.gradient(total, [v.value for v in objective.trainable_variables])

    total, values, gradients = step(tf.constant(5.0))
    weights = np.arange(6.0)
    soft = (weights * np.asarray(losses.soft_target_kl(T, S, temperature=2.0))).mean()
    projected = objective.adapters["feature_distillation"](narrow)
    hint = (weights * np.asarray(losses.hint_distance(wide, projected))).mean()
    assert float(values["logits_distillation"]) == pytest.approx(soft, rel=1e-5)
    assert float(values["feature_distillation"]) == pytest.approx(hint, rel=1e-5)
    assert float(total) == pytest.approx(0.5 * soft + 0.5 * hint, rel=1e-5)
    assert all(np.abs(g.numpy()).max() > 0 for g in gradients)


def test_what_outputs_are_has_to_be_known_before_tracing():
    objective = DistillationObjective(LogitsDistillation())
    objective.bind()
    assert objective.needs_probe
    with pytest.raises(RuntimeError, match="logits or probabilities"):
        tf.function(lambda: objective(tf.constant(T), tf.constant(S)))()
    probabilities = np.asarray(keras.ops.softmax(T))
    objective.probe(probabilities, S)
    assert not objective.needs_probe
    expected = np.asarray(losses.soft_target_kl(np.log(probabilities), S, temperature=3.0)).mean()
    total, _ = tf.function(lambda: objective(tf.constant(probabilities), tf.constant(S)))()
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_names_in_the_log():
    assert DistillationObjective([LogitsDistillation(), LogitsDistillation()]).names == [
        "logits_distillation",
        "logits_distillation_1",
    ]
    assert DistillationObjective({"soft": LogitsDistillation()}, {"soft": 2.0}).weights == [2.0]
    assert DistillationObjective(LogitsDistillation(name="mine")).names == ["mine"]
    with pytest.raises(ValueError, match="'student_loss' is an entry of the log already"):
        DistillationObjective(LogitsDistillation(name="student_loss"))
    with pytest.raises(ValueError, match="no loss 'sofd'. Did you mean 'soft'".replace(".", r"\.")):
        DistillationObjective({"soft": LogitsDistillation()}, {"sofd": 2.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "cannot be None"),
        (([],), "the list is empty"),
        (([LogitsDistillation(), "soft", 3],), "2 problems"),
        (
            ([LogitsDistillation()], [1.0, 2.0]),
            r"weights \(2\) must match number of distillation_losses\s+\(1\)",
        ),
        (([LogitsDistillation()], ["heavy"]), "number 0 is 'heavy'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationObjective(*arguments)


def test_candidates_for_taps_and_their_order():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="dense")], name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.ReLU(name="relu")(inner(inputs)))
    assert tap_candidates(model) == ["inner", "inner/dense", "relu"]
    with pytest.raises(UnknownNameError, match=r"'inner/dence'.*Did you mean 'inner/dense'"):
        TappedModel(model, ["inner/dence"])


def test_a_layer_called_twice_has_a_tap_for_each_call():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    x = RNG.normal(size=(2, 4)).astype("float32")
    outputs, features = TappedModel(model, ["shared", "shared:1"])(x)
    np.testing.assert_allclose(features["shared"], shared(x), atol=1e-6)
    np.testing.assert_allclose(features["shared:1"], outputs, atol=1e-6)
    with pytest.raises(UnknownNameError, match=r"called 2 time\(s\)"):
        TappedModel(model, ["shared:2"])


def test_a_layer_that_was_taken_from_another_model():
    """Its first call belongs to the other model: the tap must show the call in this one."""
    one = keras.Input((4,))
    shared = keras.layers.Dense(3, name="shared")
    keras.Model(one, shared(one))
    other = keras.Input((4,))
    model = keras.Model(other, keras.layers.Dense(2)(shared(other * 2.0)))
    x = RNG.normal(size=(2, 4)).astype("float32")
    _, features = TappedModel(model, ["shared"])(x)
    np.testing.assert_allclose(features["shared"], shared(2 * x), atol=1e-6)


def test_targets_travel_with_the_inputs():
    packed = pack({"image": T}, {"outputs": S, "features": {"a": T}})
    inputs, targets = unpack(packed)
    assert inputs["image"] is T and targets["outputs"] is S and targets["features"]["a"] is T
    assert unpack({"image": T})[1] is None
    with pytest.raises(ValueError, match="'outputs'"):
        pack(T, {"logits": S})


def test_nearest_names():
    assert nearest("conv_1", ["conv_2", "dense"]) == " Did you mean 'conv_2'?"
    assert nearest("anything", []) == ""
    assert "and 2 more" in nearest("?", [f"layer{i}" for i in range(10)])
