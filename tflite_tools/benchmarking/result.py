"""BenchmarkResult: what a benchmark measured, on whatever target. A figure that was not measured is None."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tflite_tools.benchmarking.micro_result import MicroDetails
from tflite_tools.benchmarking.phone_result import PhoneDetails
from tflite_tools.records import Record
from tflite_tools.text_table import DASH, count, microseconds, percent, text_table


@dataclass(frozen=True)
class Latency(Record):
    """Microseconds per inference.

    Attributes:
      min, mean, median, p95, std, max: over all runs after the warm-up. None where a target's tool does not
        report the figure.
      runs: how many runs these are.
      outliers: runs beyond the third quartile by 3 interquartile ranges; they stay in all figures.
      median_low, median_high: 95 % confidence interval of the median.
    """

    min: float | None = None
    mean: float | None = None
    median: float | None = None
    p95: float | None = None
    std: float | None = None
    max: float | None = None
    runs: int | None = None
    outliers: int | None = None
    median_low: float | None = None
    median_high: float | None = None

    def __getitem__(self, name: str) -> Any:
        """`latency_us["median"]`, the spelling of the JSON, is `latency_us.median`."""
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None


@dataclass(frozen=True)
class OperatorTime(Record):
    """Time of one operator, or of one group that a delegate runs as a whole.

    Attributes:
      name: the operator as the runtime calls it, for example "Convolution (NHWC, F32) IGEMM", with its
        place in the order of the run.
      mean_us: microseconds per inference.
      share: of the sum over all operators.
      calls: how often it ran per inference.
    """

    name: str
    mean_us: float
    share: float
    calls: float = 1.0


@dataclass(frozen=True)
class DelegateShare(Record):
    """How much of the graph a delegate took: `operators` of `total`, in `partitions` pieces."""

    name: str
    operators: int
    total: int
    partitions: int
    left: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkResult(Record):
    """What a benchmark of one file on one target found. `str()` prints a table.

    Attributes:
      target: "host", or another place where the file ran.
      runtime: what ran it, with version and settings.
      device: the machine's name and processor.
      artifact_sha256: of the file that was measured.
      latency_us: microseconds per inference.
      init_us: loading the file and preparing its tensors.
      first_us: the first inference, which often does work that later ones need not.
      peak_memory_bytes: the most memory that loading and running the file added to the process.
      arena_bytes: memory for tensors that the runtime planned, where the runtime tells.
      ops: time per operator, slowest first; None without `op_profile=True`.
      delegates: how much of the graph each delegate took; None where it is not known.
      settings: what was asked for (threads, runs ...).
      warnings: why the figures should be read with care.
      kind: "measured", or "estimated" for a figure that no device produced.
      micro: what target "micro" found beyond these; None for other targets.
      phone: the same for target "android".
    """

    target: str
    runtime: str
    device: str
    artifact_sha256: str
    latency_us: Latency | None = None
    init_us: float | None = None
    first_us: float | None = None
    peak_memory_bytes: int | None = None
    arena_bytes: int | None = None
    ops: tuple[OperatorTime, ...] | None = None
    delegates: tuple[DelegateShare, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    kind: str = "measured"
    micro: MicroDetails | None = None
    phone: PhoneDetails | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("measured", "estimated"):
            raise ValueError(f"kind must be 'measured' or 'estimated', got {self.kind!r}.")

    def __str__(self) -> str:
        found = self.latency_us or Latency()
        rows = [
            ("target", f"{self.target} ({self.kind})"),
            ("device", self.device),
            ("runtime", self.runtime),
            ("file", f"sha256 {self.artifact_sha256[:16]}"),
        ]
        # Nothing is timed for a microcontroller, so a column of dashes would only hide what was found.
        if self.micro is None:
            rows += [
                ("latency", _median(found)),
                ("  min", microseconds(found.min)),
                ("  mean", f"{microseconds(found.mean)}, standard deviation {microseconds(found.std)}"),
                ("  p95", microseconds(found.p95)),
                ("  runs", _runs(found)),
                ("init", microseconds(self.init_us)),
                ("first run", microseconds(self.first_us)),
                ("peak memory", _bytes(self.peak_memory_bytes)),
            ]
        rows += [("arena", _bytes(self.arena_bytes))]
        rows += [("delegate", _delegate(share)) for share in self.delegates or ()]
        text = "\n".join(f"{name:<12} {value}" for name, value in rows)
        for details in (self.micro, self.phone):
            text += "" if details is None else f"\n{details}"
        if self.ops:
            table = [
                [op.name, f"{op.calls:g}", microseconds(op.mean_us), percent(op.share)] for op in self.ops
            ]
            text += "\n\n" + text_table(["operator", "calls", "time", "share"], table)
        return text + "".join(f"\nWarning: {warning}" for warning in self.warnings)


def _median(found: Latency) -> str:
    text = f"{microseconds(found.median)} (median"
    if found.median_low is not None and found.median_high is not None:
        text += f", 95 % interval {microseconds(found.median_low)} to {microseconds(found.median_high)}"
    return text + ")"


def _runs(found: Latency) -> str:
    return count(found.runs) + (f", {found.outliers} of them outliers" if found.outliers else "")


def _bytes(value: int | None) -> str:
    return DASH if value is None else f"{value:,} bytes"


def _delegate(share: DelegateShare) -> str:
    text = f"{share.name} runs {share.operators} of {share.total} operators in {share.partitions} partition"
    text += "" if share.partitions == 1 else "s"
    if share.left:
        text += "; left: " + ", ".join(f"{n} x {name}" for name, n in share.left.items())
    return text
