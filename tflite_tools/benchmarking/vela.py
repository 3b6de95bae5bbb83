"""An Arm Ethos-U NPU by estimate: PyPI `ethos-u-vela` compiles the file for it and counts cycles."""

from __future__ import annotations

import csv
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

from tflite_tools.benchmarking.micro_result import NpuEstimate
from tflite_tools.errors import UnsupportedModelError, nearest

ACCELERATORS = (
    "ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512",
    "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
)  # fmt: skip
_TIME_LIMIT_S = 600.0


def check_accelerator(npu: str) -> None:
    """Refuses an unknown accelerator and a missing Vela, before any work.

    Raises:
      ValueError: no such accelerator; the nearest are named.
      ImportError: ethos-u-vela is not installed.
    """
    if npu not in ACCELERATORS:
        raise ValueError(
            f"npu must be one of {', '.join(ACCELERATORS)}, got {npu!r}.{nearest(npu, ACCELERATORS)}"
        )
    try:
        importlib.metadata.version("ethos-u-vela")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError("npu needs the package ethos-u-vela: pip install 'keras-kd[micro]'") from None


def estimate_npu(content: bytes, npu: str) -> NpuEstimate:
    """Compiles a file for an Ethos-U and reads what Vela estimates.

    Args:
      content: the file's bytes.
      npu: one of ACCELERATORS: the family, then multiply-accumulates per cycle.

    Returns:
      An `NpuEstimate`, for the system and memory that Vela assumes by default; both are named in it.

    Raises:
      ValueError, ImportError: as `check_accelerator`.
      UnsupportedModelError: Vela fails, or leaves everything to the CPU: its figures would all be 0.
    """
    check_accelerator(npu)
    with tempfile.TemporaryDirectory(prefix="tflite_tools_vela_") as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(content)
        command = [
            sys.executable,
            "-m",
            "ethosu.vela",
            str(folder / "model.tflite"),
            "--accelerator-config",
            npu,
        ]
        command += ["--output-dir", str(folder / "out"), "--show-cpu-operations"]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIME_LIMIT_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise UnsupportedModelError(
                f"Vela was still busy after {_TIME_LIMIT_S:g} s and was stopped."
            ) from None
        said = done.stdout + "\n" + done.stderr
        tables = sorted((folder / "out").glob("*_summary_*.csv"))
        if done.returncode != 0 or not tables:
            lines = [
                line for line in said.splitlines() if line.strip() and not line.startswith("Warning: No ")
            ]
            raise UnsupportedModelError(f"Vela could not compile the file for {npu}: {' '.join(lines[-2:])}")
        with tables[0].open(encoding="utf-8", newline="") as stream:
            row = next(csv.DictReader(stream))
    return read_summary(row, npu, said)


def read_summary(row: dict[str, str], npu: str, said: str) -> NpuEstimate:
    """From a row of Vela's summary table and what it printed to an estimate.

    Raises:
      UnsupportedModelError: the row holds only zeros.
    """
    reasons = cpu_reasons(said)
    cycles = round(float(row["cycles_total"]))
    if cycles == 0:
        why = f" Vela says: {'; '.join(reasons[:3])}" if reasons else ""
        raise UnsupportedModelError(
            f"Vela puts no operator of this file on {npu}, so that there is nothing to estimate. Only int8 and int16 "
            f"files run on an Ethos-U: convert with quantization='int8'.{why}"
        )
    return NpuEstimate(
        accelerator=npu,
        system=row["system_config"],
        memory_mode=row["memory_mode"],
        cycles=cycles,
        clock_hz=float(row["core_clock"]),
        inference_us=1e6 * float(row["inference_time"]),
        sram_bytes=round(1024 * float(row["sram_memory_used"])),
        flash_bytes=round(
            1024 * (float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"]))
        ),
        npu_operators=_operators(said, "NPU"),
        cpu_operators=_operators(said, "CPU"),
        cpu_reasons=reasons,
        version=importlib.metadata.version("ethos-u-vela"),
    )


def _operators(said: str, where: str) -> int | None:
    found = re.search(rf"^{where} operators = (\d+)", said, re.MULTILINE)
    return int(found.group(1)) if found else None


def cpu_reasons(said: str) -> tuple[str, ...]:
    """Why operators stay on the CPU: operator and reason, each pair once."""
    pairs = re.findall(r"operators?\) operator: (\w+), ofm: .*\nReason: (.*)", said)
    # The reason names the tensor in parentheses, which differs for every operator of a kind.
    return tuple(dict.fromkeys(f"{name}: {re.sub(r' [(].*[)]$', '', reason)}" for name, reason in pairs))
