"""What the micro target adds to a BenchmarkResult."""

from __future__ import annotations

from dataclasses import dataclass

from tflite_tools.records import Record
from tflite_tools.text_table import count, microseconds, short_count, text_table

_MOST_ROWS = 40


@dataclass(frozen=True)
class LayerCost(Record):
    """One operator of the main graph.

    Attributes:
      name: the operator, and what it makes, e.g. "CONV_2D 1x24x24x8".
      macs: multiply-accumulates; None where the file does not tell.
      parameter_bytes: constants that it reads, in flash.
      alive_bytes: activations in memory while it runs, each tensor exactly as large as it is.
      sets_peak: whether no other operator needs more.
    """

    index: int
    name: str
    macs: int | None
    parameter_bytes: int
    alive_bytes: int | None
    sets_peak: bool


@dataclass(frozen=True)
class Budget(Record):
    """Whether a model fits.

    Attributes:
      where: the board, or "given budget".
      flash_bytes, arena_bytes: what there is; None where nothing was said.
      flash_left, arena_left: what remains for the rest of the program; negative when it does not fit.
      fits: whether nothing is negative. The program's own code and memory are not counted.
      advice: what would help, where it does not fit.
    """

    where: str
    source: str
    flash_bytes: int | None
    flash_left: int | None
    arena_bytes: int | None
    arena_left: int | None
    fits: bool
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            _fit(name, there, left)
            for name, there, left in (
                ("flash", self.flash_bytes, self.flash_left),
                ("memory in one piece", self.arena_bytes, self.arena_left),
            )
            if there is not None and left is not None
        ]
        lines = [f"{self.where}: {'fits' if self.fits else 'does not fit'}; {'; '.join(parts)}"]
        return "\n".join(lines + [f"  {advice}" for advice in self.advice])


def _fit(name: str, there: int, left: int) -> str:
    if left < 0:
        return f"{name} {there:,} bytes, {-left:,} too few"
    return f"{name} {there:,} bytes, {left:,} left for the rest of the program"


@dataclass(frozen=True)
class NpuEstimate(Record):
    """What Vela estimates for an Arm Ethos-U. Nothing here was measured.

    Attributes:
      cycles: of one inference; clock_hz: the clock that Vela assumes.
      inference_us: microseconds per inference.
      sram_bytes: the most SRAM in use; flash_bytes: weights and commands.
      npu_operators: operators on the NPU, after Vela took the graph apart; cpu_operators: what it leaves.
      cpu_reasons: why, as Vela says it.
    """

    accelerator: str
    system: str
    memory_mode: str
    cycles: int
    clock_hz: float
    inference_us: float
    sram_bytes: int
    flash_bytes: int
    npu_operators: int | None
    cpu_operators: int | None
    cpu_reasons: tuple[str, ...]
    version: str
    kind: str = "estimated"

    def __str__(self) -> str:
        text = (
            f"{self.accelerator} (estimated by Vela {self.version}, not measured): "
            f"{microseconds(self.inference_us)} per inference, {self.cycles:,} cycles at {self.clock_hz / 1e6:g} MHz, "
            f"{self.sram_bytes:,} bytes of SRAM, "
            f"{self.flash_bytes:,} bytes of flash; {count(self.npu_operators)} operators on the NPU, "
            f"{count(self.cpu_operators)} on the CPU; assumes {self.system}, {self.memory_mode}"
        )
        return "\n".join([text, *(f"  on the CPU: {reason}" for reason in self.cpu_reasons)])


@dataclass(frozen=True)
class MicroDetails(Record):
    """What TFLite Micro's own kernels say about a file.

    Attributes:
      recorded_bytes: what TFLite Micro's recording allocator reports after the run: `activation_bytes` (head:
        activations and scratch) + `persistent_bytes` (tail). The arena may have to be larger, because preparing
        the operators borrows memory that it gives back; `BenchmarkResult.arena_bytes` is what is needed.
      parts: the tail by use, in bytes.
      compared_runs, compared_values: how many inferences and output values were compared with LiteRT's
        reference kernels on the same random inputs.
      identical_outputs: whether all were equal, bit for bit; None where LiteRT cannot run the file.
      largest_difference: between two of them, in units of the output tensor's own type.
      operators: what the firmware registers; resolver: the functions that do.
      layers: MACs, bytes and activations per operator, in the order in which they run.
      budget, npu: where asked for.
    """

    recorded_bytes: int
    activation_bytes: int
    persistent_bytes: int
    parts: dict[str, int]
    compared_runs: int
    compared_values: int
    identical_outputs: bool | None
    largest_difference: float | None
    operators: tuple[str, ...]
    resolver: tuple[str, ...]
    layers: tuple[LayerCost, ...]
    budget: Budget | None = None
    npu: NpuEstimate | None = None

    @property
    def peak_layer(self) -> LayerCost | None:
        """The first operator during which the activations need the most memory."""
        return next((layer for layer in self.layers if layer.sets_peak), None)

    def __str__(self) -> str:
        if self.identical_outputs is None or self.largest_difference is None:
            outputs = "not compared: LiteRT cannot run this file"
        else:
            outputs = (
                f"{'' if self.identical_outputs else 'NOT '}identical to LiteRT's reference kernels: "
                f"{self.compared_values:,} values of {self.compared_runs} runs, largest difference "
                f"{self.largest_difference:g}"
            )
        lines = [
            f"activations  {self.activation_bytes:,} bytes (with scratch)",
            f"persistent   {self.persistent_bytes:,} bytes",
            *(f"  {size:>9,}  {name}" for name, size in self.parts.items()),
            f"outputs      {outputs}",
            f"register     {', '.join(self.resolver)}",
        ]
        if self.budget is not None:
            lines += ["", str(self.budget)]
        if self.npu is not None:
            lines += ["", str(self.npu)]
        shown = self.layers
        if len(shown) > _MOST_ROWS:
            costly = sorted(shown, key=lambda layer: layer.alive_bytes or 0, reverse=True)[:_MOST_ROWS]
            shown = tuple(sorted(costly, key=lambda layer: layer.index))
        rows = [
            [
                f"{layer.index} {layer.name}",
                short_count(layer.macs),
                count(layer.parameter_bytes),
                count(layer.alive_bytes) + (" <- peak" if layer.sets_peak else ""),
            ]
            for layer in shown
        ]
        lines += ["", text_table(["operator", "MACs", "weights, bytes", "activations alive, bytes"], rows)]
        if len(shown) < len(self.layers):
            lines.append(f"The {len(shown)} operators with the most activations, of {len(self.layers)}.")
        return "\n".join(lines)
