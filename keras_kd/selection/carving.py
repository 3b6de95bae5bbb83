"""A student carved out of its teacher: whole channels and whole residual blocks removed, the other weights kept."""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_kd.errors import nearest, raise_all
from keras_kd.selection import blocks as residual
from keras_kd.selection import criteria
from keras_kd.selection.channel_graph import ChannelGraph
from keras_kd.selection.channel_rules import read_channels
from keras_kd.selection.examples_of import sample_of
from keras_kd.selection.label_loss import label_loss
from keras_kd.selection.pools import Costs, Pool, costs_of, keep_best, largest_fraction, pools_of
from keras_kd.selection.rebuilding import rebuild
from keras_kd.selection.reconstruction import can_be_fitted, examples_for
from keras_kd.selection.statistics import SAMPLE as STATISTICS_SAMPLE
from keras_kd.selection.statistics import correct_statistics
from tflite_tools.text_table import text_table

#: Fraction of channels that stays where neither `keep` nor a budget is given.
DEFAULT_KEEP = 0.25
#: Examples that the criteria look at.
SAMPLE = 1024


@dataclasses.dataclass(frozen=True)
class CarvedLayer:
    """What became of one layer.

    Attributes:
      path: the layer, "backbone/conv_1" inside a nested model.
      channels: output channels in the teacher.
      kept: those that stayed, in ascending order.
    """

    path: str
    channels: int
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Carving:
    """A carved student and the account of how it came about.

    Attributes:
      student: the new model.
      fraction: of the channels that was kept.
      before: what the teacher costs.
      after: what the student costs.
      layers: every layer whose channels could be cut.
      whole: {layer: why the channels that reach it had to stay}.
      dropped_blocks: additions whose branch was left out.
    """

    student: keras.Model
    fraction: float
    before: Costs
    after: Costs
    layers: tuple[CarvedLayer, ...]
    whole: dict[str, str]
    dropped_blocks: tuple[str, ...]

    def table(self) -> str:
        """The account as text: layers, channels before and after, what could not be cut and why."""
        rows = [[layer.path, str(layer.channels), str(len(layer.kept))] for layer in self.layers]
        lines = [text_table(["layer", "channels", "kept"], rows)]
        for field, unit in (
            ("params", "parameters"),
            ("macs", "multiply-accumulates"),
            ("size_bytes", "bytes"),
        ):
            before, after = getattr(self.before, field), getattr(self.after, field)
            if before is not None:
                lines.append(f"{before:,} {unit} before, {after:,} after")
        lines.extend(f"left out: the branch that ends in {path}" for path in self.dropped_blocks)
        lines.extend(f"kept whole: what reaches {path} ({why})" for path, why in self.whole.items())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model, ready for JSON."""
        return {
            "fraction": self.fraction,
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "layers": [{**dataclasses.asdict(layer), "kept": list(layer.kept)} for layer in self.layers],
            "whole": dict(self.whole),
            "dropped_blocks": list(self.dropped_blocks),
        }


def carve_student(
    teacher: keras.Model,
    keep: float | None = None,
    x: Any = None,
    y: Any = None,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_bytes: int | None = None,
    round_to: int = 1,
    depth: float | int | None = None,
    criterion: str = "l1",
    loss: Any = None,
    reconstruct: bool = False,
) -> keras.Model:
    """A smaller model made of the teacher's most important channels, with the teacher's weights.

    Channels that only make sense together (the two sides of an addition, a convolution and the BatchNormalization
    and depthwise convolution after it, a squeeze-and-excite gate and what it gates) go together, and every layer
    that reads them shrinks with them. The same fraction stays everywhere; inputs, outputs and what a layer mixes in
    a way that cannot be cut stay whole. `carve` does the same and returns the account too.

    Args:
      teacher: a Functional or Sequential Keras model, built. It is not changed.
      keep: the fraction of channels that stays, in (0, 1]; 0.25 where no budget is given. With a budget: the most
        that stays.
      x: real inputs (arrays, a batched `tf.data.Dataset` or a `PyDataset`, of which up to 1024 examples are looked
        at), for the criteria that need them. Where it is given, the moving statistics of the student's
        BatchNormalizations are corrected on it for what was removed. Its trainable weights stay the teacher's
        unless `reconstruct` is set.
      y: labels, for "taylor".
      max_params: most numbers in all weights.
      max_macs: most multiply-accumulates per example, in convolutions and Dense layers.
      max_bytes: most bytes of the weights as they are stored in memory (four per float32 number).
      round_to: the channels kept are a multiple of this, 8 for vector units, as far as there are so many.
      depth: residual blocks that stay: a float in (0, 1] is the fraction, an int the number. The others are replaced
        by their shortcut, those first that contribute least.
      criterion: what makes a channel important: "l1", "bn_scale", "activation" (needs x) or "taylor" (needs x and y).
      loss: for "taylor": a Keras loss, its name, or a function (labels, outputs); None takes the teacher's own or
        the cross-entropy that fits.
      reconstruct: fit the kernels of Dense and convolution layers, by least squares on up to 1024 examples of x, so
        that each puts out what it put out in the teacher, from the inputs that are left. The student starts from a
        better place (docs/selective.md shows how much), with weights that are no longer the teacher's own.

    Returns:
      An ordinary Keras model with the teacher's layer names, trainable throughout and not compiled.

    Raises:
      ValueError: everything that is wrong with the arguments, in one message; a budget that cannot be met (the
        message says what can); a model without a graph of layers, or in which nothing can be cut.

    Example:
      >>> teacher = keras.Sequential(
      ...     [keras.Input((8,)), keras.layers.Dense(16, "relu", name="hidden"), keras.layers.Dense(3, name="logits")])
      >>> student = carve_student(teacher, keep=0.5)
      >>> [layer.units for layer in student.layers if layer.name != "input" and hasattr(layer, "units")]
      [8, 3]

    Source: Fang et al. 2023, arXiv:2301.12900 (channels that depend on each other); the criteria name theirs.
      He et al. 2017, arXiv:1707.06168 (reconstruction).
    """
    return carve(
        teacher,
        keep,
        x,
        y,
        max_params=max_params,
        max_macs=max_macs,
        max_bytes=max_bytes,
        round_to=round_to,
        depth=depth,
        criterion=criterion,
        loss=loss,
        reconstruct=reconstruct,
    ).student


def carve(
    teacher: keras.Model,
    keep: float | None = None,
    x: Any = None,
    y: Any = None,
    *,
    max_params: int | None = None,
    max_macs: int | None = None,
    max_bytes: int | None = None,
    round_to: int = 1,
    depth: float | int | None = None,
    criterion: str = "l1",
    loss: Any = None,
    reconstruct: bool = False,
) -> Carving:
    """`carve_student` with the account of what was kept: same arguments, same errors.

    Example:
      >>> teacher = keras.Sequential(
      ...     [keras.Input((8,)), keras.layers.Dense(4, "relu", name="hidden"), keras.layers.Dense(3, name="logits")])
      >>> print(carve(teacher, keep=0.5).table())
      layer   channels  kept
      ------  --------  ----
      hidden         4     2
      51 parameters before, 27 after
      44 multiply-accumulates before, 22 after
      204 bytes before, 108 after
    """
    budgets = {"max_params": max_params, "max_macs": max_macs, "max_bytes": max_bytes}
    problems = _argument_problems(keep, x, y, budgets, round_to, depth, criterion, reconstruct)
    raise_all(problems, subject="The student cannot be carved like this")
    before_graph = read_channels(teacher)
    before = costs_of(teacher, before_graph, np.ones(len(before_graph.roots()), dtype=bool))
    inputs, labels = (None, None) if x is None else sample_of(x, y, count=SAMPLE)
    statistics_inputs = None
    if x is not None:
        seen_at_once = examples_for(inputs) if reconstruct else STATISTICS_SAMPLE
        statistics_inputs = sample_of(inputs, count=seen_at_once)[0]
    if criterion == "taylor" and labels is None:
        raise ValueError(
            "The student cannot be carved like this: criterion 'taylor' needs labels, and x holds none."
        )

    model = teacher
    dropped: tuple[str, ...] = ()
    if depth is not None:
        model, dropped = _without_blocks(teacher, depth, inputs, statistics_inputs)
    graph = before_graph if model is teacher else read_channels(model)
    pools = pools_of(graph)
    if not pools:
        reasons = (
            "".join(f"\n  {path}: {why}" for path, why in graph.whole.items()) or " it has no inner layers."
        )
        raise ValueError(f"Nothing in {teacher.name!r} can be cut:{reasons}")
    importance = _importance(model, graph, criterion, inputs, labels, loss)
    fraction = _fraction(model, graph, pools, keep, budgets, importance, round_to)
    kept = keep_best(graph, pools, importance, fraction, round_to)
    student, pairs = rebuild(model, graph, kept, name=f"{teacher.name}_carved")
    if statistics_inputs is not None:
        masks = {
            key: kept[cut.weight_ids["moving_mean"][0]] for key, cut in graph.cuts.items() if _normalizes(cut)
        }
        left = _left_outputs(graph, kept) if reconstruct else None
        correct_statistics(model, student, pairs, masks, statistics_inputs, left)
    if graph.whole:
        names = "; ".join(f"{path} ({why})" for path, why in graph.whole.items())
        warnings.warn(
            f"Some channels of {teacher.name!r} had to stay whole, for the sake of: {names}.", stacklevel=3
        )
    return Carving(
        student=student,
        fraction=fraction,
        before=before,
        after=costs_of(model, graph, kept),
        layers=_carved_layers(graph, kept),
        whole=dict(graph.whole),
        dropped_blocks=dropped,
    )


def _left_outputs(graph: ChannelGraph, kept: np.ndarray) -> dict[int, np.ndarray]:
    """{id() of a layer: bool [outputs]} of the layers whose kernels can be fitted."""
    found = {}
    for key, cut in graph.cuts.items():
        ids = cut.weight_ids.get("kernel", (None,))[-1]
        if can_be_fitted(cut.layer) and ids is not None:
            found[key] = kept[ids]
    return found


def _normalizes(cut: Any) -> bool:
    return "moving_mean" in cut.weight_ids


def _carved_layers(graph: ChannelGraph, kept: np.ndarray) -> tuple[CarvedLayer, ...]:
    roots = graph.roots()
    return tuple(
        CarvedLayer(cut.path, len(cut.produced), tuple(np.flatnonzero(kept[cut.produced]).tolist()))
        for cut in graph.cuts.values()
        if cut.produced is not None and np.any(roots[cut.produced])
    )


def _importance(
    model: keras.Model, graph: ChannelGraph, criterion: str, inputs: Any, labels: Any, loss: Any
) -> np.ndarray:
    if criterion == "l1":
        return criteria.by_weights(graph)
    if criterion == "bn_scale":
        return criteria.by_scale(graph)
    if criterion == "activation":
        return criteria.by_activation(model, graph, inputs)
    few = keras.tree.map_structure(lambda array: array[:8], inputs)
    compute = label_loss(model, loss, labels, model(few, training=False))
    return criteria.by_taylor(model, graph, inputs, labels, compute)


def _without_blocks(
    teacher: keras.Model, depth: float | int, inputs: Any, statistics_inputs: Any
) -> tuple[keras.Model, tuple[str, ...]]:
    blocks = residual.residual_blocks(teacher)
    if not blocks or (isinstance(depth, int) and depth > len(blocks)):
        raise ValueError(
            f"depth={depth!r} asks for residual blocks, and {teacher.name!r} has {len(blocks)} that can be left out."
        )
    count = depth if isinstance(depth, int) else max(1, math.floor(depth * len(blocks) + 0.5))
    if inputs is None:
        worth = residual.worth_by_weights(blocks)
    else:
        worth = residual.worth_by_inputs(teacher, blocks, inputs)
    least_first = np.argsort(worth, kind="stable")[: len(blocks) - count]
    bypassed = {blocks[index].path: blocks[index].shortcut for index in sorted(least_first.tolist())}
    shallower, pairs = rebuild(teacher, bypassed=bypassed, name=teacher.name)
    if statistics_inputs is not None:
        correct_statistics(teacher, shallower, pairs, {}, statistics_inputs)
    return shallower, tuple(bypassed)


def _fraction(
    model: keras.Model,
    graph: ChannelGraph,
    pools: Sequence[Pool],
    keep: float | None,
    budgets: dict[str, int | None],
    importance: np.ndarray,
    round_to: int,
) -> float:
    """What `keep` and the budgets come to."""
    asked = {name: limit for name, limit in budgets.items() if limit is not None}
    if not asked:
        return DEFAULT_KEEP if keep is None else keep
    fields = {"max_params": "params", "max_macs": "macs", "max_bytes": "size_bytes"}

    def costs(fraction: float) -> dict[str, int | None]:
        found = costs_of(model, graph, keep_best(graph, list(pools), importance, fraction, round_to))
        return {name: getattr(found, fields[name]) for name in asked}

    least = costs(0.0)
    if least.get("max_macs", 0) is None:
        raise ValueError(
            "max_macs needs the sizes of all feature maps: give the model an input of a fixed size."
        )
    fraction = largest_fraction(
        lambda candidate: all((costs(candidate)[name] or 0) <= limit for name, limit in asked.items()),
        keep or 1.0,
    )
    if fraction is None:
        raise ValueError(
            "The student cannot be made that small: "
            + ", ".join(
                f"{name}={limit:,} was asked, {least[name]:,} is the least" for name, limit in asked.items()
            )
            + f" with round_to={round_to}. `depth` removes whole blocks."
        )
    return fraction


def _argument_problems(
    keep: Any,
    x: Any,
    y: Any,
    budgets: dict[str, Any],
    round_to: Any,
    depth: Any,
    criterion: Any,
    reconstruct: Any,
) -> list[str]:
    problems = []
    if keep is not None and (not _is_number(keep) or not 0.0 < keep <= 1.0):
        problems.append(f"keep must be a fraction in (0, 1] or None, got {keep!r}.")
    for name, limit in budgets.items():
        if limit is not None and (not _is_number(limit) or limit < 1):
            problems.append(f"{name} must be a number of at least 1 or None, got {limit!r}.")
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        problems.append(f"round_to must be an integer of at least 1, got {round_to!r}.")
    if depth is not None:
        is_count = isinstance(depth, int) and not isinstance(depth, bool) and depth >= 0
        if not is_count and not (isinstance(depth, float) and 0.0 < depth <= 1.0):
            problems.append(
                f"depth must be a fraction of the residual blocks in (0.0, 1.0], their number, or None, got {depth!r}."
            )
    if criterion not in criteria.CRITERIA:
        problems.append(
            f"criterion {criterion!r} does not exist.{nearest(str(criterion), criteria.CRITERIA)}"
        )
    elif criterion in ("activation", "taylor") and x is None:
        problems.append(f"criterion {criterion!r} looks at real inputs: give x.")
    if not isinstance(reconstruct, bool):
        problems.append(f"reconstruct must be True or False, got {reconstruct!r}.")
    elif reconstruct and x is None:
        problems.append("reconstruct=True fits kernels on real inputs: give x.")
    if criterion == "taylor" and x is not None and y is None and hasattr(x, "shape"):
        problems.append("criterion 'taylor' needs labels: give y.")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
