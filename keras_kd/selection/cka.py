"""How alike two layers see the same inputs: linear CKA, batch by batch."""

from collections.abc import Mapping, Sequence

import numpy as np

#: The unbiased estimator divides by n - 3.
FEWEST_EXAMPLES = 4


def gram_matrix(features: np.ndarray) -> np.ndarray:
    """Inner products of the examples with each other.

    Args:
      features: float [examples, ...].

    Returns:
      float64 [examples, examples], with zeros on the diagonal, as the unbiased estimator wants them.
    """
    flat = np.asarray(features, dtype=np.float32).reshape(len(features), -1)
    # CKA does not depend on the mean, and without it float32 has more digits left for what differs.
    flat = flat - flat.mean(axis=0)
    gram = (flat @ flat.T).astype(np.float64)
    np.fill_diagonal(gram, 0.0)
    return gram


def unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion of two kernels.

    [tr(K L) + (1'K 1)(1'L 1) / ((n-1)(n-2)) - 2/(n-2) 1'K L 1] / (n (n-3)), diagonals of K and L being zero.

    Args:
      first: float [n, n], symmetric, zero diagonal.
      second: the same.

    Returns:
      An estimate whose mean over batches is that of the whole data, and which may be negative.

    Raises:
      ValueError: fewer than four examples.

    Example:
      >>> kernel = np.ones((4, 4)) - np.eye(4)  # all examples alike: nothing varies
      >>> round(unbiased_hsic(kernel, kernel), 12)
      0.0

    Source: Song et al. 2012, JMLR 13, equation 5; over batches: Nguyen et al. 2021, arXiv:2010.15327, equation 4.
    """
    n = len(first)
    if n < FEWEST_EXAMPLES:
        raise ValueError(f"The unbiased HSIC needs at least {FEWEST_EXAMPLES} examples, got {n}.")
    trace = np.sum(first * second)
    sums = first.sum() * second.sum() / ((n - 1) * (n - 2))
    cross = 2.0 * first.sum(axis=0) @ second.sum(axis=1) / (n - 2)
    return float((trace + sums - cross) / (n * (n - 3)))


class StreamingCKA:
    """Linear CKA of every teacher layer with every student layer; memory does not grow with the examples.

    Args:
      teacher_layers: names, in order.
      student_layers: names, in order.

    Example:
      >>> features = np.random.default_rng(0).normal(size=(16, 5))
      >>> cka = StreamingCKA(["a"], ["b"])
      >>> cka.update({"a": features}, {"b": -3.0 * features})
      >>> cka.result().round(6).tolist()
      [[1.0]]
    """

    def __init__(self, teacher_layers: Sequence[str], student_layers: Sequence[str]):
        self.teacher_layers, self.student_layers = list(teacher_layers), list(student_layers)
        self._both = np.zeros((len(self.teacher_layers), len(self.student_layers)))
        self._teacher = np.zeros(len(self.teacher_layers))
        self._student = np.zeros(len(self.student_layers))

    def update(self, teacher: Mapping[str, np.ndarray], student: Mapping[str, np.ndarray]) -> None:
        """Add a batch: {layer: features [examples, ...]} of both networks on the same examples."""
        examples = len(next(iter(teacher.values())))
        if examples < FEWEST_EXAMPLES:
            return
        teacher_grams = [gram_matrix(teacher[name]) for name in self.teacher_layers]
        student_grams = [gram_matrix(student[name]) for name in self.student_layers]
        self._teacher += examples * np.array([unbiased_hsic(gram, gram) for gram in teacher_grams])
        self._student += examples * np.array([unbiased_hsic(gram, gram) for gram in student_grams])
        for row, first in enumerate(teacher_grams):
            self._both[row] += examples * np.array([unbiased_hsic(first, second) for second in student_grams])

    def result(self) -> np.ndarray:
        """Float [teacher layers, student layers], about 0 (nothing in common) to 1; 0 where a layer is constant."""
        scale = np.sqrt(np.maximum(np.outer(self._teacher, self._student), 0.0))
        return np.divide(self._both, scale, out=np.zeros_like(self._both), where=scale > 0)
