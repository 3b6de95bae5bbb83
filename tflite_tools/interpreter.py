"""`predict`: runs a .tflite file on as many examples as you like, real values in and real values out."""

import os
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from tflite_tools.artifact import TFLiteArtifact, load
from tflite_tools.errors import nearest
from tflite_tools.file_facts import signature_names
from tflite_tools.processes import ChildRunner
from tflite_tools.quantized_values import dequantize, quantize
from tflite_tools.runner import Arrays, ModelRunner, TensorSpec

Isolate = Literal["auto"] | bool
ArtifactLike = TFLiteArtifact | str | os.PathLike[str] | bytes

# A further worker must be worth its start: a process takes about 0.4 s, a thread a few milliseconds.
_WORTH_A_PROCESS_S = 0.8
_WORTH_A_THREAD_S = 0.02
_CHUNK_S = 0.1


def predict(
    artifact: ArtifactLike,
    x: Any,
    *,
    signature: str | None = None,
    isolate: Isolate = "auto",
    num_processes: int | None = None,
    num_threads: int = 1,
    reference_kernels: bool = False,
    dequantize_outputs: bool = True,
    timeout_s: float | None = None,
) -> Any:
    """Runs a .tflite file on a batch of examples.

    Inputs are quantized and outputs dequantized by the file's own scales, rounded exactly as TFLite's kernels
    do. Where the graph takes larger batches and gives the same answers with them, it is fed such; large
    inputs are shared among processes, one per core. A model that keeps state (variables) sees the examples in
    order, as one stream that starts afresh; an LSTM's cell state starts afresh with every example.

    Args:
      artifact: from `convert` or `load`; a path or bytes are loaded.
      x: an array [examples, ...]; for several inputs a dictionary by name, or a list or tuple in the file's
        order. Floats are real values. Integers are real values too, unless they already have the quantized
        type of the
        input itself: those are passed as they are.
      signature: which signature to run; default: the main graph.
      isolate: run in a child process, so that a file that aborts its process raises ModelCrashError and
        nothing else happens. "auto": for files that were loaded, not for those made by `convert` in this
        process.
      num_processes: at most so many at a time (threads, where nothing is isolated); default: one per core this
        process may use.
      num_threads: of each interpreter.
      reference_kernels: the runtime's plain kernels, bit-exact with TFLite Micro, instead of the fast ones.
      dequantize_outputs: False returns the file's own integers.
      timeout_s: an isolated file that takes longer than this to load, or for one batch, is taken for hung and killed.

    Returns:
      An array [examples, ...], or a dictionary of output name to such arrays when there are several. An
      output whose size differs between examples is a list.

    Raises:
      ValueError: x does not fit the inputs; the message lists every problem.
      UnsupportedModelError: the runtime cannot run the file; the message says why.
      ModelCrashError: the file killed its process.

    Example:
      >>> import keras
      >>> from tflite_tools import convert
      >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
      >>> predict(convert(model), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).tolist()
      [[6.0], [15.0]]
    """
    artifact = as_artifact(artifact)
    options: dict[str, Any] = {
        "signature": signature,
        "num_threads": num_threads,
        "reference_kernels": reference_kernels,
    }
    if timeout_s is not None:
        options["timeout_s"] = timeout_s
    runner = open_runner(artifact, isolate, options)
    try:
        values, single = prepare(x, runner.inputs)
        if single:
            calls = [runner.once(to_raw(values, runner.inputs))]
        else:
            calls = _run_all(runner, artifact, values, options, num_processes or available_cores())
    finally:
        if isinstance(runner, ChildRunner):
            runner.close()
    outputs = {}
    for spec in runner.outputs:
        values = _join([call[spec.name] for call in calls], single)
        if dequantize_outputs and spec.is_quantized:
            values = _dequantized(values, spec)
        outputs[spec.name] = values
    return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def as_artifact(artifact: ArtifactLike) -> TFLiteArtifact:
    """The artifact itself, or the file loaded."""
    return artifact if isinstance(artifact, TFLiteArtifact) else load(artifact)


def available_cores() -> int:
    """Cores that this process may use, as taskset and containers limit them."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1


def open_runner(
    artifact: TFLiteArtifact, isolate: Isolate, options: dict[str, Any]
) -> ModelRunner | ChildRunner:
    """A runner, in this process or in a child."""
    if isolate not in ("auto", True, False):
        raise ValueError(f"isolate: expected 'auto', True or False, got {isolate!r}.")
    apart = artifact.foreign if isolate == "auto" else isolate
    try:
        if apart:
            return ChildRunner(artifact.content, **options)
        if options.get("timeout_s") is not None:
            raise ValueError("timeout_s: only an isolated run can be ended; pass isolate=True.")
        return ModelRunner(artifact.content, **options)
    except KeyError as error:
        names = signature_names(artifact.content)
        raise ValueError(
            f"signature: the file has no signature {error.args[0]!r}; it has {names}.{nearest(error.args[0], names)}"
        ) from None


def prepare(x: Any, inputs: tuple[TensorSpec, ...]) -> tuple[Arrays, bool]:
    """Checked values for every input, and whether they are exactly one call's worth.

    Raises:
      ValueError: with every problem found.
    """
    problems: list[str] = []
    named = _by_name(x, inputs, problems)
    feeds: Arrays = {}
    for spec in inputs:
        if spec.name in named:
            value = np.asarray(named[spec.name])
            problem = _misfit(value, spec) or _problem_of(value, spec)
            if problem:
                problems.append(problem)
            else:
                feeds[spec.name] = value
    if problems:
        raise ValueError(
            "x does not fit the model's inputs:" + "".join(f"\n  - {problem}" for problem in problems)
        )
    # Inputs without a common leading size that stands for examples (numbers, vectors of settings) are one
    # call.
    exact = all(_matches(feeds[spec.name].shape, spec.shape) for spec in inputs)
    leading = {value.shape[0] if value.ndim else 1 for value in feeds.values()}
    fixed = {spec.shape[0] if spec.shape else 1 for spec in inputs}
    if exact and (len(leading) > 1 or leading == fixed or len(inputs) == 0):
        return feeds, True
    if len(leading) > 1:
        raise ValueError(
            "x: the inputs have different numbers of examples: "
            + ", ".join(f"{name} {value.shape[0]}" for name, value in feeds.items())
        )
    return feeds, False


def _by_name(x: Any, inputs: tuple[TensorSpec, ...], problems: list[str]) -> dict[str, Any]:
    names = [spec.name for spec in inputs]
    if isinstance(x, Mapping):
        aliases = {spec.tensor_name: spec.name for spec in inputs} | {name: name for name in names}
        unknown = [str(key) for key in x if key not in aliases]
        problems += [f"there is no input {key!r}; there are {names}.{nearest(key, names)}" for key in unknown]
        named = {aliases[key]: value for key, value in x.items() if key in aliases}
        problems += [f"nothing was given for the input {name!r}." for name in names if name not in named]
        return named
    if isinstance(x, (list, tuple)) and len(inputs) > 1:
        if len(x) != len(inputs):
            problems.append(f"{len(x)} arrays were given, and the inputs are {names}.")
        return dict(zip(names, x))
    if len(inputs) != 1:
        problems.append(f"one array was given, and the inputs are {names}: pass a dictionary.")
        return {}
    return {names[0]: x}


def _matches(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected))


def _misfit(value: np.ndarray, spec: TensorSpec) -> str | None:
    if _matches(value.shape, spec.shape) or (value.ndim and _matches(value.shape[1:], spec.shape[1:])):
        return None
    expected = ", ".join("any" if size == -1 else str(size) for size in spec.shape[1:])
    hint = ""
    if _matches(value.shape, spec.shape[1:]):
        hint = " That is one example without the batch axis: x[None] adds it."
    elif (
        value.ndim == len(spec.shape) - 1
        and spec.shape[-1] == 1
        and _matches(value.shape[1:], spec.shape[1:-1])
    ):
        hint = " The last axis (one channel) is missing: x[..., None] adds it."
    return f"input {spec.name!r}: expected [examples, {expected}], got {list(value.shape)}.{hint}"


def _problem_of(value: np.ndarray, spec: TensorSpec) -> str | None:
    """What keeps values of the right shape from being fed, if anything."""
    if spec.dtype == "string" or value.dtype == np.dtype(spec.dtype):
        return None
    if value.dtype.kind not in "biuf":
        return f"input {spec.name!r}: expected numbers, got {value.dtype}."
    wanted = np.dtype(spec.dtype)
    if wanted.kind not in "iu" or not value.size:
        return None
    if value.dtype.kind == "f" and np.isnan(value.min()):
        return f"input {spec.name!r}: there are NaN values, and no integer stands for them."
    limits = np.iinfo(wanted)
    if not spec.is_quantized and not (
        value.min() >= limits.min and value.max() <= limits.max and np.array_equal(value, np.round(value))
    ):
        return (
            f"input {spec.name!r}: the file takes {wanted} values and says no scale for them; the data are not "
            f"whole numbers from {limits.min} to {limits.max}."
        )
    return None


def to_raw(values: Arrays, inputs: tuple[TensorSpec, ...]) -> Arrays:
    """Values of the file's own types: quantized where the input is, unless they are so already."""
    return {spec.name: _as_raw(values[spec.name], spec) for spec in inputs}


def _as_raw(value: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "string":
        return value.astype(object) if value.dtype.kind in "OSU" else value.astype(str).astype(object)
    wanted = np.dtype(spec.dtype)
    if value.dtype != wanted and spec.scale is not None and spec.zero_point is not None:
        return quantize(value, spec.scale, spec.zero_point, wanted)
    return np.ascontiguousarray(value, wanted)


def _run_all(
    runner: ModelRunner | ChildRunner,
    artifact: TFLiteArtifact,
    values: Arrays,
    options: dict[str, Any],
    workers: int,
) -> list[Arrays]:
    """All examples, in order; the work is shared once it turns out to be worth it.

    Interpreters in this process run in threads, as they let go of Python's lock while they work; isolated ones are
    processes anyway. Values are quantized chunk by chunk, by whoever runs them.
    """
    count = len(next(iter(values.values())))
    own = runner.own_batch()
    if runner.keeps_state and count:
        return runner.run(to_raw(values, runner.inputs))
    chunks: dict[int, list[Arrays]] = {}
    lock = threading.Lock()
    position = 0
    chunk = least = own * max(1, 64 // own)
    failures: list[BaseException] = []

    def take() -> tuple[int, Arrays] | None:
        nonlocal position
        with lock:
            if position >= count or failures:
                return None
            # The last chunks are small ones, so that no worker is still busy when the others have finished.
            fair = (count - position) // (2 * workers) // least * least
            start, position = position, min(count, position + max(least, min(chunk, fair)))
            return start, {name: value[start:position] for name, value in values.items()}

    def work(worker: ModelRunner | ChildRunner, jobs: int | None = None) -> None:
        while jobs is None or jobs > 0:
            job = take()
            if job is None:
                return
            chunks[job[0]] = worker.run(to_raw(job[1], worker.inputs))
            jobs = None if jobs is None else jobs - 1

    def help_out() -> None:
        try:
            if isinstance(runner, ChildRunner):
                with ChildRunner(artifact.content, **options) as child:
                    work(child)
            else:
                work(ModelRunner(artifact.content, batch=runner.batch, **options))
        except BaseException as error:  # carried into the caller's thread
            failures.append(error)

    started = time.perf_counter()
    before = position
    work(runner, jobs=1)  # also finds the batch size, which takes about as long again
    if isinstance(runner, ChildRunner):  # a process is dear, so the estimate is taken from a run without that
        started, before = time.perf_counter(), position
        work(runner, jobs=1)
    if position < count:
        seconds_each = (time.perf_counter() - started) / (position - before)
        worth_s = _WORTH_A_PROCESS_S if isinstance(runner, ChildRunner) else _WORTH_A_THREAD_S
        helpers = min(workers - 1, int(seconds_each * (count - position) / worth_s))
        chunk *= max(1, int(_CHUNK_S / max(seconds_each * chunk, 1e-6)))
        threads = [threading.Thread(target=help_out, daemon=True) for _ in range(helpers)]
        for thread in threads:
            thread.start()
        try:
            work(runner)
        except BaseException as error:
            failures.append(error)
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return [call for start in sorted(chunks) for call in chunks[start]]


def _join(parts: list[np.ndarray], single: bool) -> Any:
    if single:
        return parts[0]
    if not parts:
        return np.empty(0, np.float32)
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return [example for part in parts for example in part]


def _dequantized(values: Any, spec: TensorSpec) -> Any:
    assert spec.scale is not None and spec.zero_point is not None
    if isinstance(values, list):
        return [dequantize(part, spec.scale, spec.zero_point) for part in values]
    return dequantize(values, spec.scale, spec.zero_point)
