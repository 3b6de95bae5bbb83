"""Metrics against hand-computed literals and plain loops."""

import math

import numpy as np
import pytest

from tflite_tools.metrics import (
    confusion_matrix,
    expected_calibration_error,
    log_softmax,
    roc_auc,
    sqnr_db,
    top_k_accuracy,
)


def test_log_softmax_literal_and_large_values():
    # softmax([1, 2, 3]) = e^k / (e + e^2 + e^3)
    expected = [-2.40760596, -1.40760596, -0.40760596]
    np.testing.assert_allclose(log_softmax(np.array([[1.0, 2.0, 3.0]]))[0], expected, atol=1e-8)
    np.testing.assert_allclose(log_softmax(np.array([[1001.0, 1002.0, 1003.0]]))[0], expected, atol=1e-8)


def test_top_k_counts_ties_for_the_lower_class():
    scores = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    assert top_k_accuracy(scores, np.array([0, 1, 1]), 1) == pytest.approx(2 / 3)  # argmax takes the first
    assert top_k_accuracy(scores, np.array([1, 1, 0]), 2) == pytest.approx(2 / 3)
    assert top_k_accuracy(scores, np.array([2, 2, 0]), 3) == 1.0


def test_top_k_equals_sorting():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 9)), rng.integers(0, 9, 200)
    for k in (1, 3, 5):
        expected = np.mean([label in np.argsort(-row)[:k] for row, label in zip(scores, labels)])
        assert top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_confusion_rows_are_true_classes():
    matrix = confusion_matrix(np.array([2, 2, 0]), np.array([1, 2, 0]), 3)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_calibration_error_by_hand():
    # Two bins of ten: (0.6, 0.7] holds one wrong answer of confidence 0.65 and one right of 0.65,
    # (0.9, 1] holds one right answer of confidence 0.95.
    p = np.array([[0.65, 0.35], [0.65, 0.35], [0.95, 0.05]])
    labels = np.array([0, 1, 0])
    expected = 2 / 3 * abs(0.5 - 0.65) + 1 / 3 * abs(1.0 - 0.95)
    assert expected_calibration_error(p, labels, 10) == pytest.approx(expected)


def test_a_perfectly_calibrated_model_has_no_calibration_error():
    p = np.full((10, 2), 0.5)
    p[:, 0], p[:, 1] = 0.7, 0.3
    labels = np.array([0] * 7 + [1] * 3)
    assert expected_calibration_error(p, labels) == pytest.approx(0.0, abs=1e-12)


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 6, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[labels == 1] for b in scores[labels == 0]
    ]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_auc_without_both_kinds_is_not_measured():
    assert roc_auc(np.array([1.0, 2.0]), np.array([1, 1])) is None


def test_sqnr_literals():
    assert sqnr_db(np.array([10.0]), np.array([9.0])) == pytest.approx(20.0)
    assert sqnr_db(np.array([1.0]), np.array([1.0])) is None
    # A uniform quantizer's noise is step^2 / 12: about 6.02 dB a bit for a full-scale uniform signal.
    x = np.random.default_rng(0).uniform(-1, 1, 200_000)
    steps = 2.0 / 256
    assert sqnr_db(x, np.round(x / steps) * steps) == pytest.approx(20 * math.log10(256), abs=0.1)
