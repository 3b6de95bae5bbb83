"""Losses for the pairs of layers that a ranking chose."""

import itertools
from collections.abc import Callable
from typing import Any

from keras_kd.errors import UnknownNameError, nearest
from keras_kd.losses import feature_classes as classes
from keras_kd.losses.base import DistillationLoss

_METHODS: dict[str, Callable[..., DistillationLoss]] = {
    "feature": classes.FeatureDistillation,
    "attention": classes.AttentionTransfer,
    "selectivity": classes.NeuronSelectivityTransfer,
    "similarity": classes.SimilarityPreserving,
    "relational": classes.RelationalDistillation,
    "probabilistic": classes.ProbabilisticTransfer,
    "variational": classes.VariationalInformation,
}


def auto(ranking: Any, method: str = "feature", *, n: int = 3, **arguments: Any) -> list[DistillationLoss]:
    """A loss for each of the best pairs of a ranking, ready for `distillation_losses`.

    Args:
      ranking: of `keras_kd.rank_layers`.
      method: "feature", "attention", "selectivity", "similarity", "relational", "probabilistic", "variational", or
        "flow" (a loss for the step from each pair to the next).
      n: how many pairs; fewer are used where there are not that many without crossing.
      **arguments: further ones of the loss's class.

    Returns:
      The losses, in order of depth. `ranking.loss_weights(n)` makes those of "feature" weigh the same.

    Raises:
      ValueError: the method does not exist (the message lists the nearest), or "flow" with a single pair.

    Example:
      >>> from keras_kd.selection import LayerRanking, RankedPair
      >>> pair = RankedPair("block_1", "conv_1", 0, 0, 0.9, 0.8, None, 1.0)
      >>> (loss,) = auto(LayerRanking(("block_1",), ("conv_1",), (pair,), None, 8, 0), method="attention")
      >>> loss.teacher_layer_name, loss.student_layer_name
      ('block_1', 'conv_1')
    """
    if method != "flow" and method not in _METHODS:
        raise UnknownNameError(f"There is no method {method!r}.{nearest(str(method), [*_METHODS, 'flow'])}")
    pairs = ranking.pairs(n)
    if method == "flow":
        if len(pairs) < 2:
            raise ValueError(
                f"method='flow' follows the step from a pair to the next; there is {len(pairs)} pair."
            )
        return [
            classes.FlowDistillation(
                (one.teacher_layer, other.teacher_layer),
                (one.student_layer, other.student_layer),
                **arguments,
            )
            for one, other in itertools.pairwise(pairs)
        ]
    return [
        _METHODS[method](
            teacher_layer_name=pair.teacher_layer, student_layer_name=pair.student_layer, **arguments
        )
        for pair in pairs
    ]
