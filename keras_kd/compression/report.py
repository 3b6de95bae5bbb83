"""What compression did to each layer, and where it could not, why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One layer of the student. None means that it does not apply or was not measured.

    Args:
      name: the layer's name in the student.
      type: its class.
      parameters: how many weights it holds, biases and statistics included.
      kernel_parameters: how many of them can be pruned or clustered.
      sparsity_asked: fraction of zeros asked for in its kernels; None where it was not to be pruned.
      sparsity: fraction of zeros found in its kernels, after the last phase.
      clusters_asked: distinct values asked for.
      clusters: distinct values found in a kernel (per output channel where scales are per channel).
      weight_bits: 32, 16 or 8; None for a layer without weights.
      activation_bits: 32, 16 or 8.
      reasons: what was not done here and why.
    """

    name: str
    type: str
    parameters: int
    kernel_parameters: int = 0
    sparsity_asked: float | None = None
    sparsity: float | None = None
    clusters_asked: int | None = None
    clusters: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompressionReport:
    """One row per layer, what was trained, and what is worth knowing.

    Args:
      recipe: the recipe's name.
      layers: one row per layer of the student, in the model's order.
      history: per phase, each logged quantity per epoch.
      best_epochs: per phase, the epoch (from 0) that was kept; None where there was no validation data.
      notes: sentences about the whole model.

    Example:
      >>> row = LayerReport("dense", "Dense", 110, 100, sparsity_asked=0.75, sparsity=0.75, weight_bits=8)
      >>> report = CompressionReport("prune75-int8", (row,))
      >>> report.sparsity, report.parameters
      (0.75, 110)
      >>> CompressionReport.from_dict(report.to_dict()) == report
      True
    """

    recipe: str
    layers: tuple[LayerReport, ...]
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    best_epochs: Mapping[str, int | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of the whole model, biases and statistics included."""
        return sum(row.parameters for row in self.layers)

    @property
    def sparsity(self) -> float | None:
        """Zeros in all kernels together, dense ones included; None for a model without kernels."""
        counted = [row for row in self.layers if row.sparsity is not None]
        total = sum(row.kernel_parameters for row in counted)
        return (
            sum(row.sparsity * row.kernel_parameters for row in counted if row.sparsity) / total
            if total
            else None
        )

    @property
    def layer_sparsity(self) -> dict[str, float]:
        """Sparsity reached by layer name, for the layers that have a kernel."""
        return {row.name: row.sparsity for row in self.layers if row.sparsity is not None}

    def __str__(self) -> str:
        header = (
            "layer",
            "type",
            "parameters",
            "sparsity",
            "asked",
            "clusters",
            "weights",
            "activations",
            "not done",
        )
        rows = [header] + [
            (
                row.name,
                row.type,
                f"{row.parameters:,}",
                _percent(row.sparsity),
                _percent(row.sparsity_asked),
                "-" if row.clusters is None else f"{row.clusters}",
                _bits(row.weight_bits),
                _bits(row.activation_bits),
                "; ".join(row.reasons),
            )
            for row in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        total = f"recipe {self.recipe}: {self.parameters:,} parameters"
        if self.sparsity is not None:
            total += f", {_percent(self.sparsity)} of all kernel weights are zero"
        return "\n".join([*lines, total, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "recipe": self.recipe,
            "parameters": self.parameters,
            "sparsity": self.sparsity,
            "layers": [{**asdict(row), "reasons": list(row.reasons)} for row in self.layers],
            "history": {phase: {k: list(v) for k, v in logs.items()} for phase, logs in self.history.items()},
            "best_epochs": dict(self.best_epochs),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionReport:
        """The inverse of `to_dict`."""
        layers = tuple(LayerReport(**{**row, "reasons": tuple(row["reasons"])}) for row in values["layers"])
        return cls(values["recipe"], layers, values["history"], values["best_epochs"], tuple(values["notes"]))

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def plot(self) -> Any:
        """A matplotlib figure: sparsity reached and asked for, layer by layer.

        Raises:
          ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("The plot needs matplotlib: pip install 'keras-kd[report]'.") from error
        rows = [row for row in self.layers if row.sparsity is not None]
        figure = Figure(figsize=(8, 1 + 0.3 * max(len(rows), 1)), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        axes.barh(places, [row.sparsity or 0.0 for row in rows], color="tab:blue", label="reached")
        asked = [(place, row.sparsity_asked) for place, row in zip(places, rows) if row.sparsity_asked]
        axes.scatter(
            [v for _, v in asked], [p for p, _ in asked], marker="|", s=120, color="black", label="asked for"
        )
        axes.set_yticks(list(places), [f"{row.name} ({row.kernel_parameters:,})" for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("sparsity of the kernels")
        axes.set_title(f"{self.recipe}: {_percent(self.sparsity)} of all kernel weights are zero")
        axes.legend(loc="lower right")
        return figure


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _bits(bits: int | None) -> str:
    return "-" if bits is None else {32: "float32", 16: "16 bit", 8: "int8"}.get(bits, str(bits))
