"""What the Android target adds to a BenchmarkResult."""

from __future__ import annotations

from dataclasses import dataclass

from tflite_tools.records import Record
from tflite_tools.text_table import DASH, microseconds


@dataclass(frozen=True)
class PhoneState(Record):
    """Heat and clock at one moment; None where the device does not tell.

    Attributes:
      battery_celsius, processor_celsius: the battery, and the hottest thermal zone that is a processor's.
      clocks_khz: of each core, as the kernel reports it.
    """

    battery_celsius: float | None
    processor_celsius: float | None
    clocks_khz: tuple[int, ...]

    def __str__(self) -> str:
        parts = [
            f"{name} {value:.1f} °C"
            for name, value in (("battery", self.battery_celsius), ("processor", self.processor_celsius))
            if value is not None
        ]
        if self.clocks_khz:
            low, high = min(self.clocks_khz) / 1000, max(self.clocks_khz) / 1000
            parts.append(f"clocks {low:.0f} to {high:.0f} MHz")
        return ", ".join(parts) or DASH


@dataclass(frozen=True)
class PhoneDetails(Record):
    """The device, and how the benchmark ran on it.

    Attributes:
      serial, model, android, sdk, abis, soc, cores: what the device says of itself; None where it does not.
      tool: the program that measured.
      pushed: files that were sent; those already there are not sent again.
      coverage: per delegate, how much of the graph it took: "completely", "partially" or "not".
      repeats_us: mean latency of each repetition, in order; the result's figures are those of the repetition
        in the middle.
      before, after: heat and clocks.
      log: what the tool printed in that repetition.
    """

    serial: str
    model: str | None
    android: str | None
    sdk: int | None
    abis: tuple[str, ...]
    soc: str | None
    cores: int | None
    tool: str
    pushed: tuple[str, ...]
    coverage: dict[str, str]
    repeats_us: tuple[float, ...]
    before: PhoneState
    after: PhoneState
    log: str

    def __str__(self) -> str:
        lines = [f"before       {self.before}", f"after        {self.after}"]
        if len(self.repeats_us) > 1:
            lines.append(f"repetitions  {', '.join(map(microseconds, self.repeats_us))} (mean of each)")
        lines += [f"{name:<12} runs the graph {how}" for name, how in self.coverage.items()]
        return "\n".join(lines)
