"""Carved students: exact where nothing is lost, within their budgets, and good from the start."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd
import tflite_tools
from keras_kd.selection import carve

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import carving_models as models


def inputs_for(model: keras.Model, count: int = 4, seed: int = 1):
    generator = np.random.default_rng(seed)
    return keras.tree.map_structure(
        lambda tensor: generator.uniform(-1, 1, (count, *tensor.shape[1:])).astype("float32"),
        model.inputs[0] if isinstance(model, keras.Sequential) else model.input,
    )


def outputs_of(model: keras.Model, x) -> list[np.ndarray]:
    return [np.asarray(value, dtype=np.float64) for value in keras.tree.flatten(model(x, training=False))]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]):
    for one, other in zip(found, expected, strict=True):
        # float32 sums in another order: some hundred rounding steps of 6e-8 of the largest value.
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(1.0, np.abs(other).max()))


def check_exact(teacher: keras.Model, x) -> None:
    carving = carve(teacher, keep=0.5)
    student = carving.student
    assert carving.whole == {}
    assert student.count_params() == carving.after.params < teacher.count_params()
    kept = {layer.path.split("/")[-1]: layer.kept for layer in carving.layers}
    silent = models.silenced(teacher, student, kept)
    expected = outputs_of(silent, x)
    # The oracle must not be trivial: silencing changed the answers.
    assert max(np.abs(a - b).max() for a, b in zip(expected, outputs_of(teacher, x))) > 1e-3
    assert_same(outputs_of(student, x), expected)
    again = carve(silent, keep=0.5)
    assert [layer.kept for layer in again.layers] == [layer.kept for layer in carving.layers]
    assert_same(outputs_of(again.student, x), expected)


@pytest.mark.parametrize("build", models.SMALL, ids=lambda build: build.__name__)
def test_channels_that_are_zero_are_not_missed(build):
    teacher = models.randomize(build())
    check_exact(teacher, inputs_for(teacher))


@pytest.mark.parametrize(
    "family",
    [
        "MobileNet",
        "MobileNetV2",
        "MobileNetV3Small",
        pytest.param("ResNet50", marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", marks=pytest.mark.slow),
        pytest.param("DenseNet121", marks=pytest.mark.slow),
    ],
)
def test_families_of_keras_applications(family: str):
    keras.utils.set_random_seed(0)
    teacher = getattr(keras.applications, family)(
        weights=None, input_shape=(32, 32, 3), classes=10, classifier_activation=None
    )
    models.randomize(teacher)
    scale = 100.0 if family in ("MobileNetV3Small", "EfficientNetB0") else 1.0  # they take pixels
    check_exact(teacher, scale * inputs_for(teacher, count=2))


@pytest.mark.parametrize("criterion", ["l1", "bn_scale", "activation", "taylor"])
def test_every_criterion_removes_what_is_zero_first(criterion: str):
    teacher = models.randomize(models.residual())
    x, y = inputs_for(teacher, count=32), np.arange(32) % 5
    carving = carve(teacher, keep=0.5)
    kept = {layer.path: layer.kept for layer in carving.layers}
    silent = models.silenced(teacher, carving.student, kept)
    # x is given to all of them: correcting the statistics must change nothing where nothing is lost.
    student = keras_kd.carve_student(silent, 0.5, x, y, criterion=criterion)
    assert_same(outputs_of(student, x), outputs_of(silent, x))


def test_the_criteria_by_hand():
    """One Dense layer of three units, whose scores can be computed on paper."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, "relu", name="hidden"), layers.Dense(2, name="logits")]
    )
    # Units by mean |weight|: 3, 2, 0.1.  Inputs are all ones, so the units put out 0 (relu), 4 and 0.2.
    model.layers[0].set_weights([np.array([[-3.0, 2.0, 0.1], [3.0, 2.0, 0.1]]), np.array([-1.0, 0.0, 0.0])])
    # The second unit reaches both logits alike, which no softmax sees: its gradient is zero.
    model.layers[1].set_weights([np.array([[5.0, 0.0], [1.0, 1.0], [2.0, 0.0]]), np.zeros(2)])
    x, y = np.ones((4, 2), "float32"), np.zeros(4, "int64")

    def kept(criterion: str) -> tuple[int, ...]:
        return carve(model, 0.34, x, y, criterion=criterion).layers[0].kept

    assert kept("l1") == kept("bn_scale") == (0,)
    assert kept("activation") == (1,)
    assert kept("taylor") == (2,)


def test_the_teacher_is_left_alone():
    teacher = models.randomize(models.squeeze_and_excite())
    teacher.trainable = False  # as a Distiller leaves it
    before, config = (
        [value.copy() for value in teacher.get_weights()],
        json.dumps(teacher.get_config(), default=str),
    )
    student = keras_kd.carve_student(teacher, 0.5, inputs_for(teacher))
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert json.dumps(teacher.get_config(), default=str) == config
    assert not teacher.trainable
    assert student.trainable_weights and [w.path for w in student.trainable_weights] == [
        weight.path for weight in student.weights if not weight.path.split("/")[-1].startswith("moving")
    ]


def test_the_student_is_an_ordinary_model(tmp_path: pathlib.Path):
    teacher = models.randomize(models.nested_and_shared())
    student = keras_kd.carve_student(teacher, 0.5)
    x = inputs_for(teacher)
    student.save(tmp_path / "student.keras")
    reloaded = keras.models.load_model(tmp_path / "student.keras")
    assert_same(outputs_of(reloaded, x), outputs_of(student, x))
    assert set(student(x)) == {"label", "score"}
    assert {tensor.name for tensor in student.inputs} == {"left", "right"}


def test_trainable_weights_are_the_teachers_own():
    teacher = models.randomize(models.residual())
    carving = carve(teacher, 0.5, inputs_for(teacher, 32))
    first = next(layer for layer in carving.layers if layer.channels == 8)
    expected = teacher.get_layer(first.path).kernel.numpy()[..., list(first.kept)]
    np.testing.assert_array_equal(carving.student.get_layer(first.path).kernel.numpy(), expected)


@pytest.mark.parametrize("limit", ["max_params", "max_macs", "max_bytes"])
def test_budgets_are_kept_and_used(limit: str):
    teacher = models.residual()
    field = {"max_params": "params", "max_macs": "macs", "max_bytes": "size_bytes"}[limit]
    budget = getattr(carve(teacher, 1.0).before, field) // 3
    spent = getattr(carve(teacher, **{limit: budget}).after, field)
    # The next channel everywhere would cost at most a seventh of a model this small.
    assert 0.8 * budget <= spent <= budget


def test_several_budgets_and_keep_hold_together():
    teacher = models.residual()
    carving = carve(teacher, 0.4, max_params=3000, max_macs=10**9)
    assert carving.after.params <= 3000
    assert carving.fraction <= 0.4


def test_costs_agree_with_the_converted_file():
    student = carve(models.randomize(models.residual()), 0.5)
    artifact = tflite_tools.convert(student.student)
    assert tflite_tools.inspect(artifact).macs == student.after.macs
    assert student.after.size_bytes == 4 * student.student.count_params()


def test_round_to_makes_multiples():
    teacher = models.residual()
    carving = carve(teacher, keep=0.4, round_to=4)
    assert all(len(layer.kept) % 4 == 0 for layer in carving.layers)
    assert {layer.channels: len(layer.kept) for layer in carving.layers} == {8: 4, 12: 4, 16: 8}


def test_blocks_that_add_nothing_go_first_and_are_not_missed():
    teacher = models.randomize(models.residual())
    blocks = [layer for layer in teacher.layers if isinstance(layer, layers.Add)]
    # Silence the second block: its last normalization puts out zero.
    norm = blocks[1].input[1]._keras_history.operation
    norm.gamma.assign(np.zeros(8))
    norm.beta.assign(np.zeros(8))
    x = inputs_for(teacher)
    for examples in (None, x):
        carving = carve(teacher, 1.0, examples, depth=3)
        assert carving.dropped_blocks == (blocks[1].name,)
        assert_same(outputs_of(carving.student, x), outputs_of(teacher, x))
    assert len(carve(teacher, 1.0, depth=0.5).dropped_blocks) == 2
    assert len(carve(teacher, 1.0, depth=0).dropped_blocks) == 4


def test_layers_that_cannot_be_cut_are_named():
    x = tokens = keras.Input((6, 8))
    x = layers.Dense(8, name="before")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Dense(8, name="hidden", activation="relu")(x)
    x = layers.LayerNormalization(name="norm")(layers.Dense(8, name="wide")(x))
    teacher = keras.Model(tokens, layers.Dense(2, name="logits")(x))
    with pytest.warns(UserWarning, match="attention.*MultiHeadAttention has no rule"):
        carving = carve(teacher, 0.5)
    assert set(carving.whole) == {"attention", "norm"}
    assert {layer.path: len(layer.kept) for layer in carving.layers} == {"hidden": 4}
    assert "kept whole: what reaches norm" in carving.table()
    assert json.loads(json.dumps(carving.to_dict()))["layers"][0]["path"] == "hidden"


def test_a_softmax_over_channels_keeps_them():
    x = start = keras.Input((4,))
    x = layers.Dense(6, activation="softmax", name="gate")(x)
    x = layers.Dense(6, activation="relu", name="free")(x)
    with pytest.warns(UserWarning, match="softmax"):
        carving = carve(keras.Model(start, layers.Dense(2)(x)), 0.5)
    assert [layer.path for layer in carving.layers] == ["free"]


def test_wrong_arguments_are_listed_all_at_once():
    with pytest.raises(ValueError) as caught:
        keras_kd.carve_student(models.series(), 1.5, max_params=0, round_to=0, depth=2.0, criterion="tailor")
    message = str(caught.value)
    for part in (
        "keep must be",
        "max_params must be",
        "round_to must be",
        "depth must be",
        "Did you mean 'taylor'",
    ):
        assert part in message, part
    with pytest.raises(ValueError, match="give x"):
        keras_kd.carve_student(models.series(), criterion="activation")


def test_a_budget_that_cannot_be_met_says_what_can():
    with pytest.raises(ValueError, match=r"max_params=10 was asked, [\d,]+ is the least"):
        keras_kd.carve_student(models.residual(), max_params=10)
    with pytest.raises(ValueError, match=r"'series' has 0 that can be left out"):
        keras_kd.carve_student(models.series(), depth=0.5)


def test_models_without_a_graph_or_without_inner_layers():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed"):
        keras_kd.carve_student(Subclassed())
    with pytest.raises(ValueError, match="can be cut"):
        keras_kd.carve_student(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))


def test_a_dataset_serves_as_examples():
    import tensorflow as tf

    teacher = models.randomize(models.residual())
    x, y = inputs_for(teacher, 24), np.arange(24) % 5
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    one = carve(teacher, 0.5, data, criterion="taylor")
    other = carve(teacher, 0.5, x, y, criterion="taylor")
    assert [layer.kept for layer in one.layers] == [layer.kept for layer in other.layers]


def test_a_lambda_layer_keeps_what_its_function_closes_over():
    factor = keras.Variable(3.0)
    x = start = keras.Input((4,))
    x = layers.Dense(4, name="before")(x)
    x = layers.Lambda(lambda value: value * factor, name="times")(x)
    teacher = keras.Model(start, layers.Dense(2)(layers.Dense(6, activation="relu", name="free")(x)))
    with pytest.warns(UserWarning, match="times \\(Lambda has no rule"):
        student = keras_kd.carve_student(teacher, keep=0.99)
    x = np.ones((2, 4), "float32")
    assert_same(outputs_of(student, x), outputs_of(teacher, x))
    factor.assign(5.0)
    assert_same(outputs_of(student, x), outputs_of(teacher, x))
