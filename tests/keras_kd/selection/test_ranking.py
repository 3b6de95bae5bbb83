"""Similarities, worth and contributions of layers, against independent computations; and their ranking."""

import itertools
import json
import pickle

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd
from keras_kd.selection import LayerRanking, RankedPair
from keras_kd.selection.cka import StreamingCKA, gram_matrix, unbiased_hsic
from keras_kd.selection.probes import LinearProbe


def hsic_by_counting(first: np.ndarray, second: np.ndarray) -> float:
    """The U-statistic written out: means over all distinct pairs, quadruples and triples of examples."""
    places = range(len(first))
    pairs = np.mean([first[i, j] * second[i, j] for i, j in itertools.permutations(places, 2)])
    quadruples = np.mean([first[i, j] * second[q, r] for i, j, q, r in itertools.permutations(places, 4)])
    triples = np.mean([first[i, j] * second[i, q] for i, j, q in itertools.permutations(places, 3)])
    return float(pairs + quadruples - 2 * triples)


def test_unbiased_hsic_is_the_u_statistic():
    generator = np.random.default_rng(0)
    x, z = generator.normal(size=(7, 3)), generator.normal(size=(7, 5))
    first, second = x @ x.T, z @ z.T
    np.fill_diagonal(first, 0.0)
    np.fill_diagonal(second, 0.0)
    # Both sums have some thousand terms of order one in float64.
    assert unbiased_hsic(first, second) == pytest.approx(hsic_by_counting(first, second), rel=1e-9)
    # What gram_matrix centers away does not change the estimate; float32 features leave 1e-6.
    assert unbiased_hsic(gram_matrix(x + 3.0), gram_matrix(z)) == pytest.approx(
        unbiased_hsic(first, second), rel=1e-4
    )


def test_cka_knows_rotations_and_strangers():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(512, 8))
    rotation, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    stranger = generator.normal(size=(512, 8))
    cka = StreamingCKA(["x"], ["rotated", "stranger", "constant"])
    for start in range(0, 512, 32):
        rows = slice(start, start + 32)
        student = {
            "rotated": 5.0 * x[rows] @ rotation + 1.0,
            "stranger": stranger[rows],
            "constant": np.ones((32, 3)),
        }
        cka.update({"x": x[rows]}, student)
    rotated, unrelated, constant = cka.result()[0]
    assert rotated == pytest.approx(1.0, abs=1e-4)
    # The biased estimator would find 8/32 in batches of 32; unbiased, 16 batches leave a deviation of about 0.02.
    assert abs(unrelated) < 0.08
    assert constant == 0.0


def test_batches_give_what_all_examples_at_once_give():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(960, 6))
    z = np.tanh(x @ generator.normal(size=(6, 10)))
    whole, parts = StreamingCKA(["x"], ["z"]), StreamingCKA(["x"], ["z"])
    whole.update({"x": x}, {"z": z})
    sizes = set()
    for start in range(0, 960, 16):
        parts.update({"x": x[start : start + 16]}, {"z": z[start : start + 16]})
        sizes.add(len(pickle.dumps(parts)))
    assert len(sizes) == 1  # what it holds does not grow with the examples
    parts.update({"x": x[:2]}, {"z": z[:2]})  # too few for an estimate: left out
    assert parts.result()[0, 0] == pytest.approx(whole.result()[0, 0], abs=0.03)  # unbiased, not equal


def test_the_linear_probe_is_ridge_regression():
    generator = np.random.default_rng(3)
    x, labels = generator.normal(size=(60, 4)) * [1.0, 10.0, 0.1, 1.0] + 2.0, generator.integers(0, 3, 60)
    probe = LinearProbe(classes=3, ridge=0.5)
    for start in range(0, 60, 7):
        probe.update(x[start : start + 7], labels[start : start + 7])
    # Ridge on standardized features as an augmented least-squares problem.
    standard = (x - x.mean(0)) / x.std(0)
    one_hot = np.eye(3)[labels]
    augmented = np.vstack([standard, np.sqrt(0.5 * 60) * np.eye(4)])
    targets = np.vstack([one_hot - one_hot.mean(0), np.zeros((4, 3))])
    solution = np.linalg.lstsq(augmented, targets, rcond=None)[0]
    expected = np.argmax(standard @ solution + one_hot.mean(0), axis=1)
    np.testing.assert_array_equal(probe.predict(x), expected)


def network(*widths: int, name: str) -> keras.Model:
    x = image = keras.Input((8, 8, 1))
    for number, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", name=f"{name}_conv{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3)(x), name=name)


@pytest.fixture(scope="module")
def shapes_of_light() -> tuple[np.ndarray, np.ndarray]:
    """Images with a horizontal bar, a vertical bar or a cross."""
    generator = np.random.default_rng(4)
    y = np.arange(320) % 3
    x = generator.normal(size=(320, 8, 8, 1)).astype("float32")
    for image, label in zip(x, y):
        row, column = generator.integers(1, 7, 2)
        if label != 1:
            image[row] += 2.0
        if label != 0:
            image[:, column] += 2.0
    return x, y


@pytest.fixture(scope="module")
def networks(shapes_of_light) -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(0)
    teacher, student = network(8, 8, 8, name="t"), network(4, 4, name="s")
    teacher.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(*shapes_of_light, epochs=6, verbose=0)
    return teacher, student


@pytest.fixture(scope="module")
def ranking(networks, shapes_of_light) -> LayerRanking:
    return keras_kd.rank_layers(*networks, *shapes_of_light, probe_pairs=2, probe_steps=8, seed=3)


def test_every_compatible_pair_is_measured(ranking: LayerRanking):
    assert ranking.teacher_layers == ("t_relu0", "t_relu1", "t_relu2")
    assert ranking.student_layers == ("s_relu0", "s_relu1")
    assert len(ranking.all_pairs) == 6
    assert all(-0.1 <= pair.similarity <= 1.0 for pair in ranking.all_pairs)
    worth = {pair.teacher_layer: pair.worth for pair in ranking.all_pairs}
    # A trained network's classes are easier to tell apart the deeper one looks.
    assert worth["t_relu2"] > worth["t_relu0"] > 1 / 3
    assert sum(pair.contribution is not None for pair in ranking.all_pairs) == 2
    assert ranking.loss_without is not None and ranking.loss_without > 0


def test_a_network_is_most_like_itself(networks, shapes_of_light):
    teacher, _ = networks
    twin = keras.models.clone_model(teacher)
    twin.set_weights(teacher.get_weights())
    ranking = keras_kd.rank_layers(teacher, twin, *shapes_of_light, probe_steps=0)
    matrix = ranking.similarities()
    np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-4)  # the same numbers twice
    assert np.all(matrix.argmax(axis=0) == np.arange(3))
    assert [pair.names for pair in ranking.pairs(3)] == [(f"t_relu{i}", f"t_relu{i}") for i in range(3)]


def test_rankings_repeat_and_leave_the_networks_alone(networks, shapes_of_light, ranking: LayerRanking):
    teacher, student = networks
    before = [[weight.copy() for weight in model.get_weights()] for model in networks]
    again = keras_kd.rank_layers(teacher, student, *shapes_of_light, probe_pairs=2, probe_steps=8, seed=3)
    for pair, other in zip(again.all_pairs, ranking.all_pairs, strict=True):
        assert pair.similarity == pytest.approx(other.similarity, abs=1e-5)
        assert (pair.contribution is None) == (other.contribution is None)
        if pair.contribution is not None:
            # Threads may add in another order; eight steps of training leave it small.
            assert pair.contribution == pytest.approx(other.contribution, abs=1e-3)
    for weights, model in zip(before, networks):
        for one, now in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, now)
    assert teacher.trainable and all(layer.trainable for layer in teacher.layers)


def test_slow_moving_statistics_do_not_blur_a_probe_run(networks, shapes_of_light):
    teacher, student = networks
    losses = []
    for momentum in (0.9, 0.9999):
        twin = keras.models.clone_model(student)
        twin.set_weights(student.get_weights())
        for layer in twin.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = momentum
        one_pair = {"teacher_layers": ["t_relu2"], "student_layers": ["s_relu1"], "probe_pairs": 1}
        ranking = keras_kd.rank_layers(teacher, twin, *shapes_of_light, **one_pair, probe_steps=12)
        losses.append(ranking.loss_without)
        assert all(layer.momentum == momentum for layer in twin.layers if hasattr(layer, "momentum"))
    # Twelve steps: both are cut to 2/3. Left at 0.9999 the statistics would still be those of an untrained network.
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_without_labels_the_teacher_stands_in(networks, shapes_of_light):
    x, _ = shapes_of_light
    ranking = keras_kd.rank_layers(*networks, x, validation_data=(x[:64], None), probe_pairs=1, probe_steps=4)
    assert all(pair.worth is not None for pair in ranking.all_pairs)
    assert sum(pair.contribution is not None for pair in ranking.all_pairs) == 1


def test_table_plot_and_dict(ranking: LayerRanking, tmp_path):
    table = ranking.table()
    assert "t_relu2" in table and "of 2 pairs that were tried lowered it" in table
    assert len(ranking.table(2).splitlines()) == 2 + 2 + 1
    measured = {pair.teacher_layer for pair in ranking.all_pairs if pair.contribution is not None}
    figure = ranking.plot(tmp_path / "ranking.png")
    assert (tmp_path / "ranking.png").stat().st_size > 5000
    heat, worth, gains, _ = figure.axes  # the last one is the scale of the colours
    assert len(worth.patches) == 3 and len(gains.patches) == len(measured)
    np.testing.assert_array_equal(heat.images[0].get_array(), ranking.similarities())
    data = json.loads(json.dumps(ranking.to_dict()))
    assert LayerRanking.from_dict(data) == ranking


def pair(teacher: int, student: int, similarity: float) -> RankedPair:
    return RankedPair(f"t{teacher}", f"s{student}", teacher, student, similarity, None, None, 1.0)


def test_the_score_by_hand():
    plain = RankedPair("t", "s", 0, 0, 0.5, 0.8, None, 1.0)
    assert plain.score == pytest.approx(0.4)
    assert plain.with_contribution(0.03).score == pytest.approx(0.52)
    assert plain.with_contribution(-0.05).score == pytest.approx(0.2)
    assert plain.with_contribution(-0.5).score == 0.0
    assert RankedPair("t", "s", 0, 0, 0.5, None, 0.1, 1.0).score == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_pairs_are_the_best_without_crossing(n: int, seed: int):
    scores = np.random.default_rng(seed).uniform(size=(5, 4))
    found = [pair(t, s, scores[t, s]) for t in range(5) for s in range(4)]
    ranking = LayerRanking(
        tuple(f"t{i}" for i in range(5)), tuple(f"s{i}" for i in range(4)), tuple(found), None, 8, 0
    )
    chosen = ranking.pairs(n)
    for one, other in itertools.pairwise(chosen):
        assert one.teacher_index < other.teacher_index and one.student_index < other.student_index
    by_trying = max(
        sum(scores[t, s] for t, s in zip(ts, ss))
        for ts in itertools.combinations(range(5), n)
        for ss in itertools.combinations(range(4), n)
    )
    assert len(chosen) == n
    assert sum(one.score for one in chosen) == pytest.approx(by_trying)
    assert len(ranking.pairs(9)) == 4  # there are no more


def test_auto_makes_the_losses(ranking: LayerRanking, networks, shapes_of_light):
    teacher, student = networks
    expected = [one.names for one in ranking.pairs(2)]
    for method in (
        "feature",
        "attention",
        "selectivity",
        "similarity",
        "relational",
        "probabilistic",
        "variational",
    ):
        found = keras_kd.losses.auto(ranking, method, n=2)
        assert [(loss.teacher_layer_name, loss.student_layer_name) for loss in found] == expected
    (flow,) = keras_kd.losses.auto(ranking, "flow", n=2)
    assert (flow.teacher_layer_names, flow.student_layer_names) == tuple(zip(*expected))
    with pytest.raises(ValueError, match="Did you mean 'attention'"):
        keras_kd.losses.auto(ranking, "attentions")
    distiller = keras_kd.Distiller(
        teacher, student, keras_kd.losses.auto(ranking, n=2), ranking.loss_weights(2)
    )
    assert len(distiller.distillation_losses) == 2


def test_wrong_arguments(networks, shapes_of_light):
    teacher, student = networks
    x, y = shapes_of_light
    with pytest.raises(ValueError, match=r"seed must be(.|\n)*Did you mean 't_relu1'"):
        keras_kd.rank_layers(teacher, student, x, y, seed=-1, teacher_layers=["t_relu11"])
    with pytest.raises(ValueError, match="same number of examples"):
        keras_kd.rank_layers(teacher, student, x, y[:5])
    # Its number depends on how many such layers the process has made.
    (pooling,) = (layer.name for layer in student.layers if layer.name.startswith("global_average_pooling2d"))
    with pytest.raises(ValueError, match="no two layers"):
        keras_kd.rank_layers(teacher, student, x, y, student_layers=[pooling], probe_steps=0)


def test_confidence_weights_by_hand():
    logits = np.log([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    expected = np.array([0.7, 0.25, 0.8]) / np.mean([0.7, 0.25, 0.8])
    for given in (logits, np.exp(logits)):
        np.testing.assert_allclose(
            keras_kd.selection.confidence_weights(given, [0, 2, 2]), expected, rtol=1e-5
        )
    one_hot = np.eye(3)[[0, 2, 2]]
    np.testing.assert_allclose(keras_kd.selection.confidence_weights(logits, one_hot), expected, rtol=1e-5)
    softer = keras_kd.selection.confidence_weights(logits, [0, 2, 2], temperature=100.0)
    np.testing.assert_allclose(softer, 1.0, atol=0.02)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2(.|\n)*temperature"):
        keras_kd.selection.confidence_weights(logits, [0, 2, 7], temperature=0.0)
