"""The teacher's share in fine-tuning: schedules follow the run, and what cannot be is refused before it."""

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd.losses import LogitsDistillation
from keras_kd.schedules import GradientBalanced, Linear

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(40, 6)).astype("float32"), rng.integers(0, 3, 40)


def network(width, seed):
    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((6,)),
            dense(width, "relu", name="a"),
            dense(width, "relu", name="b"),
            dense(3, name="c"),
        ]
    )


def compress(**kwargs):
    settings = {"epochs": 2, "batch_size": 20, "loss": LOSS, "verbose": 0, **kwargs}
    return keras_kd.compress(network(16, 0), "prune50", X, Y, teacher=network(32, 1), **settings)


@pytest.mark.parametrize(("losses", "temperature"), [(LogitsDistillation(2.0), 2.0), (None, 1.0)])
def test_the_loss_is_what_the_teacher_says_about_the_first_batch(losses, temperature):
    """The first step's numbers, computed again from the two networks alone."""
    student, teacher = network(16, 0), network(32, 1)
    compressed = keras_kd.compress(
        student,
        # The masks come on in the second step, so that the first one sees the student as it was.
        "prune50@100..100",
        X,
        Y,
        teacher=teacher,
        distillation_losses=losses,
        student_loss_weight=0.25,
        epochs=2,
        batch_size=40,
        loss=LOSS,
        verbose=0,
    )
    logs = compressed.report.history["prune"]
    taught = float(
        np.mean(
            keras_kd.losses.soft_target_kl(
                teacher.predict(X, verbose=0), student.predict(X, verbose=0), temperature=temperature
            )
        )
    )
    labels = float(LOSS(Y, student.predict(X, verbose=0)))
    # Two float32 programs of the same sums.
    assert logs["logits_distillation"][0] == pytest.approx(taught, rel=1e-5)
    assert logs["student_loss"][0] == pytest.approx(labels, rel=1e-5)
    assert logs["loss"][0] == pytest.approx(0.25 * labels + 0.75 * taught, rel=1e-5)


def test_the_share_of_the_labels_may_follow_a_schedule():
    """From the labels alone in the first step to half of each: a ramp over the 4 steps of the phase."""
    logs = compress(student_loss_weight=Linear(1.0, 0.0), epochs=4, batch_size=40).report.history["prune"]
    share = np.array([1.0, 0.75, 0.5, 0.25])
    wanted = share * logs["student_loss"] + (1 - share) * np.array(logs["distillation_loss"])
    np.testing.assert_allclose(logs["loss"], wanted, rtol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", None])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="student_loss_weight must be"):
        compress(student_loss_weight=share)


@pytest.mark.parametrize(
    "weights",
    [GradientBalanced(), [GradientBalanced()], {"soft": GradientBalanced()}],
    ids=["alone", "list", "dict"],
)
def test_balanced_weights_are_refused_by_name(weights):
    with pytest.raises(ValueError, match="GradientBalanced, which compression cannot take"):
        compress(
            distillation_losses={"soft": LogitsDistillation()},
            distillation_loss_weights=weights,
        )


def test_the_chain_refuses_balanced_weights_before_it_distils():
    with pytest.raises(ValueError, match="GradientBalanced, which compression cannot take"):
        keras_kd.distill_to_tflite(
            network(32, 1),
            network(16, 0),
            X,
            Y,
            validation_data=(X, Y),
            distillation_loss_weights=GradientBalanced(),
            verbose=0,
        )


def test_the_file_knows_its_recipe_and_seed():
    compressed = compress(seed=3, epochs=1)
    provenance = compressed.to_tflite().provenance
    assert (provenance["recipe"], provenance["seed"]) == ("prune50", 3)
    named = compressed.to_tflite(metadata={"class_names": ["x", "y", "z"], "dataset": "noise"})
    assert named.class_names == ("x", "y", "z")
    assert {"recipe", "seed", "dataset"} <= set(named.provenance)
    bare = compressed.to_tflite(metadata=False)
    assert bare.size_bytes < named.size_bytes
