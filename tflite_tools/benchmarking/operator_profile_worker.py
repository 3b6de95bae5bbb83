"""The process that profiles operators: `python -m tflite_tools.benchmarking.operator_profile_worker request answer`.

The Python interface of ai-edge-litert 2.3.0 has no profiler, but its libLiteRt.so exports LiteRT's C API,
which has one. It is called through ctypes here, in a process of its own: a wrong guess about the interface
would end in a crash and not in an exception, which is also why the caller asks for tested versions only.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import sys
from typing import Any

_CPU = 1
_WRITE = 1
_RANKED_TENSOR_TYPE_BYTES = 72  # sizeof(LiteRtRankedTensorType), rounded up


class _Library:
    """libLiteRt.so; every call is checked for the status that it returns."""

    def __init__(self) -> None:
        import ai_edge_litert

        folder = pathlib.Path(ai_edge_litert.__path__[0])
        self._library = ctypes.CDLL(str(folder / "libLiteRt.so"))

    def __call__(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise RuntimeError(f"libLiteRt.so has no {name}") from None
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status:
            raise RuntimeError(f"{name} ended with status {status}")

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Calls a function whose last argument receives a handle, and returns the handle."""
        handle = ctypes.c_void_p()
        self(name, *arguments, ctypes.byref(handle))
        return handle


def profile(model_path: str, num_runs: int, warmup_runs: int) -> str:
    """Runs a model with LiteRT's profiler and returns its summary."""
    call = _Library()
    environment = call.made("LiteRtCreateEnvironment", 0, None)
    model = call.made("LiteRtCreateModelFromFile", environment, model_path.encode())
    options = call.made("LiteRtCreateOptions")
    call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
    # The library takes ownership of the text, so it must come from the C allocator.
    libc = ctypes.CDLL(None)
    libc.strdup.restype = ctypes.c_void_p
    text = ctypes.c_void_p(libc.strdup(b"enable_profiling = true\n"))
    free = ctypes.cast(libc.free, ctypes.c_void_p)
    opaque = call.made("LiteRtCreateOpaqueOptions", b"runtime_options_string", text, free)
    call("LiteRtAddOpaqueOptions", options, opaque)
    compiled = call.made("LiteRtCreateCompiledModel", environment, model, options)
    profiler = call.made("LiteRtCompiledModelGetProfiler", compiled)
    if not profiler:
        raise RuntimeError("this build of LiteRT has no profiler")
    signature = call.made("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
    inputs = _buffers(call, environment, compiled, signature, "Input")
    outputs = _buffers(call, environment, compiled, signature, "Output")

    def run() -> None:
        count = ctypes.c_size_t
        ends = (count(len(inputs)), inputs, count(len(outputs)), outputs)
        call("LiteRtRunCompiledModel", compiled, count(0), *ends)

    for _ in range(max(1, warmup_runs)):
        run()
    call("LiteRtStartProfiler", profiler)
    for _ in range(num_runs):
        run()
    call("LiteRtStopProfiler", profiler)
    summary = ctypes.c_char_p()
    call("LiteRtGetProfileSummary", profiler, compiled, ctypes.byref(summary))
    return (summary.value or b"").decode("utf-8", "replace")


def _buffers(call: _Library, environment: Any, compiled: Any, signature: Any, side: str) -> Any:
    number = ctypes.c_size_t()
    call(f"LiteRtGetNumSignature{side}s", signature, ctypes.byref(number))
    result = (ctypes.c_void_p * number.value)()
    for i in range(number.value):
        tensor = call.made(f"LiteRtGetSignature{side}TensorByIndex", signature, ctypes.c_size_t(i))
        kind = (ctypes.c_byte * _RANKED_TENSOR_TYPE_BYTES)()
        call("LiteRtGetRankedTensorType", tensor, kind)
        needs = call.made(
            f"LiteRtGetCompiledModel{side}BufferRequirements",
            compiled,
            ctypes.c_size_t(0),
            ctypes.c_size_t(i),
        )
        buffer = call.made("LiteRtCreateManagedTensorBufferFromRequirements", environment, kind, needs)
        if side == "Input":
            # Zeros: whatever the memory held could be indices beyond a table, or numbers that compute slowly.
            size = ctypes.c_size_t()
            call("LiteRtGetTensorBufferSize", buffer, ctypes.byref(size))
            address = ctypes.c_void_p()
            call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), _WRITE)
            ctypes.memset(address, 0, size.value)
            call("LiteRtUnlockTensorBuffer", buffer)
        result[i] = buffer
    return result


def main(request_path: str, answer_path: str) -> None:
    """Reads the request, profiles, writes the answer."""
    request = json.loads(pathlib.Path(request_path).read_text(encoding="utf-8"))
    try:
        answer = {"summary": profile(request["model"], request["num_runs"], request["warmup_runs"])}
    except (RuntimeError, OSError) as error:
        answer = {"unavailable": str(error)}
    pathlib.Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    # Without tearing the library down: the handles were never given back one by one.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
