"""Every loss against a NumPy reference in float64, its invariances, and its gradient against differences.

The references are written from the papers and from the conventions of their CIFAR-100 implementations, one
example and one pair at a time, without looking at the code they check.
"""

import itertools

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses

hypothesis.settings.register_profile("few", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.load_profile("few")

RNG = np.random.default_rng(5)


def values(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), "float64")


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


# References: one example at a time.


def soft_target_kl(t, s, temperature):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * sum(pk * np.log(pk / qk) for pk, qk in zip(p, q))


def soft_target_crossentropy(t, s, temperature):
    return -(temperature**2) * sum(
        pk * np.log(qk) for pk, qk in zip(softmax(t / temperature), softmax(s / temperature))
    )


def decoupled_kl(t, s, label, alpha, beta, temperature):
    p, q = softmax(t / temperature), softmax(s / temperature)
    target = p[label] * np.log(p[label] / q[label]) + (1 - p[label]) * np.log((1 - p[label]) / (1 - q[label]))
    others = [k for k in range(len(t)) if k != label]
    p, q = softmax(t[others] / temperature), softmax(s[others] / temperature)
    return temperature**2 * (alpha * target + beta * np.sum(p * np.log(p / q)))


def normalized_kd(t, s, label, gamma, temperature):
    target = -softmax(t)[label] * np.log(softmax(s)[label])
    others = [k for k in range(len(t)) if k != label]
    p, q = softmax(t[others] / temperature), softmax(s[others] / temperature)
    return target - gamma * temperature**2 * np.sum(p * np.log(q))


def soft_target_bce(t, s, temperature):
    p, q = 1 / (1 + np.exp(-t / temperature)), 1 / (1 + np.exp(-s / temperature))
    return temperature**2 * np.mean(-p * np.log(q) - (1 - p) * np.log(1 - q))


def correlation_distance(t, s, beta, gamma, temperature):
    p, q = (np.stack([softmax(row / temperature) for row in z]) for z in (t, s))
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)]
    columns = [np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)]
    return temperature**2 * (beta * (1 - np.mean(rows)) + gamma * (1 - np.mean(columns)))


def pooled(x, size):
    """Adaptive average pooling of one [h, w, c] map to size x size."""
    h, w, _ = x.shape
    window = lambda i, n: slice(i * n // size, -(-(i + 1) * n // size))  # noqa: E731
    return np.stack([[x[window(i, h), window(j, w)].mean((0, 1)) for j in range(size)] for i in range(size)])


def to_smaller(t, s):
    size = min(len(t), len(s))
    return pooled(t, size), pooled(s, size)


def attention_distance(t, s, p):
    t, s = to_smaller(t, s)
    maps = [(f**p).mean(-1).ravel() for f in (t, s)]
    a, b = (m / np.linalg.norm(m) for m in maps)
    return np.mean((a - b) ** 2)


def flow_distance(t1, t2, s1, s2):
    def gram(one, two):
        one, two = to_smaller(one, two)
        size = one.shape[0] * one.shape[1]
        return np.array(
            [
                [(one[..., i] * two[..., j]).sum() / size for j in range(two.shape[-1])]
                for i in range(one.shape[-1])
            ]
        )

    return np.mean((gram(t1, t2) - gram(s1, s2)) ** 2)


def neuron_selectivity_mmd(t, s):
    t, s = to_smaller(t, s)
    rows = lambda f: [c / np.linalg.norm(c) for c in f.reshape(-1, f.shape[-1]).T]  # noqa: E731
    kernel = lambda a, b: np.mean([[(x @ y) ** 2 for y in b] for x in a])  # noqa: E731
    t, s = rows(t), rows(s)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(t, s)


def gaussian_nll(t, mean, log_scale):
    variance = np.log1p(np.exp(log_scale)) + 1e-5
    return np.mean(0.5 * ((t - mean) ** 2 / variance + np.log(variance)))


def similarity_distance(t, s):
    def rows(f):
        gram = f @ f.T
        return np.stack([row / np.linalg.norm(row) for row in gram])

    return np.sum((rows(t) - rows(s)) ** 2) / len(t) ** 2


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def relational_distance(t, s, distance_weight, angle_weight):
    n = len(t)

    def distances(f):
        d = np.array([[np.linalg.norm(a - b) for b in f] for a in f])
        return d / d[d > 0].mean()

    def angles(f):
        unit = lambda v: v / max(np.linalg.norm(v), 1e-12)  # noqa: E731
        return [
            unit(f[i] - f[j]) @ unit(f[k] - f[j])
            for j, i, k in itertools.product(range(n), range(n), range(n))
        ]

    distance = np.mean([huber(x) for x in (distances(s) - distances(t)).ravel()])
    angle = np.mean([huber(a - b) for a, b in zip(angles(s), angles(t))])
    return distance_weight * distance + angle_weight * angle


def cosine_kernel_kl(t, s):
    def neighbors(f):
        unit = f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-7)
        similarity = (unit @ unit.T + 1) / 2
        return similarity / similarity.sum(1, keepdims=True)

    p, q = neighbors(t), neighbors(s)
    return np.mean(p * np.log((p + 1e-7) / (q + 1e-7)))


def test_losses_on_logits():
    t, s = 3 * RNG.normal(size=(6, 5)), 3 * RNG.normal(size=(6, 5))
    labels = RNG.integers(0, 5, 6)
    each = lambda f, *more: [f(a, b, *more) for a, b in zip(t, s)]  # noqa: E731
    close = lambda ours, reference: np.testing.assert_allclose(values(ours), reference, rtol=1e-9)  # noqa: E731
    for temperature in (0.5, 1.0, 4.0):
        close(losses.soft_target_kl(t, s, temperature=temperature), each(soft_target_kl, temperature))
        close(losses.soft_target_bce(t, s, temperature=temperature), each(soft_target_bce, temperature))
        close(
            losses.soft_target_crossentropy(t, s, temperature=temperature),
            each(soft_target_crossentropy, temperature),
        )
        for given in (labels, labels[:, None], np.eye(5)[labels], 0.6 * np.eye(5)[labels] + 0.08):
            ours = losses.decoupled_kl(t, s, given, alpha=0.7, beta=3.0, temperature=temperature)
            close(ours, [decoupled_kl(a, b, k, 0.7, 3.0, temperature) for a, b, k in zip(t, s, labels)])
            ours = losses.normalized_kd(t, s, given, gamma=0.3, temperature=temperature)
            close(ours, [normalized_kd(a, b, k, 0.3, temperature) for a, b, k in zip(t, s, labels)])
        ours = losses.correlation_distance(t, s, beta=2.0, gamma=0.5, temperature=temperature)
        close(ours, correlation_distance(t, s, 2.0, 0.5, temperature))
    scale = lambda z: (z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7)  # noqa: E731
    expected = [soft_target_kl(a, b, 2.0) for a, b in zip(scale(t), scale(s))]
    close(losses.soft_target_kl(t, s, temperature=2.0, standardize=True), expected)


@pytest.mark.parametrize(("teacher_size", "student_size"), [(4, 4), (8, 4), (4, 8), (7, 5)])
def test_losses_on_feature_maps(teacher_size, student_size):
    t = RNG.normal(size=(3, teacher_size, teacher_size, 4))
    s, wide = (RNG.normal(size=(3, student_size, student_size, c)) for c in (4, 6))
    close = lambda ours, reference: np.testing.assert_allclose(values(ours), reference, rtol=1e-8)  # noqa: E731
    close(losses.hint_distance(t, s), [np.mean(np.subtract(*to_smaller(a, b)) ** 2) for a, b in zip(t, s)])
    for p in (1, 2, 3):
        close(losses.attention_distance(t, wide, p=p), [attention_distance(a, b, p) for a, b in zip(t, wide)])
    close(losses.neuron_selectivity_mmd(t, wide), [neuron_selectivity_mmd(a, b) for a, b in zip(t, wide)])
    t2, s2 = RNG.normal(size=(3, 3, 3, 2)), RNG.normal(size=(3, student_size, student_size, 2))
    close(losses.flow_distance((t, t2), (s, s2)), [flow_distance(*four) for four in zip(t, t2, s, s2)])
    log_scale = RNG.normal(size=4)
    expected = [gaussian_nll(*to_smaller(a, b), log_scale) for a, b in zip(t, s)]
    close(losses.gaussian_nll(t, s, log_scale), expected)


def test_losses_on_relations():
    t, s = RNG.normal(size=(5, 2, 3)), RNG.normal(size=(5, 4))
    flat = t.reshape(5, 6)
    np.testing.assert_allclose(
        values(losses.similarity_distance(t, s)), similarity_distance(flat, s), rtol=1e-9
    )
    np.testing.assert_allclose(values(losses.cosine_kernel_kl(t, s)), cosine_kernel_kl(flat, s), rtol=1e-6)
    for weights in ((25.0, 50.0), (1.0, 0.0), (0.0, 1.0)):
        ours = losses.relational_distance(t, s, distance_weight=weights[0], angle_weight=weights[1])
        np.testing.assert_allclose(values(ours), relational_distance(flat, s, *weights), rtol=1e-9)


# Properties.

finite = st.floats(-8, 8, width=32)
two_logits = st.tuples(st.integers(1, 4), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(*[arrays.arrays(np.float64, shape, elements=finite)] * 2)
)
temperatures = st.sampled_from([0.5, 1.0, 3.0, 10.0])


@hypothesis.given(two_logits, temperatures, st.floats(-50, 50))
def test_soft_targets_are_non_negative_zero_at_the_teacher_and_free_of_shifts(pair, temperature, shift):
    t, s = pair
    kl = values(losses.soft_target_kl(t, s, temperature=temperature))
    assert (kl >= -1e-9).all()
    np.testing.assert_allclose(
        values(losses.soft_target_kl(t, t + shift, temperature=temperature)), 0, atol=1e-9
    )
    shifted = losses.soft_target_kl(t + shift, s - shift, temperature=temperature)
    np.testing.assert_allclose(values(shifted), kl, atol=1e-8)


@hypothesis.given(two_logits, temperatures)
def test_soft_targets_are_zero_only_at_the_teacher(pair, temperature):
    t, s = pair
    centered = lambda z: z - z.mean(-1, keepdims=True)  # noqa: E731
    far = np.abs(centered(t) - centered(s)).max(-1) > 0.5
    assert (values(losses.soft_target_kl(t, s, temperature=temperature))[far] > 1e-9).all()


@hypothesis.given(two_logits, temperatures)
def test_the_gradient_of_soft_targets_is_temperature_times_the_difference(pair, temperature):
    t, s = pair
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(losses.soft_target_kl(t, variable, temperature=temperature))
    p, q = (np.stack([softmax(row / temperature) for row in z]) for z in (t, s))
    np.testing.assert_allclose(tape.gradient(loss, variable).numpy(), temperature * (q - p), atol=1e-9)


@hypothesis.given(two_logits, temperatures)
def test_decoupled_soft_targets_add_up_to_soft_targets(pair, temperature):
    t, s = pair
    labels = np.zeros(len(t), int)
    p = np.stack([softmax(row / temperature) for row in t])[:, 0]
    decoupled = losses.decoupled_kl(t, s, labels, alpha=1.0, beta=1.0 - p, temperature=temperature)
    whole = losses.soft_target_kl(t, s, temperature=temperature)
    np.testing.assert_allclose(values(decoupled), values(whole), atol=1e-8)
    assert (values(losses.decoupled_kl(t, s, labels, temperature=temperature)) >= -1e-9).all()
    np.testing.assert_allclose(
        values(losses.decoupled_kl(t, t, labels, temperature=temperature)), 0, atol=1e-9
    )


@hypothesis.given(two_logits, st.floats(0.1, 10), st.floats(-5, 5))
def test_standardized_logits_are_free_of_scale_and_shift(pair, scale, shift):
    t, s = pair
    hypothesis.assume((t.std(-1) > 0.1).all() and (s.std(-1) > 0.1).all())
    plain = losses.soft_target_kl(t, s, standardize=True)
    moved = losses.soft_target_kl(scale * t + shift, s / scale - shift, standardize=True)
    np.testing.assert_allclose(values(moved), values(plain), atol=1e-4)  # the ε of the paper is not scaled


@hypothesis.given(two_logits, temperatures)
def test_cross_entropies_are_least_at_the_teacher(pair, temperature):
    t, s = pair
    labels = np.zeros(len(t), int)
    bce, ce = losses.soft_target_bce, losses.soft_target_crossentropy
    assert (
        values(bce(t, s, temperature=temperature)) >= values(bce(t, t, temperature=temperature)) - 1e-9
    ).all()
    assert (
        values(ce(t, s, temperature=temperature)) >= values(ce(t, t, temperature=temperature)) - 1e-9
    ).all()
    moved = losses.normalized_kd(t + 3.0, s - 7.0, labels, temperature=temperature)
    np.testing.assert_allclose(
        values(moved), values(losses.normalized_kd(t, s, labels, temperature=temperature)), atol=1e-8
    )


@hypothesis.given(two_logits, temperatures)
def test_correlations_are_bounded_and_zero_at_the_teacher(pair, temperature):
    t, s = pair
    assert (
        -1e-9
        <= float(losses.correlation_distance(t, s, temperature=temperature))
        <= 4 * temperature**2 + 1e-9
    )
    p = np.stack([softmax(row / temperature) for row in t])
    hypothesis.assume(p.std(-1).min() > 1e-3 and p.std(0).min() > 1e-3)
    assert float(losses.correlation_distance(t, t, temperature=temperature)) == pytest.approx(
        0, abs=1e-9 * temperature**2
    )


maps = st.tuples(st.integers(2, 4), st.integers(1, 3)).flatmap(
    lambda s: st.tuples(
        arrays.arrays(np.float64, (s[0], 3, 3, s[1]), elements=st.floats(0.1, 4)),
        arrays.arrays(np.float64, (s[0], 3, 3, s[1]), elements=st.floats(0.1, 4)),
    )
)


@hypothesis.given(maps, st.floats(0.1, 10))
def test_feature_losses_are_zero_at_the_teacher_and_some_are_free_of_scale(pair, scale):
    t, s = pair
    for distance in (losses.hint_distance, losses.attention_distance, losses.neuron_selectivity_mmd):
        np.testing.assert_allclose(values(distance(t, t)), 0, atol=1e-9)
        assert (values(distance(t, s)) >= -1e-9).all()
    np.testing.assert_allclose(values(losses.flow_distance((t, s), (t, s))), 0, atol=1e-9)
    for distance in (losses.attention_distance, losses.neuron_selectivity_mmd):
        np.testing.assert_allclose(values(distance(scale * t, s)), values(distance(t, s)), atol=1e-9)
    # The channels of a selectivity pattern have no order.
    reordered = losses.neuron_selectivity_mmd(t[..., ::-1], s)
    np.testing.assert_allclose(values(reordered), values(losses.neuron_selectivity_mmd(t, s)), atol=1e-9)


@hypothesis.given(maps, st.floats(0.3, 1.0))
def test_feature_losses_are_zero_at_the_teacher_only(pair, step):
    t, _ = pair
    changed = t.copy()
    changed[:, 1, 1, 0] += step  # one position of one channel: another size, map and pattern
    assert (values(losses.hint_distance(t, changed)) > 1e-4).all()
    assert (values(losses.attention_distance(t, changed)) > 1e-12).all()
    assert (values(losses.neuron_selectivity_mmd(t[..., :1], changed[..., :1])) > 1e-12).all()
    assert (values(losses.flow_distance((t, t), (changed, changed))) > 1e-9).all()
    # Likelihood has no zero: with any spread it is greatest where the mean is the teacher's feature.
    log_scale = np.zeros(t.shape[-1])
    best, other = (values(losses.gaussian_nll(t, mean, log_scale)) for mean in (t, changed))
    assert (other > best).all()


@hypothesis.given(maps, st.floats(0.5, 4), st.integers(0, 2**31 - 1))
def test_relations_are_free_of_scale_rotation_and_order(pair, scale, seed):
    t, s = (x.reshape(len(x), -1) for x in pair)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(s.shape[1],) * 2))[0]
    order = np.random.default_rng(seed).permutation(len(t))
    # Between two equal examples an angle is not defined, and rounding after the rotation would choose one.
    for x in (t, s):
        gaps = np.abs(x[:, None] - x[None]).max(-1) + np.eye(len(x))
        hypothesis.assume(gaps.min() > 0.1)
    for distance in (losses.similarity_distance, losses.relational_distance, losses.cosine_kernel_kl):
        plain = float(distance(t, s))
        assert plain >= -1e-9
        assert float(distance(t, t)) == pytest.approx(0, abs=1e-7)
        assert float(distance(t, scale * s @ rotation)) == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert float(distance(t[order], s[order])) == pytest.approx(plain, rel=1e-6, abs=1e-9)
    moved = float(losses.relational_distance(t, s + 3.0))
    assert moved == pytest.approx(float(losses.relational_distance(t, s)), rel=1e-4, abs=1e-6)
