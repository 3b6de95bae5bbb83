"""GradientBalanced: the weight that training settles on, against gradients computed by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.schedules import GradientBalanced


def networks() -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(0)
    return tuple(
        keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(width, "relu", name="hidden"),
                keras.layers.Dense(3, name="logits"),
            ]
        )
        for width in (16, 8)
    )


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.normal(size=(32, 6)).astype("float32"), generator.integers(0, 3, 32)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_gradient_gets_the_size_it_should_have(ratio: float, scale: float):
    teacher, student = networks()
    teacher.get_layer("logits").kernel.assign(teacher.get_layer("logits").kernel * scale**0.5)
    x, y = data()
    weight = GradientBalanced(ratio=ratio, momentum=0.0)
    distiller = keras_kd.Distiller(teacher, student, LogitsDistillation(loss="mse", temperature=1.0), weight)
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(
        keras.optimizers.SGD(0.0), label_loss
    )  # nothing moves, so that the norms can be recomputed
    distiller.fit(x, y, batch_size=32, verbose=0)

    with tf.GradientTape(persistent=True) as tape:
        outputs = student(x)
        losses = {"label": label_loss(y, outputs), "taught": tf.reduce_mean(tf.square(teacher(x) - outputs))}
    norms = {}
    for name, loss in losses.items():
        gradients = tape.gradient(loss, [variable.value for variable in student.trainable_variables])
        norms[name] = np.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in gradients))
    # float32 sums of some hundred terms.
    assert float(weight(step=1)) * norms["taught"] == pytest.approx(ratio * norms["label"], rel=1e-4)


def test_the_mean_is_geometric_and_skips_what_cannot_be_measured():
    weight = GradientBalanced(ratio=1.0, momentum=0.5, initial=7.0)
    weight.update(label_norm=4.0, own_norm=1.0)
    assert float(weight(0)) == pytest.approx(4.0)  # the first measurement replaces the guess
    weight.update(label_norm=1.0, own_norm=1.0)
    assert float(weight(0)) == pytest.approx(2.0)
    for label_norm, own_norm in ((1.0, 0.0), (0.0, 1.0), (float("nan"), 1.0), (float("inf"), 1.0)):
        weight.update(label_norm=label_norm, own_norm=own_norm)
        assert float(weight(0)) == pytest.approx(2.0)


def test_it_trains_with_adapters_and_beside_a_plain_weight_and_is_saved(tmp_path):
    teacher, student = networks()
    x, y = data()
    losses = {
        "outputs": LogitsDistillation(),
        "hidden": FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    }
    distiller = keras_kd.Distiller(
        teacher, student, losses, {"outputs": 1.0, "hidden": GradientBalanced(0.3)}
    )
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(x, y, batch_size=8, epochs=10, verbose=0).history
    assert history["student_loss"][-1] < history["student_loss"][0]
    assert float(distiller.distillation_loss_weights[1](0)) != 1.0
    distiller.save(tmp_path / "distiller.keras")
    reloaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert reloaded.distillation_loss_weights[1] == GradientBalanced(0.3)
    np.testing.assert_allclose(reloaded.predict(x, verbose=0), distiller.predict(x, verbose=0), rtol=1e-5)


def test_what_cannot_be_balanced_is_refused():
    teacher, student = networks()
    with pytest.raises(ValueError, match="against the label loss"):
        keras_kd.Distiller(teacher, student, LogitsDistillation(), GradientBalanced(), student_loss_weight=0)
    one = GradientBalanced()
    with pytest.raises(ValueError, match="give each one its own"):
        keras_kd.Distiller(teacher, student, [LogitsDistillation(), LogitsDistillation(name="b")], [one, one])
    for arguments in ({"ratio": 0.0}, {"momentum": 1.0}, {"initial": True}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            GradientBalanced(**arguments)
