"""The k largest logits: the rest has the right mass at T = 1, and at other temperatures the error has a bound."""

import numpy as np
import pytest

from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.cache_topk import dense_logits, take_top_k, top_k_error

ROWS, CLASSES = 200, 30


@pytest.fixture(params=[0.5, 3.0, 12.0], ids=["flat", "middling", "peaked"])
def logits(request):
    return np.random.default_rng(0).normal(0, request.param, (ROWS, CLASSES)).astype("float32")


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("k", [1, 5, 29])
def test_at_temperature_one_every_kept_probability_and_the_rest_are_right(logits, k):
    top = take_top_k(logits, k)
    p, q = (np.exp(log_softmax(z)) for z in (logits, dense_logits(top, CLASSES)))
    expected = np.sort(p, axis=-1)[:, ::-1]
    np.testing.assert_array_equal(top.indices[:, 0], p.argmax(axis=-1))
    kept = np.take_along_axis(q, top.indices.astype(int), axis=-1)
    # float32 sums over 30 classes: a few times 2**-23.
    np.testing.assert_allclose(kept, expected[:, :k], rtol=1e-5)
    # The rest is spread evenly.
    others = np.sort(q, axis=-1)[:, : CLASSES - k]
    if k < CLASSES / 2:
        np.testing.assert_allclose(others, np.broadcast_to(others[:, :1], others.shape), rtol=1e-5)
    np.testing.assert_allclose(1.0 - kept.sum(axis=-1), expected[:, k:].sum(axis=-1), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0, 8.0])
def test_at_other_temperatures_the_error_is_bounded(logits, temperature):
    """|log p - log q| <= |1 - 1/T| log(C - k) for every kept class.

    The sum of e^(z/T) over the other classes lies between (sum of e^z)^(1/T) and that times (C - k)^(1 - 1/T), and the
    even spread is at the second end.
    """
    k = 5
    top = take_top_k(logits, k)
    p, q = (log_softmax(z / temperature) for z in (logits, dense_logits(top, CLASSES)))
    places = top.indices.astype(int)
    difference = np.take_along_axis(p - q, places, axis=-1)
    bound = abs(1.0 - 1.0 / temperature) * np.log(CLASSES - k)
    assert np.abs(difference).max() <= bound + 1e-5
    # Above T = 1 the even spread takes too much from the kept classes, never too little; below it is the other way.
    assert (np.sign(temperature - 1.0) * difference).min() >= -1e-5
    (row,) = top_k_error(logits, k, (temperature,), dtype="float32")
    assert 0.0 <= row["kl"] <= bound + 2 * np.log(CLASSES) * (1.0 - row["kept_mass"])


def test_more_logits_are_a_smaller_error(logits):
    errors = [top_k_error(logits, k, (1.0, 4.0), dtype="float32") for k in (1, 3, 10, 29)]
    for one in range(2):
        kl = [rows[one]["kl"] for rows in errors]
        # With 29 of 30 kept the rest is one class, and nothing is lost: float32 rounding is left.
        assert kl == sorted(kl, reverse=True) and kl[-1] < 1e-6


def test_equal_logits_lose_nothing():
    top = take_top_k(np.zeros((2, 4), np.float32), 2)
    assert top.values.tolist() == [[0.0, 0.0]] * 2
    np.testing.assert_allclose(dense_logits(top, 4), np.zeros((2, 4)), atol=1e-6)


def test_what_a_cache_reads_back_is_what_was_kept(logits, tmp_path):
    x = np.arange(ROWS, dtype="float32")[:, None]
    cache = TeacherCache.build(
        lambda batch: logits[batch[:, 0].astype(int)], x, tmp_path, top_k=5, dtype="float32", verbose=False
    )
    stored = cache.targets(np.arange(ROWS))["outputs"]
    np.testing.assert_array_equal(stored, dense_logits(take_top_k(logits, 5), CLASSES))
