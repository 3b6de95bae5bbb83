"""The k largest logits of many, and the log-sum-exp of the rest.

What is dropped is put back evenly: each of the other C - k classes gets the logit rest - log(C - k). At T = 1 the
remaining mass is then exactly the teacher's; at other temperatures an even spread is the least peaked one, so the
error is bounded, and `top_k_error` measures it.
"""

from typing import Any, NamedTuple

import numpy as np


class TopK(NamedTuple):
    """`values` [..., k] in falling order, `indices` [..., k], and `rest` [...]."""

    values: np.ndarray
    indices: np.ndarray
    rest: np.ndarray


def index_dtype(classes: int) -> np.dtype[Any]:
    """The smallest unsigned type that counts the classes.

    Example:
      >>> index_dtype(1000).name
      'uint16'
    """
    return np.min_scalar_type(classes - 1)


def take_top_k(logits: np.ndarray, k: int) -> TopK:
    """Split logits into the k largest and the log-sum-exp of the others.

    Args:
      logits: float [..., classes].
      k: 1 <= k < classes.

    Example:
      >>> top = take_top_k(np.log([[0.1, 0.6, 0.3]]), 1)
      >>> np.exp(top.values).round(4).tolist(), top.indices.tolist(), np.exp(top.rest).round(4).tolist()
      ([[0.6]], [[1]], [0.4...])
    """
    classes = logits.shape[-1]
    if not 1 <= k < classes:
        raise ValueError(
            f"top_k must be from 1 to {classes - 1} for {classes} classes, got {k}; None keeps them all."
        )
    chosen = np.argpartition(logits, classes - k, axis=-1)[..., classes - k :]
    values = np.take_along_axis(logits, chosen, axis=-1)
    order = np.lexsort((chosen, -values), axis=-1)
    chosen = np.take_along_axis(chosen, order, axis=-1)
    values = np.take_along_axis(values, order, axis=-1)
    others = np.array(logits, dtype=np.float32)
    np.put_along_axis(others, chosen, -np.inf, axis=-1)
    highest = others.max(axis=-1, keepdims=True)
    rest = highest[..., 0] + np.log(np.exp(others - highest).sum(axis=-1))
    return TopK(values, chosen.astype(index_dtype(classes)), rest.astype(np.float32))


def dense_logits(top: TopK, classes: int) -> np.ndarray:
    """All logits again, float32 [..., classes], the rest spread evenly.

    Example:
      >>> top = take_top_k(np.log([[0.1, 0.6, 0.3]]), 1)
      >>> np.exp(dense_logits(top, 3)).round(4).tolist()
      [[0.2..., 0.6..., 0.2...]]

    Source: Wu et al. 2022, TinyViT, arXiv:2207.10666, section 3.1 (label smoothing over what is not stored).
    """
    k = top.values.shape[-1]
    fill = top.rest.astype(np.float32)[..., None] - np.float32(np.log(classes - k))
    dense = np.broadcast_to(fill, (*top.rest.shape, classes)).copy()
    np.put_along_axis(dense, top.indices.astype(np.int64), top.values.astype(np.float32), axis=-1)
    return dense


def top_k_error(
    logits: np.ndarray,
    k: int,
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0),
    *,
    dtype: str = "float16",
) -> list[dict[str, float]]:
    """What keeping k logits costs, against all of them.

    Args:
      logits: float [examples, classes].
      k: how many are kept.
      temperatures: T > 0, dimensionless.
      dtype: what the k values are stored in.

    Returns:
      For each T a dict: "temperature", "kl" (mean KL(full‖kept) in nats), "total_variation" (mean), and "kept_mass"
      (the mean probability of the k classes).

    Example:
      >>> rows = top_k_error(np.array([[4.0, 1.0, 1.0, 1.0]]), 1, (1.0, 8.0))
      >>> [round(row["kl"], 6) for row in rows]  # the rest was even to begin with
      [0.0, 0.0]
    """
    top = take_top_k(logits, k)
    kept = dense_logits(top._replace(values=top.values.astype(dtype)), logits.shape[-1]).astype(np.float64)
    rows = []
    for temperature in temperatures:
        p, q = (_log_softmax(z / temperature) for z in (logits.astype(np.float64), kept))
        mass = np.take_along_axis(np.exp(p), top.indices.astype(np.int64), axis=-1).sum(axis=-1)
        rows.append(
            {
                "temperature": float(temperature),
                "kl": float((np.exp(p) * (p - q)).sum(axis=-1).mean()),
                "total_variation": float(0.5 * np.abs(np.exp(p) - np.exp(q)).sum(axis=-1).mean()),
                "kept_mass": float(mass.mean()),
            }
        )
    return rows


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
