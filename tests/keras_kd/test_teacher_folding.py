"""The folded copy of a teacher says what the teacher says, and the teacher knows nothing of it."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_kd import Distiller, TeacherEnsemble, losses
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.teachers.folding import FoldedTeacher
from keras_kd.teachers.moving_average import MovingAverageTeacher
from keras_kd.teachers.runner import TeacherRunner

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 8, 8, 3)).astype("float32")


def randomize(model):
    """Weights and statistics of a trained network: nothing is 0 or 1 any more."""
    for weight in model.weights:
        if "float" in str(weight.dtype):
            low, high = (0.5, 2.0) if "variance" in weight.path or "gamma" in weight.path else (-0.5, 0.5)
            weight.assign(RNG.uniform(low, high, weight.shape))
    return model


def network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="bn_conv")(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(scale=False, name="bn_depthwise")(x)
    shortcut = layers.Conv2D(12, 1, name="kept_for_two")(x)
    x = layers.BatchNormalization(name="bn_of_a_shared_output")(shortcut)
    x = layers.Add()([x, shortcut])
    x = layers.Conv2D(4, 3, activation="relu", name="activated")(x)
    x = layers.BatchNormalization(name="bn_after_relu")(x)
    inner_in = keras.Input((6, 6, 4))
    inner = layers.Conv2D(5, 3, groups=1, dilation_rate=2, name="dilated")(inner_in)
    inner = layers.BatchNormalization(center=False, name="bn_dilated")(inner)
    x = keras.Model(inner_in, inner, name="backbone")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(7, name="dense")(x)
    x = layers.BatchNormalization(name="bn_dense")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="last")(x)))


def test_what_is_folded_and_what_is_not_and_the_outputs_are_equal():
    model = network()
    copy = FoldedTeacher(model)
    assert sorted(copy.folded) == ["backbone/bn_dilated", "bn_conv", "bn_dense", "bn_depthwise"]
    # Products are taken in another order; outputs are of order 1.
    np.testing.assert_allclose(copy.model(X), model(X, training=False), atol=1e-5, rtol=1e-5)


def test_the_callers_model_is_not_touched():
    model = network()
    config, weights, nodes = (
        model.get_config(),
        model.get_weights(),
        [len(la._inbound_nodes) for la in model.layers],
    )
    copy = FoldedTeacher(model)
    copy.refold()
    assert model.get_config() == config and model.trainable
    assert [len(la._inbound_nodes) for la in model.layers] == nodes
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.model.variables}


@pytest.mark.parametrize("tap", ["conv", "bn_conv", "backbone/dilated", "backbone/bn_dilated"])
def test_tapped_layers_are_kept(tap):
    model = network()
    partner = {"conv": "bn_conv", "backbone/dilated": "backbone/bn_dilated"}.get(tap, tap)
    assert partner not in FoldedTeacher(model, keep=[tap]).folded
    runner = TeacherRunner(model, [tap])
    plain = runner(X)[1][tap]
    runner.prepare()
    assert runner._folded[0] is not None
    np.testing.assert_allclose(runner(X)[1][tap], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.applications.MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=5),
        lambda: keras.applications.ResNet50(input_shape=(32, 32, 3), weights=None, classes=5),
    ],
    ids=["MobileNetV2", "ResNet50"],
)
def test_well_known_networks(make):
    model = make()
    copy = FoldedTeacher(model)
    normalizations = [la for la in model.layers if isinstance(la, layers.BatchNormalization)]
    assert len(copy.folded) == len(normalizations)
    x = RNG.uniform(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(copy.model(x), model(x, training=False), atol=1e-5)


def student():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])


def distill(teacher, **kwargs):
    distiller = Distiller(teacher, student(), LogitsDistillation(), student_loss_weight=0, **kwargs)
    distiller.compile(keras.optimizers.SGD(0.0))
    return distiller


def expected_loss(teacher, distiller):
    t, s = teacher(X, training=False), distiller.student(X)
    return float(np.mean(losses.soft_target_kl(t, s, temperature=3.0)))


def test_a_fit_uses_the_copy_and_the_next_fit_folds_again():
    teacher = network()
    distiller = distill(teacher)
    logs = distiller.fit(X, verbose=0).history
    assert len(distiller._runner._folded[0].folded) == 4
    assert logs["total_loss"][0] == pytest.approx(expected_loss(teacher, distiller), rel=1e-4)
    randomize(teacher)
    logs = distiller.fit(X, verbose=0).history
    assert logs["total_loss"][0] == pytest.approx(expected_loss(teacher, distiller), rel=1e-4)


def test_a_moving_average_teacher_is_not_folded():
    model = network()
    runner = TeacherRunner(MovingAverageTeacher(model), ["conv"])
    runner.prepare()
    assert runner._folded == {}


def test_members_of_an_ensemble_are_folded():
    ensemble = TeacherEnsemble([network(), network()])
    runner = TeacherRunner(ensemble)
    runner.prepare()
    assert len(runner._folded) == 2
    for ours, theirs in zip(runner(X)[0].outputs, ensemble.member_outputs(X).outputs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_network_that_cannot_be_copied_runs_as_it_is():
    class Unregistered(layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, inputs):
            return inputs * self.factor

        def get_config(self):
            raise NotImplementedError

    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(inputs))
    teacher = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(Unregistered(2.0)(x))))
    distiller = distill(teacher, save_teacher="none")
    logs = distiller.fit(X, verbose=0).history
    assert distiller._runner._folded == {0: None}
    assert logs["total_loss"][0] == pytest.approx(expected_loss(teacher, distiller), rel=1e-5)


class Halved(keras.Model):
    """A Functional model whose class does something of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) / 2.0


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.pool, self.last = layers.GlobalAveragePooling2D(), layers.Dense(3)

    def call(self, inputs):
        return self.last(self.pool(inputs))


def test_a_network_whose_class_overrides_call_runs_as_it_is():
    graph = network()
    teacher = Halved(graph.input, graph.output)
    distiller = distill(teacher, save_teacher="none")
    logs = distiller.fit(X, verbose=0).history
    assert distiller._runner._folded == {0: None}
    assert logs["total_loss"][0] == pytest.approx(expected_loss(teacher, distiller), rel=1e-5)


def test_a_subclassed_model_inside_a_network():
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(inputs))
    teacher = keras.Model(inputs, Subclassed()(x))
    distiller = distill(teacher, save_teacher="none")
    logs = distiller.fit(X, verbose=0).history
    assert distiller._runner._folded == {0: None}
    assert logs["total_loss"][0] == pytest.approx(expected_loss(teacher, distiller), rel=1e-5)


def test_features_of_a_folded_teacher_are_the_teachers():
    teacher = network()
    convolution = layers.Conv2D(4, 3, padding="same", name="c")
    pupil = keras.Sequential([keras.Input((8, 8, 3)), convolution, layers.Flatten(), layers.Dense(3)])
    distiller = Distiller(teacher, pupil, FeatureDistillation("mse", "activated", "c", adapter=None))
    distiller.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = distiller.fit(X, np.zeros(6), verbose=0).history
    t = keras.Model(teacher.inputs, teacher.get_layer("activated").output)(X, training=False)
    expected = float(np.mean(losses.hint_distance(t, pupil.get_layer("c")(X))))
    assert logs["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)
