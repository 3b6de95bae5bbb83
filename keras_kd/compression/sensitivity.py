"""How much each layer's kernels can lose: sparsity and bits, layer by layer, before anything is trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DEFAULT_SPARSITIES = (0.5, 0.75, 0.9)
# Fine enough for an allocation between the layers; each level costs one pass over the examples per layer.
AUTO_SPARSITIES = (0.25, 0.5, 0.65, 0.75, 0.85, 0.95)


@dataclass(frozen=True)
class Damage:
    """What one change to one layer does to the whole model.

    Args:
      layer: the layer's name in the student.
      kernel_parameters: weights that the change acts on.
      kind: ``sparsity`` or ``bits``.
      level: the fraction of zeros, or the number of bits.
      loss: of the model with this change, in the loss's own unit.
      accuracy: of the model with this change; None where outputs are no classes.
    """

    layer: str
    kernel_parameters: int
    kind: str
    level: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The model as it is, and with one layer changed at a time.

    Args:
      loss: of the unchanged model.
      accuracy: of the unchanged model; None where outputs are no classes.
      rows: one entry per layer and level, layers in the model's order.
      examples: how many examples were used.
    """

    loss: float
    accuracy: float | None
    rows: tuple[Damage, ...]
    examples: int

    @property
    def layers(self) -> list[str]:
        """The layers measured, in the model's order."""
        return list(dict.fromkeys(row.layer for row in self.rows))

    def drop(self, row: Damage) -> float:
        """What a change costs: accuracy lost, or loss added where there is no accuracy."""
        if self.accuracy is not None and row.accuracy is not None:
            return self.accuracy - row.accuracy
        return row.loss - self.loss

    def table(self) -> str:
        """Rows: layers; columns: levels; entries: accuracy lost in points, or loss added."""
        columns = list(dict.fromkeys((row.kind, row.level) for row in self.rows))
        unit = 100 if self.accuracy is not None else 1
        cells = {(row.layer, row.kind, row.level): f"{unit * self.drop(row):.2f}" for row in self.rows}
        sizes = {row.layer: row.kernel_parameters for row in self.rows}
        lines = [["layer", "weights", *(_title(kind, level) for kind, level in columns)]]
        lines += [
            [name, f"{sizes[name]:,}", *(cells[name, k, v] for k, v in columns)] for name in self.layers
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
        base = f"accuracy {self.accuracy:.4f}" if self.accuracy is not None else f"loss {self.loss:.4g}"
        what = "accuracy lost, in points" if self.accuracy is not None else "loss added"
        return f"{what}, one layer changed at a time, nothing retrained ({base}, {self.examples} examples)\n{text}"

    def __str__(self) -> str:
        return self.table()

    def plot(self) -> Any:
        """A matplotlib figure: a heat map of layers against levels.

        Raises:
          ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("The heat map needs matplotlib: pip install 'keras-kd[report]'.") from error
        columns = list(dict.fromkeys((row.kind, row.level) for row in self.rows))
        unit = 100 if self.accuracy is not None else 1
        drops = {(row.layer, row.kind, row.level): unit * self.drop(row) for row in self.rows}
        grid = np.array([[drops[name, kind, level] for kind, level in columns] for name in self.layers])
        figure = Figure(figsize=(3 + 0.8 * len(columns), 1.5 + 0.3 * len(self.layers)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(grid, aspect="auto", cmap="magma_r", vmin=0.0)
        axes.set_xticks(range(len(columns)), [_title(kind, level) for kind, level in columns])
        axes.set_yticks(range(len(self.layers)), self.layers)
        for i, line in enumerate(grid):
            for j, value in enumerate(line):
                dark = value > 0.5 * grid.max()
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
        label = "accuracy lost (points)" if self.accuracy is not None else "loss added"
        figure.colorbar(image, label=label)
        return figure

    def allocate(self, sparsity: float, layers: Iterable[str] | None = None) -> dict[str, float]:
        """Sparsity per layer so that together they reach `sparsity` with the least loss added.

        The loss added by several layers is taken as the sum of what each adds alone. Within a layer it is
        taken as the lower convex envelope of the measured levels, on which the cheapest zeros come first.

        Args:
          sparsity: zeros in all these layers' kernels together, in [0, 1).
          layers: names; None is all that were measured.

        Raises:
          ValueError: the measured levels do not reach that far.

        Example:
          >>> rows = [Damage("a", 100, "sparsity", 0.5, 0.1, None), Damage("a", 100, "sparsity", 0.9, 0.2, None),
          ...         Damage("b", 100, "sparsity", 0.5, 1.0, None), Damage("b", 100, "sparsity", 0.9, 3.0, None)]
          >>> Sensitivity(0.0, None, tuple(rows), 1).allocate(0.5)
          {'a': 0.9, 'b': 0.1}
        """
        chosen = set(self.layers if layers is None else layers)
        sizes: dict[str, int] = {}
        segments: list[tuple[float, float, str]] = []
        for name in self.layers:
            if name not in chosen:
                continue
            own = [row for row in self.rows if row.layer == name and row.kind == "sparsity"]
            sizes[name] = own[0].kernel_parameters
            points = [(0.0, 0.0)] + [(row.level, max(0.0, row.loss - self.loss)) for row in own]
            envelope = _lower_envelope(sorted(points))
            for (x0, y0), (x1, y1) in itertools.pairwise(envelope):
                segments.append(((y1 - y0) / ((x1 - x0) * sizes[name]), x1 - x0, name))
        wanted = sparsity * sum(sizes.values())
        result = dict.fromkeys(sizes, 0.0)
        # Slopes grow along each envelope, so that sorting by slope keeps the order within a layer.
        for _, width, name in sorted(segments, key=lambda segment: segment[0]):
            step = min(width, wanted / sizes[name])
            result[name] += step
            wanted -= step * sizes[name]
            if wanted <= 1e-9:
                break
        if wanted > 1e-6 * max(1, sum(sizes.values())):
            reach = sparsity - wanted / sum(sizes.values())
            raise ValueError(
                f"sparsity {sparsity} is beyond the levels that were measured (they reach {reach:.3f})"
            )
        return {name: round(value, 6) for name, value in result.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "examples": self.examples,
            "rows": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sensitivity:
        """The inverse of `to_dict`."""
        rows = tuple(Damage(**row) for row in values["rows"])
        return cls(values["loss"], values["accuracy"], rows, values["examples"])

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)


def _title(kind: str, level: float) -> str:
    return f"{100 * level:g} % zero" if kind == "sparsity" else f"{level:g} bit"


def _lower_envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The convex lower hull of points sorted by x, made not to fall."""
    # A level that does less harm than a lower one is luck of the sample: zeros never help for sure.
    rising, highest = [], 0.0
    for x, y in points:
        highest = max(highest, y)
        rising.append((x, highest))
    hull: list[tuple[float, float]] = []
    for x, y in rising:
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-1][0]) >= (y - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return hull


def quantize_weights(kernel: np.ndarray, bits: int) -> np.ndarray:
    """A kernel rounded to signed integers of `bits` bits, symmetric, one scale per output channel (the last axis).

    Example:
      >>> quantize_weights(np.array([[1.0], [0.2], [-0.6]]), 2).ravel().tolist()
      [1.0, 0.0, -1.0]
    """
    most = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / most
    return np.round(kernel / np.where(scale == 0, 1, scale)) * scale


def sensitivity(
    student: Any,
    x: Any,
    y: Any,
    *,
    sparsities: Sequence[float] = DEFAULT_SPARSITIES,
    bits: Sequence[int] = (),
    loss: Any = None,
    layers: Iterable[str] | None = None,
    examples: int = 2000,
    batch_size: int = 256,
    seed: int = 0,
) -> Sensitivity:
    """Measures what pruning or rounding one layer at a time does to a trained model; nothing is trained.

    Args:
      student: a built Keras 3 or tf_keras model with one output; it is not changed.
      x: inputs [examples, ...].
      y: labels, sparse [examples] or one-hot [examples, classes], or values for a regression.
      sparsities: fractions of zeros to try in each layer's kernels (smallest magnitudes first).
      bits: bits per weight to try, such as (8, 4, 2); symmetric, one scale per output channel.
      loss: by default the student's own.
      layers: names of the layers to measure; None is every layer with a kernel.
      examples: drawn by the seed from `x`, at most so many.
      batch_size: of the forward passes.
      seed: of the sample.

    Returns:
      A `Sensitivity`, with a table, a heat map and an allocation.

    Raises:
      ValueError: no loss, unknown layers, or levels out of range.

    Example:
      >>> import keras
      >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2)])
      >>> x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
      >>> found = sensitivity(student, x, x[:, :2], loss="mse", sparsities=(0.5,), bits=(8,))
      >>> [(row.kind, row.level) for row in found.rows if row.layer == "a"]
      [('sparsity', 0.5), ('bits', 8)]

    Source: layer-wise sensitivity analysis, Han et al. 2015, arXiv:1506.02626, section 4.
    """
    from keras_kd.compression import adapt
    from keras_kd.compression.student import private_copy

    problems = [f"sparsity {value!r} is not in (0, 1)" for value in sparsities if not 0 < value < 1]
    problems += [f"bits {value!r} is not in 2..16" for value in bits if not 2 <= value <= 16]
    loss = adapt.compiled_settings(student).get("loss") if loss is None else loss
    if loss is None:
        problems.append("loss is missing: the student is not compiled, so pass loss=")
    if problems:
        raise ValueError("sensitivity: " + "; ".join(problems))
    model = private_copy(student, seed=seed).model
    chosen = np.sort(np.random.default_rng(seed).permutation(len(y))[:examples])
    measure = _measure(
        model, np.asarray(x)[chosen], np.asarray(y)[chosen], adapt.adapt_loss(loss), batch_size
    )
    return measure_layers(
        model, measure, sparsities=sparsities, bits=bits, layers=layers, examples=len(chosen)
    )


Measure = Callable[[], tuple[float, float | None]]


def measure_layers(
    model: Any,
    measure: Measure,
    *,
    sparsities: Sequence[float],
    bits: Sequence[int] = (),
    layers: Iterable[str] | None = None,
    examples: int,
) -> Sensitivity:
    """`sensitivity` for a tf_keras model that may be changed in between; its weights are put back.

    Args:
      model: a tf_keras model.
      measure: gives (loss, accuracy or None) of the model as it stands.
      sparsities: see `sensitivity`.
      bits: see `sensitivity`.
      layers: see `sensitivity`.
      examples: for the report.
    """
    import tensorflow as tf

    from keras_kd.compression.kernels import kernels
    from keras_kd.compression.masks import magnitude_mask
    from keras_kd.errors import nearest

    by_name = {layer.name: kernels(layer) for layer in model.layers if kernels(layer)}
    for name in layers or ():
        if name not in by_name:
            raise ValueError(
                f"sensitivity: there is no layer {name!r} with a kernel.{nearest(name, by_name)}"
            )
    base_loss, base_accuracy = measure()
    rows = []
    for name in by_name if layers is None else layers:
        variables = by_name[name]
        before = [variable.numpy() for variable in variables]
        size = sum(value.size for value in before)
        for kind, level in [("sparsity", s) for s in sparsities] + [("bits", b) for b in bits]:
            for variable, value in zip(variables, before):
                if kind == "sparsity":
                    variable.assign(value * magnitude_mask(tf.constant(value), level))
                else:
                    variable.assign(quantize_weights(value, int(level)))
            rows.append(Damage(name, size, kind, level, *measure()))
        for variable, value in zip(variables, before):
            variable.assign(value)
    return Sensitivity(base_loss, base_accuracy, tuple(rows), examples)


def _measure(model: Any, x: np.ndarray, y: np.ndarray, loss: Any, batch_size: int) -> Measure:
    """Loss and accuracy of the model on these examples, by one traced function."""
    model.compile(loss=loss, metrics=[], jit_compile=False)
    classes = model.output_shape[-1]
    sparse = y.ndim == 1 or y.shape[-1] == 1
    is_class = (
        np.issubdtype(y.dtype, np.integer)
        if sparse
        else bool(np.all(y.sum(-1) == 1) and np.all((y == 0) | (y == 1)))
    )
    labels = (
        (y.reshape(len(y)) if sparse else y.argmax(-1)) if is_class and classes > 1 and y.ndim <= 2 else None
    )

    def measure() -> tuple[float, float | None]:
        outputs = model.predict(x, batch_size=batch_size, verbose=0)
        value = float(model.compute_loss(None, _tensor(y), _tensor(outputs), None))
        accuracy = None if labels is None else float(np.mean(outputs.argmax(-1) == labels))
        return value, accuracy

    return measure


def _tensor(value: np.ndarray) -> Any:
    import tensorflow as tf

    return tf.convert_to_tensor(value)
