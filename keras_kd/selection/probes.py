"""What a layer knows by itself: the accuracy of a linear classifier on its features."""

import numpy as np


class LinearProbe:
    """Ridge regression from features to classes, fitted from sums that are collected batch by batch.

    Feature maps are averaged over their positions first; each feature is scaled to unit variance.

    Args:
      classes: how many.
      ridge: strength of the penalty, relative to the variance of a feature.

    Example:
      >>> x = np.array([[0.0, 5.0], [0.1, 4.0], [1.0, 5.0], [0.9, 4.0]])
      >>> probe = LinearProbe(classes=2)
      >>> probe.update(x, np.array([0, 0, 1, 1]))
      >>> probe.solve().predict(x).tolist()
      [0, 0, 1, 1]

    Source: Alain and Bengio 2016, arXiv:1610.01644, with a closed solution in place of gradient descent.
    """

    def __init__(self, classes: int, *, ridge: float = 1e-3):
        self._classes, self._ridge = classes, ridge
        self._count = 0
        self._squares: np.ndarray | None = None
        self._targets: np.ndarray | None = None
        self._sum: np.ndarray | None = None
        self._labels = np.zeros(classes)
        self._weights: np.ndarray | None = None
        self._bias: np.ndarray | None = None

    def update(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: float [examples, ..., channels] and int [examples]."""
        x = pooled(features)
        one_hot = np.eye(self._classes)[labels]
        if self._squares is None or self._sum is None or self._targets is None:
            width = x.shape[1]
            self._squares, self._sum = np.zeros((width, width)), np.zeros(width)
            self._targets = np.zeros((width, self._classes))
        self._squares += x.T @ x
        self._targets += x.T @ one_hot
        self._sum += x.sum(axis=0)
        self._labels += one_hot.sum(axis=0)
        self._count += len(x)

    def solve(self) -> "LinearProbe":
        """Fit; the probe itself, for chaining."""
        if self._squares is None or self._sum is None or self._targets is None:
            raise ValueError("The probe has seen no examples.")
        mean, labels = self._sum / self._count, self._labels / self._count
        covariance = self._squares / self._count - np.outer(mean, mean)
        scale = 1.0 / np.sqrt(np.maximum(np.diag(covariance), 1e-12))
        correlation = covariance * np.outer(scale, scale)
        right = (self._targets / self._count - np.outer(mean, labels)) * scale[:, None]
        solution = np.linalg.solve(correlation + self._ridge * np.eye(len(scale)), right)
        self._weights = solution * scale[:, None]
        self._bias = labels - mean @ self._weights
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The most likely class of each example, int [examples]."""
        if self._weights is None:
            self.solve()
        return np.argmax(pooled(features) @ self._weights + self._bias, axis=1)


def pooled(features: np.ndarray) -> np.ndarray:
    """Feature maps [examples, ..., channels] averaged over their positions, float64 [examples, channels]."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(axis=tuple(range(1, features.ndim - 1))) if features.ndim > 2 else features
