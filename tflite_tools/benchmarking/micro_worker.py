"""The process in which TFLite Micro runs a file: `python -m tflite_tools.benchmarking.micro_worker request answer`.

A process of its own, because a file can abort the one that runs it; and processes below it, because TFLite Micro
can also die of an arena that is too small.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tflite_tools.console import captured_console

# TFLite Micro aligns the arena and everything in it to this many bytes.
STEP = 16
_FIRST_ARENA, _LARGEST_ARENA = 1 << 20, 1 << 30
_TOO_SMALL = re.compile(
    r"Failed to (allocate|resize)|missing: |Unable to allocate|too small|Arena size", re.IGNORECASE
)


def main(request_path: str, answer_path: str) -> None:
    """Reads the request, runs the file, writes the answer."""
    request = json.loads(pathlib.Path(request_path).read_text(encoding="utf-8"))
    try:
        answer = measure(pathlib.Path(request["model"]).read_bytes(), request)
    except (ValueError, RuntimeError) as error:
        answer = {"refused": str(error)}
    pathlib.Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def random_feeds(inputs: list[dict[str, Any]], seed: int, runs: int) -> Iterator[list[np.ndarray]]:
    """Inputs of `runs` inferences, the same for the same seed, in both runtimes."""
    generator = np.random.default_rng(seed)
    for _ in range(runs):
        feed = []
        for entry in inputs:
            kind, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
            if kind.kind == "f":
                value = generator.uniform(-1, 1, shape).astype(kind)
            elif kind == np.bool_:
                value = generator.integers(0, 2, shape).astype(kind)
            elif kind.itemsize <= 2:
                bounds = np.iinfo(kind)
                value = generator.integers(bounds.min, bounds.max, shape, kind, endpoint=True)
            else:  # wider integers are mostly indices into a table, and 0 is always in it
                value = np.zeros(shape, kind)
            feed.append(value)
        yield feed


def measure(content: bytes, request: dict[str, Any]) -> dict[str, Any]:
    """Runs the file on the given inputs, and finds the smallest arena."""
    arena = _FIRST_ARENA + request["activation_bytes"] * 4
    while True:
        try:
            with captured_console() as said:
                interpreter = _load(content, arena)
            break
        except RuntimeError as error:
            # The capture closes on the way out, so its text is complete here.
            if not _TOO_SMALL.search(said.text) or arena >= _LARGEST_ARENA:
                raise RuntimeError(_reason(said.text, error)) from None
            arena *= 8
    deadline = time.monotonic() + request["time_limit_s"]
    results: list[list[Any]] = []
    for feed in random_feeds(request["inputs"], request["seed"], request["runs"]):
        results.append([value.ravel().tolist() for value in _run(interpreter, feed, request["outputs"])])
        if time.monotonic() > deadline:
            break
    with captured_console() as table:
        interpreter.print_allocations()
    recorded = parse_allocations(table.text)
    first = next(random_feeds(request["inputs"], request["seed"], 1))
    return {
        "outputs": results,
        "recorded": recorded,
        "arena_bytes": smallest(lambda size: _runs_in(content, size, first), recorded["total"]),
    }


def _load(content: bytes, arena: int) -> Any:
    from tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena)


def _run(interpreter: Any, feed: list[np.ndarray], outputs: int) -> list[np.ndarray]:
    for index, value in enumerate(feed):
        interpreter.set_input(value, index)
    said = None
    try:
        with captured_console() as said:
            interpreter.invoke()
    except RuntimeError as error:
        raise RuntimeError(_reason(said.text if said else "", error)) from None
    return [np.array(interpreter.get_output(index)) for index in range(outputs)]


def _reason(said: str, error: Exception) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"TFLite Micro said: {' '.join(lines[:3]) or error}"


def parse_allocations(text: str) -> dict[str, Any]:
    """Total, head, tail and parts in bytes, from the lines of TFLite Micro's recording allocator."""
    found: dict[str, Any] = {"parts": {}}
    for name, size in re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text):
        found[name] = int(size)
    for name, size in re.findall(r"'([^']+)' used (\d+) bytes", text):
        found["parts"][name] = int(size)
    if not {"total", "head", "tail"} <= set(found):
        raise RuntimeError(f"TFLite Micro's list of allocations could not be read: {text[:200]!r}")
    return found


def smallest(fits: Any, start: int) -> int:
    """The smallest multiple of 16 for which `fits` is true, looked for from `start` on."""
    low, high, step = 0, -(-start // STEP), 1
    while not fits(high * STEP):
        low, high, step = high, high + step, step * 2
        if high * STEP > _LARGEST_ARENA:
            raise RuntimeError("TFLite Micro ran once, but not again in an arena of its own.")
    if low == 0 and fits((high - 1) * STEP):
        high -= 1  # the recorded total was generous; go down from here
    elif low == 0:
        return high * STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle * STEP) else (middle, high)
    return high * STEP


def _runs_in(content: bytes, size: int, feed: list[np.ndarray]) -> bool:
    """Whether loading and one inference succeed in an arena of that size, tried in a forked process."""
    # Fork and not a fresh interpreter: a dozen tries cost milliseconds, and no thread runs here.
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            interpreter = _load(content, size)
            for index, value in enumerate(feed):
                interpreter.set_input(value, index)
            interpreter.invoke()
            status = 0
        os._exit(status)
    return os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
