"""Layer by layer: what a change costs, and how an allocation uses it."""

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd.compression.sensitivity import Damage, Sensitivity, quantize_weights, sensitivity

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 10)).astype("float32")
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype("int32")


@pytest.fixture(scope="module")
def student(data):
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential(
        [
            keras.Input((10,)),
            dense(32, "relu", name="a"),
            dense(32, "relu", name="b"),
            dense(32, "relu", name="wide"),
            dense(2, name="c"),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), LOSS, metrics=["accuracy"])
    model.fit(*data, epochs=20, verbose=0)
    return model


def test_every_number_is_the_models_own_with_that_layer_changed(student, data):
    x, y = data
    found = sensitivity(student, x, y, sparsities=(0.5, 0.9), bits=(3,), examples=1000)
    base = student.evaluate(x, y, verbose=0, return_dict=True)
    assert found.accuracy == pytest.approx(base["accuracy"], abs=1e-6)
    assert found.loss == pytest.approx(base["loss"], rel=1e-4)
    before = student.get_layer("b").get_weights()
    kernel = before[0].copy()
    for row in (row for row in found.rows if row.layer == "b"):
        if row.kind == "sparsity":
            smallest = np.argsort(np.abs(kernel), axis=None)[: round(row.level * kernel.size)]
            changed = kernel.copy()
            changed.flat[smallest] = 0
        else:
            scale = np.abs(kernel).max(axis=0) / 3
            changed = np.round(kernel / scale) * scale
        student.get_layer("b").set_weights([changed, before[1]])
        expected = student.evaluate(x, y, verbose=0, return_dict=True)
        assert row.accuracy == pytest.approx(expected["accuracy"], abs=1e-6)
        assert row.loss == pytest.approx(expected["loss"], rel=1e-4)
    student.get_layer("b").set_weights(before)
    assert found.layers == ["a", "b", "wide", "c"]


def test_table_json_and_heat_map(student, data):
    found = sensitivity(student, *data, layers=["a", "b"], sparsities=(0.5,), bits=(8, 2))
    assert "50 % zero" in str(found) and "2 bit" in str(found) and "accuracy lost" in str(found)
    assert Sensitivity.from_dict(found.to_dict()) == found
    labels = [label.get_text() for label in found.plot().axes[0].get_yticklabels()]
    assert labels == ["a", "b"]


def test_a_regression_has_no_accuracy(data):
    x, _ = data
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(1)])
    found = sensitivity(model, x, x[:, :1], loss="mse", sparsities=(0.5,))
    assert found.accuracy is None and all(row.accuracy is None for row in found.rows)
    assert "loss added" in found.table()


def test_mistakes_are_listed(student, data):
    with pytest.raises(ValueError) as error:
        sensitivity(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), *data, sparsities=(1.5,), bits=(1,)
        )
    assert all(word in str(error.value) for word in ("1.5", "bits 1", "loss is missing"))
    with pytest.raises(ValueError, match=r"'bb'.*'b'"):
        sensitivity(student, *data, layers=["bb"])


def test_rounding_is_symmetric_and_per_output_channel():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)) * np.array([1, 10, 0.1, 3, 0])
    rounded = quantize_weights(kernel, 4)
    for channel in range(5):
        assert len(np.unique(rounded[..., channel])) <= 15
        step = np.abs(kernel[..., channel]).max() / 7
        assert np.abs(rounded - kernel)[..., channel].max() <= step / 2 + 1e-12
    np.testing.assert_array_equal(quantize_weights(-kernel, 4), -rounded)


def rows(layer, size, *levels):
    return [Damage(layer, size, "sparsity", level, loss, None) for level, loss in levels]


def test_the_allocation_is_the_best_of_all_grids():
    """Against brute force over a fine grid, with convex damage (where the greedy choice is optimal)."""
    sizes = {"a": 100, "b": 300, "c": 50}
    weight = {"a": 1.0, "b": 5.0, "c": 0.2}
    levels = [0.25, 0.5, 0.75, 0.95]
    table = [
        row for name in sizes for row in rows(name, sizes[name], *[(s, weight[name] * s**2) for s in levels])
    ]
    found = Sensitivity(0.0, None, tuple(table), 1).allocate(0.6)
    total = sum(sizes.values())
    assert sum(found[n] * sizes[n] for n in sizes) == pytest.approx(0.6 * total, rel=1e-5)

    def damage(choice):
        return sum(
            np.interp(s, [0, *levels], [0, *(weight[n] * v**2 for v in levels)]) for n, s in choice.items()
        )

    best = np.inf
    for a in np.linspace(0, 0.95, 39):
        for c in np.linspace(0, 0.95, 39):
            b = (0.6 * total - a * 100 - c * 50) / 300
            if 0 <= b <= 0.95:
                best = min(best, damage({"a": a, "b": b, "c": c}))
    # Sparsities are rounded to six digits; the steepest damage here is 8.5 per unit of sparsity.
    assert damage(found) <= best + 1e-5


def test_an_allocation_that_cannot_be_reached_is_refused():
    table = Sensitivity(0.0, None, tuple(rows("a", 10, (0.5, 1.0))), 1)
    with pytest.raises(ValueError, match=r"reach 0\.500"):
        table.allocate(0.8)


def test_pruning_auto_reaches_the_sparsity_over_all_layers_together(student, data):
    recipe = keras_kd.CompressionRecipe.from_name("prune75[auto]")
    compressed = keras_kd.compress(student, recipe, *data, verbose=0)
    report = compressed.report
    pruned = [row for row in report.layers if row.name in ("b", "wide")]
    zeros = sum(row.sparsity * row.kernel_parameters for row in pruned)
    assert zeros / sum(row.kernel_parameters for row in pruned) == pytest.approx(0.75, abs=2 / 1024)
    assert any("sensitivity" in note for note in report.notes)
    assert {row.name: row.sparsity for row in report.layers}["a"] == 0.0
