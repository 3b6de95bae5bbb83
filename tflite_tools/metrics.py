"""Metrics in plain NumPy and float64. Every function takes whole arrays and returns numbers."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, without overflow.

    Example:
      >>> np.exp(log_softmax(np.array([[0.0, 0.0]]))).tolist()
      [[0.5, 0.5]]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Fraction of rows whose label is among the k highest scores; ties go to the lower number, as in argmax.

    Args:
      scores: [examples, classes].
      labels: [examples], class numbers.
      k: at least 1.

    Example:
      >>> top_k_accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]), 1)
      0.5
    """
    rows = np.arange(len(labels))
    own = scores[rows, labels][:, None]
    classes = np.arange(scores.shape[1])[None]
    ahead = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return float(np.mean(ahead.sum(axis=1) < k))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [true class, predicted class].

    Example:
      >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
      [[1, 1], [0, 1]]
    """
    flat = labels.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> float:
    """Gap between confidence and accuracy, averaged over bins of confidence weighted by their size.

    Args:
      probabilities: [examples, classes], rows summing to 1.
      labels: [examples], class numbers.
      num_bins: equal bins of (0, 1].
    Source: Guo et al. 2017, arXiv:1706.04599, equation 3.

    Example:
      >>> round(expected_calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 6)
      0.4
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    sizes = np.bincount(bins, minlength=num_bins)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / max(1, sizes.sum()))


def roc_auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Probability that a positive example scores above a negative one, ties counted half.

    None without both kinds.


    Source: Mann-Whitney U statistic; Hanley and McNeil 1982.

    Example:
      >>> roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
      0.75
    """
    positive = np.asarray(labels).astype(bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = mean_rank[inverse.ravel()][positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def sqnr_db(reference: np.ndarray, measured: np.ndarray) -> float | None:
    """Signal to quantization noise, 10 log10(sum r^2 / sum (r - m)^2) in dB.

    None when there is no noise or no signal.


    Example:
      >>> round(sqnr_db(np.array([1.0, 1.0]), np.array([1.1, 0.9])), 6)
      20.0
    """
    reference64 = np.asarray(reference, np.float64)
    signal = float(np.sum(reference64**2))
    noise = float(np.sum((reference64 - np.asarray(measured, np.float64)) ** 2))
    if not (0 < noise < np.inf) or not (0 < signal < np.inf):
        return None
    return 10.0 * float(np.log10(signal / noise))
