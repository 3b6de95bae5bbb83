"""What `evaluate` returns."""

import dataclasses

from tflite_tools.records import Record
from tflite_tools.text_table import DASH, count, text_table

_LARGEST_PRINTED_CONFUSION = 12


@dataclasses.dataclass(frozen=True)
class ClassResult(Record):
    """How one class fared: precision is None if it was never predicted, recall and auc without examples."""

    name: str
    examples: int
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationResult(Record):
    """What `evaluate` found. A field that the task does not have is None.

    Attributes:
      task: "classification", "multi_label", "regression" or "reconstruction".
      why: how the task and the kind of output were recognized.
      num_examples: examples seen.
      accuracy: top-1 fraction (classification); fraction of right decisions at 0.5 (multi-label).
      top5_accuracy: for more than five classes.
      loss: mean cross-entropy in nats, or mean squared error for regression and reconstruction.
      from_logits: whether the outputs were taken as logits.
      calibration_error: ECE over 15 bins, see metrics.expected_calibration_error.
      auc: area under the ROC curve: anomaly detection by reconstruction error, or the mean over labels.
      mean_absolute_error, root_mean_squared_error, r2: regression.
      per_class: one row per class.
      confusion: counts, confusion[true][predicted].
      extra: values of the caller's own metrics.
      sha256: of the file.
    """

    task: str
    why: str
    num_examples: int
    accuracy: float | None = None
    top5_accuracy: float | None = None
    loss: float | None = None
    from_logits: bool | None = None
    calibration_error: float | None = None
    auc: float | None = None
    mean_absolute_error: float | None = None
    root_mean_squared_error: float | None = None
    r2: float | None = None
    per_class: tuple[ClassResult, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    sha256: str | None = None

    def __str__(self) -> str:
        labels = {
            "accuracy": "accuracy",
            "top5_accuracy": "top-5 accuracy",
            "loss": "loss",
            "calibration_error": "calibration error (ECE)",
            "auc": "AUC",
            "mean_absolute_error": "mean absolute error",
            "root_mean_squared_error": "root mean squared error",
            "r2": "R²",
        }
        figures = {label: getattr(self, name) for name, label in labels.items()} | self.extra
        rows = [[label, f"{value:.4f}"] for label, value in figures.items() if value is not None]
        parts = [text_table([f"{self.task}, {count(self.num_examples)} examples", ""], rows)]
        if self.per_class:
            columns = ["precision", "recall", "f1"]
            columns += ["auc"] * any(row.auc is not None for row in self.per_class)
            table = [
                [row.name, count(row.examples), *(_figure(getattr(row, column)) for column in columns)]
                for row in self.per_class
            ]
            parts.append(text_table(["class", "examples", *columns], table))
        if self.confusion is not None and len(self.confusion) <= _LARGEST_PRINTED_CONFUSION:
            names = [row.name for row in self.per_class]
            table = [[name, *map(str, row)] for name, row in zip(names, self.confusion)]
            parts.append(text_table(["true \\ predicted", *names], table))
        return "\n\n".join([*parts, self.why])


def _figure(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"
