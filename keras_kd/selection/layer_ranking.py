"""The result of ranking layers: pairs, table and plot."""

import dataclasses
from typing import Any

import numpy as np

from tflite_tools.text_table import text_table


@dataclasses.dataclass(frozen=True)
class RankedPair:
    """A teacher layer and a student layer.

    Attributes:
      teacher_layer: tap of the teacher.
      student_layer: tap of the student.
      teacher_index: its place among the teacher's layers that were looked at; they are in the order of the graph.
      student_index: the same of the student.
      similarity: linear CKA of the two on real inputs, about 0 to 1.
      worth: accuracy of a linear classifier on the teacher's layer; None where there are no classes.
      contribution: the fraction by which the pair lowered the validation loss of a short training run; None where
        none was made.
      loss_weight: one over the mean square of the teacher's features, which makes mean squared errors comparable.
    """

    teacher_layer: str
    student_layer: str
    teacher_index: int
    student_index: int
    similarity: float
    worth: float | None
    contribution: float | None
    loss_weight: float

    @property
    def names(self) -> tuple[str, str]:
        """(teacher layer, student layer)."""
        return self.teacher_layer, self.student_layer

    @property
    def score(self) -> float:
        """Similarity * worth * (1 + 10 * contribution), at least 0: a rule of thumb, not a law.

        Contributions are a few percent of a loss; the ten makes them as wide as the other two. Where one was not
        measured, the factor that lacks is left out.
        """
        found = self.similarity * (1.0 if self.worth is None else self.worth)
        return found if self.contribution is None else max(0.0, found * (1.0 + 10.0 * self.contribution))

    def with_contribution(self, contribution: float | None) -> "RankedPair":
        """The same pair, measured."""
        return dataclasses.replace(self, contribution=contribution)


@dataclasses.dataclass(frozen=True)
class LayerRanking:
    """What `rank_layers` found.

    Attributes:
      teacher_layers: those that were looked at, in the order of the graph.
      student_layers: the same of the student.
      all_pairs: every compatible pair.
      loss_without: validation loss of the probe run without any pair; None where no run was made.
      examples: how many were looked at.
      seed: of the probe runs.
    """

    teacher_layers: tuple[str, ...]
    student_layers: tuple[str, ...]
    all_pairs: tuple[RankedPair, ...]
    loss_without: float | None
    examples: int
    seed: int

    def pairs(self, n: int) -> list[RankedPair]:
        """The `n` pairs with the highest sum of scores in which both networks only go deeper from pair to pair.

        Args:
          n: at least 1.

        Returns:
          Up to `n` pairs in the order of depth; fewer where there are not that many without crossing.

        Example:
          >>> def pair(t, s, similarity):
          ...     return RankedPair(f"t{t}", f"s{s}", t, s, similarity, None, None, 1.0)
          >>> found = (pair(0, 0, 0.5), pair(0, 1, 0.9), pair(1, 0, 0.8), pair(1, 1, 0.6))
          >>> ranking = LayerRanking(("t0", "t1"), ("s0", "s1"), found, None, 8, 0)
          >>> [pair.names for pair in ranking.pairs(2)], [pair.names for pair in ranking.pairs(1)]
          ([('t0', 's0'), ('t1', 's1')], [('t0', 's1')])
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be an integer of at least 1, got {n!r}.")
        # best[k][pair]: the highest sum of k pairs of which this one is the last.
        ordered = sorted(self.all_pairs, key=lambda pair: (pair.teacher_index, pair.student_index))
        best: list[list[tuple[float, int | None] | None]] = [[(pair.score, None) for pair in ordered]]
        for _ in range(n - 1):
            row: list[tuple[float, int | None] | None] = []
            for pair in ordered:
                options = [
                    (found[0] + pair.score, index)
                    for index, (earlier, found) in enumerate(zip(ordered, best[-1]))
                    if found is not None
                    and earlier.teacher_index < pair.teacher_index
                    and earlier.student_index < pair.student_index
                ]
                row.append(max(options, key=lambda option: option[0]) if options else None)
            if not any(row):
                break
            best.append(row)
        reached = [(found[0], index) for index, found in enumerate(best[-1]) if found is not None]
        place: int | None = max(reached, key=lambda option: option[0])[1]
        chosen = []
        for row in reversed(best):
            assert place is not None
            chosen.append(ordered[place])
            entry = row[place]
            assert entry is not None
            place = entry[1]
        return chosen[::-1]

    def loss_weights(self, n: int) -> list[float]:
        """Weights for the `FeatureDistillation`s of `pairs(n)` by which layers of any scale weigh the same."""
        return [pair.loss_weight for pair in self.pairs(n)]

    def table(self, n: int | None = None) -> str:
        """The pairs by score, best first; the first `n` of them, or all."""
        ordered = sorted(self.all_pairs, key=lambda pair: -pair.score)[:n]
        rows = [
            [
                pair.teacher_layer,
                pair.student_layer,
                f"{pair.similarity:.3f}",
                "–" if pair.worth is None else f"{pair.worth:.1%}",
                "–" if pair.contribution is None else f"{pair.contribution:+.1%}",
                f"{pair.score:.3f}",
            ]
            for pair in ordered
        ]
        header = ["teacher layer", "student layer", "CKA", "worth", "contribution", "score"]
        text = text_table(header, rows, left=2)
        if self.loss_without is not None:
            measured = [pair.contribution for pair in self.all_pairs if pair.contribution is not None]
            helped = sum(value > 0 for value in measured)
            text += (
                f"\nValidation loss of the probe run without a pair: {self.loss_without:.4f}; "
                f"{helped} of {len(measured)} pairs that were tried lowered it."
            )
        return text

    def similarities(self) -> np.ndarray:
        """CKA as float [teacher layers, student layers]; NaN for pairs whose axes differ."""
        matrix = np.full((len(self.teacher_layers), len(self.student_layers)), np.nan)
        for pair in self.all_pairs:
            matrix[pair.teacher_index, pair.student_index] = pair.similarity
        return matrix

    def plot(self, path: Any = None, *, n: int = 3) -> Any:
        """A heat map of the similarities, the `n` best pairs marked; beside it the layers' worth and contributions.

        Args:
          path: where to write the picture (.png, .svg, .pdf); None writes none.
          n: pairs to mark.

        Returns:
          A `matplotlib.figure.Figure`.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Plots need matplotlib, which is not installed. Install it with: pip install 'keras-kd[report]'"
            ) from error
        height = max(3.0, 0.28 * len(self.teacher_layers) + 1.2)
        figure = Figure(figsize=(10.0, height), layout="constrained")
        heat, bars, gain_bars = figure.subplots(1, 3, width_ratios=(4, 2, 2), sharey=True)
        image = heat.imshow(self.similarities(), vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        figure.colorbar(image, ax=heat, label="linear CKA", location="left")
        chosen = self.pairs(n)
        columns, rows = zip(*((pair.student_index, pair.teacher_index) for pair in chosen))
        heat.plot(columns, rows, "o-", color="white", markeredgecolor="black")
        heat.set_xticks(range(len(self.student_layers)), self.student_layers, rotation=60, ha="right")
        heat.set_yticks(range(len(self.teacher_layers)), self.teacher_layers)
        heat.set_xlabel("student layer")
        worth = {pair.teacher_index: pair.worth for pair in self.all_pairs if pair.worth is not None}
        bars.barh(list(worth), list(worth.values()), color="0.7")
        bars.set_xlim(0.0, 1.0)
        bars.set_xlabel("accuracy of a linear probe")
        best_gains: dict[int, float] = {}
        for pair in self.all_pairs:
            if pair.contribution is not None:
                place = pair.teacher_index
                best_gains[place] = max(100.0 * pair.contribution, best_gains.get(place, -np.inf))
        gain_bars.barh(list(best_gains), list(best_gains.values()), color="tab:orange")
        gain_bars.axvline(0.0, color="black", linewidth=0.8)
        gain_bars.set_xlabel("best contribution (%),\nof pairs that were tried")
        if path is not None:
            figure.savefig(path)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "teacher_layers": list(self.teacher_layers),
            "student_layers": list(self.student_layers),
            "pairs": [{**dataclasses.asdict(pair), "score": pair.score} for pair in self.all_pairs],
            "loss_without": self.loss_without,
            "examples": self.examples,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "LayerRanking":
        """The ranking that `to_dict` described."""
        pairs = tuple(RankedPair(**{k: v for k, v in pair.items() if k != "score"}) for pair in data["pairs"])
        return cls(
            teacher_layers=tuple(data["teacher_layers"]),
            student_layers=tuple(data["student_layers"]),
            all_pairs=pairs,
            loss_without=data["loss_without"],
            examples=data["examples"],
            seed=data["seed"],
        )
