"""Every loss at once: gradients, extreme numbers, half precision, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses
from keras_kd.errors import ShapeMismatchError
from keras_kd.losses.tensors import average_pool_to

RNG = np.random.default_rng(5)


def values(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), "float64")


LABELS = np.array([0, 2, 1])
LOGITS = {
    "soft_target_kl": lambda t, s: losses.soft_target_kl(t, s, temperature=2.0),
    "soft_target_kl standardized": lambda t, s: losses.soft_target_kl(t, s, standardize=True),
    "soft_target_crossentropy": lambda t, s: losses.soft_target_crossentropy(t, s, temperature=2.0),
    "decoupled_kl": lambda t, s: losses.decoupled_kl(t, s, LABELS),
    "normalized_kd": lambda t, s: losses.normalized_kd(t, s, LABELS),
    "soft_target_bce": losses.soft_target_bce,
    "correlation_distance": losses.correlation_distance,
}
MAPS = {
    "hint_distance": losses.hint_distance,
    "attention_distance": losses.attention_distance,
    "flow_distance": lambda t, s: losses.flow_distance((t, t), (s, s)),
    "neuron_selectivity_mmd": losses.neuron_selectivity_mmd,
    "gaussian_nll": lambda t, s: losses.gaussian_nll(t, s, np.array([0.3, -0.2])),
    "similarity_distance": losses.similarity_distance,
    "relational_distance": losses.relational_distance,
    "cosine_kernel_kl": losses.cosine_kernel_kl,
}
ALL = {
    **{name: (f, (3, 4)) for name, f in LOGITS.items()},
    **{name: (f, (3, 2, 2, 2)) for name, f in MAPS.items()},
}


def gradient(function, t, s):
    t, s = tf.Variable(t), tf.Variable(s)
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(function(t, s))
    return tape.gradient(loss, s), tape.gradient(loss, t), loss


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_the_differences_and_none_reaches_the_teacher(name):
    function, shape = ALL[name]
    rng = np.random.default_rng(1)
    t, s = rng.normal(size=shape), rng.normal(size=shape)
    of_student, of_teacher, _ = gradient(function, t, s)
    assert of_teacher is None
    numeric = np.zeros(shape)
    for index in np.ndindex(shape):
        step = np.zeros(shape)
        step[index] = 1e-5
        numeric[index] = (
            np.sum(values(function(t, s + step))) - np.sum(values(function(t, s - step)))
        ) / 2e-5
    # Central differences of float64: an error of the order of the step squared.
    np.testing.assert_allclose(of_student.numpy(), numeric, atol=1e-6, rtol=1e-5)
    assert np.abs(numeric).max() > 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ALL)
def test_everything_is_finite_at_the_ends_of_what_a_network_can_say(name, dtype):
    function, shape = ALL[name]
    rng = np.random.default_rng(2)
    extremes = [
        (1e4 * rng.choice([-1.0, 1.0], size=shape), 1e4 * rng.choice([-1.0, 1.0], size=shape)),
        (np.zeros(shape), np.zeros(shape)),
        (np.zeros(shape), rng.normal(size=shape)),
        (rng.normal(size=shape), np.zeros(shape)),
        (np.broadcast_to([30.0] + [-30.0] * (shape[-1] - 1), shape), np.ones(shape)),  # classes never seen
    ]
    for t, s in extremes:
        of_student, _, loss = gradient(function, tf.cast(t, dtype), tf.cast(s, dtype))
        assert np.isfinite(values(tf.cast(loss, "float64"))), (t, s)
        # In half precision a gradient may overflow at 1e4, which is what loss scaling is for; and logits that are all
        # equal have no direction, so that the gradient of what divides by their spread is as large as ε is small.
        steep = np.abs(s).max() > 1e3 or (
            np.ptp(s) == 0 and name in ("soft_target_kl standardized", "correlation_distance")
        )
        if dtype != "float16" or not steep:
            assert np.all(np.isfinite(values(tf.cast(of_student, "float64")))), (t, s)
    assert function(tf.ones(shape, dtype), tf.ones(shape, dtype)).dtype == (
        "float64" if dtype == "float64" else "float32"
    )


@pytest.mark.parametrize("name", LOGITS)
def test_logits_that_do_not_fit_are_refused_with_both_shapes(name):
    with pytest.raises(ShapeMismatchError, match=r"\(3, 4\).*\(3, 5\)"):
        LOGITS[name](np.ones((3, 4)), np.ones((3, 5)))


def test_features_that_do_not_fit_are_refused_with_both_shapes():
    maps_of_two, maps_of_three = np.ones((3, 4, 4, 2)), np.ones((3, 4, 4, 3))
    for function in (losses.hint_distance, MAPS["gaussian_nll"], MAPS["flow_distance"]):
        with pytest.raises(ShapeMismatchError, match=r"\(3, 4, 4, 2\).*\(3, 4, 4, 3\)"):
            function(maps_of_two, maps_of_three)
    for function in (losses.attention_distance, losses.neuron_selectivity_mmd):
        with pytest.raises(ShapeMismatchError, match=r"\(3, 4, 4, 2\).*\(3, 4, 2\)"):
            function(maps_of_two, np.ones((3, 4, 2)))
    for function in (losses.similarity_distance, losses.relational_distance, losses.cosine_kernel_kl):
        with pytest.raises(ShapeMismatchError, match=r"\(3, 2\).*\(4, 2\)"):
            function(np.ones((3, 2)), np.ones((4, 2)))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    for function in (losses.soft_target_kl, losses.soft_target_bce, losses.correlation_distance):
        with pytest.raises(ValueError, match="temperature must be positive"):
            function(np.ones((2, 3)), np.ones((2, 3)), temperature=temperature)
    for cls in (losses.LogitsDistillation, losses.BinaryLogitsDistillation):
        with pytest.raises(ValueError, match="temperature must be positive"):
            cls(temperature=temperature)


def test_bad_arguments_of_the_classes():
    for make in (
        lambda: losses.LogitsDistillation(temperature="hot"),
        lambda: losses.LogitsDistillation(loss="no_such_loss"),
        lambda: losses.LogitsDistillation(loss=[None, None]),
        lambda: losses.LogitsDistillation(from_logits="maybe"),
        lambda: losses.FeatureDistillation(adapter="sometimes"),
        lambda: losses.AttentionTransfer("a", ""),
        lambda: losses.AttentionTransfer("a", "b", p=0),
        lambda: losses.FlowDistillation("ab", ("c", "d")),
        lambda: losses.RelationalDistillation("a", "b", distance_weight=None),
        lambda: losses.VariationalInformation("a", "b", initial_variance=0.0),
        lambda: losses.decoupled_kl(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3, 1))),
        lambda: losses.decoupled_kl(np.ones((2, 1)), np.ones((2, 1)), np.zeros(2)),
        lambda: losses.flow_distance(np.ones((1, 2, 2)), np.ones((1, 2, 2))),
    ):
        with pytest.raises(ValueError):
            make()


def test_the_default_loss_of_keras_and_its_instance_are_the_same_here():
    t, s = RNG.normal(size=(4, 5)), RNG.normal(size=(4, 5))
    expected = values(losses.soft_target_kl(t, s, temperature=3.0))
    for loss in (
        "kl_divergence",
        "kld",
        "KLDivergence",
        keras.losses.KLDivergence(),
        keras.losses.kl_divergence,
    ):
        np.testing.assert_allclose(values(losses.LogitsDistillation(loss=loss).compute_loss(t, s)), expected)
    theirs = keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence())
    # Keras clips probabilities at 1e-7 and computes in float32.
    ours = float(np.mean(expected))
    assert float(theirs.compute_loss(t.astype("float32"), s.astype("float32"))) == pytest.approx(
        ours, rel=1e-4
    )


def test_adaptive_pooling_keeps_the_mean_where_sizes_divide():
    x = RNG.normal(size=(2, 6, 4, 3))
    small = values(average_pool_to(x, (3, 2)))
    np.testing.assert_allclose(small.mean((1, 2)), x.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(small[0, 0, 0], x[0, :2, :2].mean((0, 1)), atol=1e-12)
