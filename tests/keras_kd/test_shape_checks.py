"""Features that a loss cannot compare are refused when the Distiller is made, all in one message."""

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd import losses
from keras_kd.shape_checks import shape_problem


def images(width: int, classes: int = 3) -> keras.Model:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, 2, padding="same", name="early"),
            layers.Conv2D(2 * width, 3, 2, padding="same", name="late"),
            layers.GlobalAveragePooling2D(name="pooled"),
            layers.Dense(classes, name="logits"),
        ]
    )


def test_all_that_cannot_be_compared_is_listed_before_training():
    wrong = [
        losses.FlowDistillation(("early", "late"), ("early", "late")),
        losses.FeatureDistillation("mse", "late", "late", adapter=None),
        losses.AttentionTransfer("pooled", "pooled"),
        losses.NeuronSelectivityTransfer("late", "pooled"),
    ]
    with pytest.raises(ValueError) as caught:
        keras_kd.Distiller(images(6), images(4), wrong)
    message = str(caught.value)
    assert "4 problems" in message
    assert "flow_distillation: Flow matrices compare pairs of layers of the same widths" in message
    assert "(None, 4, 4, 6)" in message and "(None, 4, 4, 4)" in message
    for name in ("feature_distillation", "attention_transfer", "neuron_selectivity_transfer"):
        assert f"{name}: " in message


def test_what_can_be_compared_passes_and_trains():
    pairs = ("late", "late")
    fitting = [
        losses.FeatureDistillation("mse", *pairs),
        losses.FeatureDistillation("mse", "early", "late", name="pooled_and_projected"),
        losses.AttentionTransfer(*pairs),
        losses.NeuronSelectivityTransfer(*pairs),
        losses.SimilarityPreserving(*pairs),
        losses.RelationalDistillation("pooled", "pooled"),
        losses.ProbabilisticTransfer("pooled", "pooled"),
        losses.VariationalInformation(*pairs),
        losses.LogitsDistillation(),
    ]
    distiller = keras_kd.Distiller(images(6), images(4), fitting)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    history = distiller.fit(x, np.arange(16) % 3, verbose=0).history
    assert np.isfinite(history["total_loss"]).all()


def test_equal_widths_let_the_flow_pass():
    loss = losses.FlowDistillation(("early", "late"), ("early", "late"))
    assert keras_kd.Distiller(images(4), images(4), loss).student is not None


def test_sizes_that_are_not_known_are_not_judged():
    flow = losses.FlowDistillation(("a", "b"), ("a", "b"))
    known, open_sizes = ((None, 4, 4, 6),) * 2, ((None, None, None, 6),) * 2
    assert shape_problem(flow, open_sizes, open_sizes) is None
    # Each network's two maps are compared with each other.
    assert shape_problem(flow, known, open_sizes) is None
    assert shape_problem(flow, known, ((None, None, None, 6), (None, None, None, 7))) is not None
    assert shape_problem(flow, known, (None, (None, 4, 4, 7))) is None


def test_sizes_that_are_not_known_cannot_be_pooled():
    attention = losses.AttentionTransfer("a", "b")
    assert "Give both models a fixed input size" in (
        shape_problem(attention, (None, 4, 4, 6), (None, None, None, 6)) or ""
    )


def test_a_loss_from_elsewhere_is_not_called_before_training():
    class Eager(keras.distillation.DistillationLoss):
        teacher_layer_name = student_layer_name = "pooled"

        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            raise AssertionError("not before training")

    keras_kd.Distiller(images(6), images(4), Eager())


def test_a_function_of_the_user_may_need_eager_tensors():
    def eager(teacher, student):
        return keras.ops.convert_to_tensor(np.square(teacher.numpy() - student.numpy()))

    loss = losses.FeatureDistillation(eager, "pooled", "pooled", adapter=None)
    assert keras_kd.Distiller(images(4), images(4), loss).student is not None
