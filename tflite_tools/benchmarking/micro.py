"""Whether and in how much memory a file runs on a microcontroller, from TFLite Micro's own kernels on this machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import struct
from typing import Any

import numpy as np

from tflite_tools.activations import activation_bytes
from tflite_tools.benchmarking.boards import Board, find_board
from tflite_tools.benchmarking.host import device_name, run_child
from tflite_tools.benchmarking.memory_timeline import layer_costs
from tflite_tools.benchmarking.micro_result import Budget, LayerCost, MicroDetails
from tflite_tools.benchmarking.micro_support import operators_to_register, refusals, resolver_call
from tflite_tools.benchmarking.micro_worker import random_feeds
from tflite_tools.benchmarking.result import BenchmarkResult
from tflite_tools.benchmarking.vela import check_accelerator, estimate_npu
from tflite_tools.errors import UnsupportedModelError, sentence
from tflite_tools.processes import ChildRunner
from tflite_tools.schema import Model, parse

# More output values than this are not compared: they travel between the processes as text.
_MOST_VALUES = 200_000


def benchmark_micro(
    content: bytes,
    *,
    num_threads: int = 1,
    num_runs: int = 50,
    warmup_runs: int = 5,
    op_profile: bool = False,
    board: str | None = None,
    flash_bytes: int | None = None,
    arena_bytes: int | None = None,
    npu: str | None = None,
    time_limit_s: float = 10.0,
    seed: int = 0,
) -> BenchmarkResult:
    """Runs a .tflite file on TFLite Micro's reference kernels, in a child process of this machine.

    No time is reported: this machine's says nothing about a microcontroller's. `arena_bytes` of the result is the
    smallest arena, in steps of 16 bytes, in which the file loads and runs. It is found with the 8-byte pointers of
    this machine; a 32-bit chip needs a little less for the interpreter's own records, while the optimized kernels of
    a chip (CMSIS-NN, ESP-NN) may need more scratch.

    Args:
      content: the file's bytes.
      num_threads: 1; TFLite Micro has no threads.
      num_runs: inferences on random inputs that are compared with LiteRT's reference kernels.
      warmup_runs: of no effect here.
      op_profile: False; there are no times here.
      board: a key of `boards.BOARDS`: says whether the file fits there.
      flash_bytes: how much flash there is for the model, in place of a board's figure.
      arena_bytes: how much memory in one piece there is, in place of a board's figure.
      npu: also estimate an Arm Ethos-U with Vela, for example "ethos-u55-128".
      time_limit_s: seconds for the compared runs; fewer are compared when it ends them.
      seed: of the random inputs.

    Returns:
      A `BenchmarkResult` without latency, and with `micro`.

    Raises:
      ValueError: an argument out of range; all such are named at once.
      ImportError: tflite-micro, or ethos-u-vela for `npu`, is not installed.
      InvalidModelError: no .tflite file, or a broken one.
      UnsupportedModelError: TFLite Micro cannot run the file; the message says why. What the file itself shows is
        said before anything runs.
      ModelCrashError: the child process died or hung; this process is unharmed.
    """
    place = _check(num_threads, num_runs, op_profile, board, flash_bytes, arena_bytes, npu, time_limit_s)
    model = parse(content)
    reasons = refusals(model)
    if reasons:
        raise UnsupportedModelError(f"TFLite Micro cannot run this file: {'; '.join(reasons)}.")
    version = _version()
    inputs = _tensors(model, model.subgraphs[0].inputs)
    outputs = _tensors(model, model.subgraphs[0].outputs)
    each = max(1, sum(int(np.prod(entry["shape"])) for entry in outputs))
    request = {
        "inputs": inputs,
        "outputs": len(outputs),
        "runs": max(1, min(num_runs, _MOST_VALUES // each)),
        "seed": seed,
        "time_limit_s": time_limit_s,
        "activation_bytes": activation_bytes(model, model.subgraphs[0]) or 0,
    }
    answer = run_child("tflite_tools.benchmarking.micro_worker", content, request, time_limit_s)
    values, largest, unlike = 0, None, None
    try:
        values, largest = _compare(content, inputs, answer["outputs"], seed)
    except UnsupportedModelError as error:  # LiteRT refuses what TFLite Micro ran, e.g. its signal operators
        unlike = str(error)
    layers = layer_costs(content)
    needed = answer["arena_bytes"]
    recorded = answer["recorded"]
    names = operators_to_register(model)
    details = MicroDetails(
        recorded_bytes=recorded["total"],
        activation_bytes=recorded["head"],
        persistent_bytes=recorded["tail"],
        parts=recorded["parts"],
        compared_runs=0 if unlike else len(answer["outputs"]),
        compared_values=values,
        identical_outputs=None if largest is None else largest == 0,
        largest_difference=largest,
        operators=names,
        resolver=tuple(call for name in names if (call := resolver_call(name)) is not None),
        layers=layers,
        budget=_budget(place, flash_bytes, arena_bytes, len(content), needed, recorded, model, layers),
        npu=None if npu is None else estimate_npu(content, npu),
    )
    return BenchmarkResult(
        target="micro",
        runtime=f"tflite-micro {version}, reference kernels",
        device=f"kernels run on {device_name()}, {8 * struct.calcsize('P')}-bit pointers",
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        arena_bytes=needed,
        settings={"num_runs": num_runs, "seed": seed, "board": board, "npu": npu},
        warnings=_warnings(details, num_runs, unlike),
        micro=details,
    )


def _check(
    num_threads: int,
    num_runs: int,
    op_profile: bool,
    board: str | None,
    flash_bytes: int | None,
    arena_bytes: int | None,
    npu: str | None,
    time_limit_s: float,
) -> Board | None:
    problems = []
    if num_threads != 1:
        problems.append(f"num_threads must be 1 with target 'micro', got {num_threads!r}")
    if isinstance(num_runs, bool) or not isinstance(num_runs, int) or num_runs < 1:
        problems.append(f"num_runs must be 1 or more, got {num_runs!r}")
    if op_profile:
        problems.append(
            "op_profile must be False with target 'micro': this machine's times say nothing there"
        )
    for name, value in (("flash_bytes", flash_bytes), ("arena_bytes", arena_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            problems.append(f"{name} must be 1 or more, got {value!r}")
    if not time_limit_s > 0:
        problems.append(f"time_limit_s must be above 0, got {time_limit_s!r}")
    place = None
    try:
        place = None if board is None else find_board(board)
    except ValueError as error:
        problems.append(str(error).rstrip("."))
    if npu is not None:
        try:
            check_accelerator(npu)
        except ValueError as error:
            problems.append(str(error).rstrip("."))
    if problems:
        raise ValueError(sentence(problems))
    return place


def _version() -> str:
    try:
        return importlib.metadata.version("tflite_micro")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            "Target 'micro' needs the package tflite-micro: pip install 'keras-kd[micro]'"
        ) from None


def _tensors(model: Model, indices: tuple[int, ...]) -> list[dict[str, Any]]:
    found = []
    for index in indices:
        tensor = model.subgraphs[0].tensors[index]
        dtype = tensor.dtype.lower()
        if dtype not in ("float32", "int8", "uint8", "int16", "int32", "int64", "bool"):
            raise UnsupportedModelError(
                f"TFLite Micro takes no inputs and outputs of type {dtype}; {tensor.name!r} is one."
            )
        # An open size is 1 here, as in TFLite Micro, which never resizes.
        found.append({"dtype": dtype, "shape": [max(1, size) for size in tensor.shape]})
    return found


def _compare(
    content: bytes, inputs: list[dict[str, Any]], results: list[list[list[Any]]], seed: int
) -> tuple[int, float]:
    """How many values were compared with LiteRT's reference kernels, and their largest difference."""
    values, largest = 0, 0.0
    with ChildRunner(content, reference_kernels=True) as runner:
        names = [spec.name for spec in runner.inputs]
        for feed, outputs in zip(random_feeds(inputs, seed, len(results)), results):
            expected = runner.once(dict(zip(names, feed)))
            for spec, flat in itertools.zip_longest(runner.outputs, outputs):
                wanted = expected[spec.name].ravel().astype(np.float64)
                got = np.asarray(flat, np.float64)
                if wanted.shape != got.shape:
                    raise UnsupportedModelError(
                        f"Output {spec.name!r} has {got.size} values from TFLite Micro and {wanted.size} from LiteRT."
                    )
                unequal = ~((wanted == got) | (np.isnan(wanted) & np.isnan(got)))
                if unequal.any():
                    largest = max(
                        largest, float(np.nan_to_num(np.abs(wanted - got), nan=np.inf)[unequal].max())
                    )
                values += got.size
    return values, min(largest, float(np.finfo(np.float64).max))


def _budget(
    place: Board | None,
    flash_bytes: int | None,
    arena_bytes: int | None,
    size: int,
    needed: int,
    recorded: dict[str, Any],
    model: Model,
    layers: tuple[LayerCost, ...],
) -> Budget | None:
    if place is None and flash_bytes is None and arena_bytes is None:
        return None
    flash = flash_bytes if flash_bytes is not None else place.flash_bytes if place else None
    arena = arena_bytes if arena_bytes is not None else place.largest_block_bytes if place else None
    flash_left = None if flash is None else flash - size
    arena_left = None if arena is None else arena - needed
    advice: list[str] = []
    is_float = any(t.dtype == "FLOAT32" and len(t.shape) > 1 for t in model.subgraphs[0].tensors)
    to_int8 = "convert with quantization='int8': weights and activations take a quarter of float's bytes"
    if flash_left is not None and flash_left < 0:
        biggest = max(layers, key=lambda layer: layer.parameter_bytes, default=None)
        advice += [to_int8] if is_float else []
        if biggest is not None:
            advice.append(
                f"flash: fewer channels; operator {biggest.index}, {biggest.name}, holds "
                f"{biggest.parameter_bytes:,} bytes. Pruning does not help: zeros take as much flash as other weights"
            )
    if arena_left is not None and arena_left < 0:
        advice += [to_int8] if is_float and to_int8 not in advice else []
        peak = next((layer for layer in layers if layer.sets_peak), None)
        if peak is not None and recorded["head"] >= recorded["tail"]:
            advice.append(
                f"memory: operator {peak.index}, {peak.name}, sets the peak of the activations; a smaller input, a "
                "stride before it, or fewer channels there and in its input lower it"
            )
        else:
            advice.append(
                "memory: most of it is TFLite Micro's record of each operator; fewer operators lower it"
            )
    return Budget(
        where=place.name if place else "given budget",
        source=place.source if place else "as given",
        flash_bytes=flash,
        flash_left=flash_left,
        arena_bytes=arena,
        arena_left=arena_left,
        fits=(flash_left is None or flash_left >= 0) and (arena_left is None or arena_left >= 0),
        advice=tuple(advice),
    )


def _warnings(details: MicroDetails, num_runs: int, unlike: str | None) -> tuple[str, ...]:
    found = [
        "The arena is that of the reference kernels with this machine's pointers; leave some room for the optimized "
        "kernels of your chip, and ask interpreter.arena_used_bytes() there."
    ]
    if unlike is not None:
        found.append(f"The outputs could not be compared with LiteRT's: {unlike}")
        return tuple(found)
    if not details.identical_outputs:
        found.append(
            f"Outputs differ from LiteRT's reference kernels by up to {details.largest_difference:g}, in the outputs' "
            "own type; measure the accuracy again on the device."
        )
    if details.compared_runs < num_runs:
        found.append(f"{details.compared_runs} of {num_runs} runs were compared.")
    return tuple(found)
