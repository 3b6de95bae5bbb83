"""The process in which a file is timed: `python -m tflite_tools.benchmarking.host_worker request.json answer.json`.

A process of its own, because a foreign file can abort the one that loads it, and because only a fresh
process says how much memory a model adds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import pathlib
import re
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from tflite_tools.benchmarking.statistics import relative_interval

_MOST_RUNS = 200_000


def main(request_path: str, answer_path: str) -> None:
    """Reads the request, measures, writes the answer."""
    request = json.loads(pathlib.Path(request_path).read_text(encoding="utf-8"))
    try:
        answer = measure(request)
    except (ValueError, RuntimeError) as error:
        answer = {"refused": str(error)}
    pathlib.Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Loads, warms up, times. All times in microseconds."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = (
        OpResolverType.AUTO if request["use_xnnpack"] else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    memory_before = _resident_bytes()
    start = time.perf_counter_ns()
    interpreter = Interpreter(
        model_path=request["model"],
        num_threads=request["num_threads"],
        experimental_op_resolver_type=resolver,
    )
    interpreter.allocate_tensors()
    init_us = (time.perf_counter_ns() - start) / 1e3
    _fill_inputs(interpreter, request["seed"])

    invoke, clock = interpreter.invoke, time.perf_counter_ns
    start = clock()
    invoke()
    first_us = (clock() - start) / 1e3
    for _ in range(request["warmup_runs"]):
        invoke()
    times: list[float] = []
    deadline = time.monotonic() + request["time_limit_s"]
    gc.collect()
    gc.disable()
    # Rounds, so that the interval is looked at between them and not inside the timed loop.
    size, interval = request["num_runs"], request["interval"]
    while True:
        for _ in range(size):
            start = clock()
            invoke()
            times.append((clock() - start) / 1e3)
            if time.monotonic() > deadline:
                break
        if interval is None or len(times) >= _MOST_RUNS or time.monotonic() > deadline:
            break
        if relative_interval(times) <= interval:
            break
        size = max(10, len(times) // 2)
    gc.enable()
    return {
        "times_us": times,
        "init_us": init_us,
        "first_us": first_us,
        "peak_memory_bytes": _peak_bytes_since(memory_before),
        "delegates": _delegates(interpreter),
        "cut_short": len(times) < request["num_runs"],
    }


def _fill_inputs(interpreter: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for detail in interpreter.get_input_details():
        kind, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
        if kind.kind in "SO":
            value = np.full(shape or (1,), b"benchmark", dtype=object)
        elif kind.kind in "fc":
            value = np.asarray(generator.uniform(-1, 1, shape)).astype(kind)
        elif kind.itemsize == 1 and kind.kind in "iu":
            bounds = np.iinfo(kind)
            value = generator.integers(bounds.min, bounds.max, shape, kind, endpoint=True)
        elif kind == np.int16:
            value = generator.integers(-32768, 32767, shape, kind, endpoint=True)
        else:
            # Wider integers are mostly indices into a table, and 0 is always in it.
            value = np.zeros(shape, kind)
        interpreter.set_tensor(detail["index"], value)


def _status_bytes(field: str) -> int | None:
    try:
        text = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _resident_bytes() -> int | None:
    """Memory of this process now; on Linux its high-water mark is reset too."""
    # "5" resets VmHWM (proc(5)); refused in some sandboxes, where the peak then includes the imports.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _peak_bytes_since(before: int | None) -> int | None:
    peak = _status_bytes("VmHWM")
    return None if peak is None or before is None else max(0, peak - before)


def _delegates(interpreter: Any) -> list[dict[str, Any]] | None:
    """What delegates took, from the nodes that the interpreter lists; None where it lists none."""
    # Experimental in ai-edge-litert, and the only place that names delegate nodes; absent is not an error.
    list_nodes = getattr(interpreter, "_get_ops_details", None)
    if list_nodes is None:
        return None
    nodes = list_nodes()
    own = [node for node in nodes if not _is_delegate(node)]
    maker = {int(tensor): node for node in own for tensor in node["outputs"]}
    found = []
    for name in dict.fromkeys(node["op_name"] for node in nodes if _is_delegate(node)):
        groups = [node for node in nodes if node["op_name"] == name]
        taken: set[int] = set()
        for group in groups:
            # A partition is what lies between its inputs and its outputs.
            stop, todo = {int(i) for i in group["inputs"]}, [int(i) for i in group["outputs"]]
            while todo:
                node = maker.get(todo.pop())
                if node is not None and node["index"] not in taken:
                    taken.add(node["index"])
                    todo += [int(i) for i in node["inputs"] if i >= 0 and int(i) not in stop]
        left = Counter(node["op_name"] for node in own if node["index"] not in taken)
        found.append(
            {
                "name": "XNNPACK" if "XNN" in name.upper() or name == "DELEGATE" else name,
                "operators": len(taken),
                "total": len(own),
                "partitions": len(groups),
                "left": dict(left.most_common()),
            }
        )
    return found


def _is_delegate(node: dict[str, Any]) -> bool:
    return "elegate" in node["op_name"] or node["op_name"] == "DELEGATE"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
