"""The program on the fake phone: loads a model with LiteRT, times it, and prints as TFLite's or LiteRT's tool does.

`--behave=` chooses the format or a fault: classic (default), old, litert, hang, crash, fail, silent, chatter.
"""

import os
import pathlib
import signal
import statistics
import sys
import time

flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
behave = flags.get("behave", "classic")


def say(text):
    print(text, flush=True)


if behave == "hang":
    say("INFO: going to hang")
    time.sleep(600)
if behave == "crash":
    say("INFO: going to crash")
    os.kill(os.getpid(), signal.SIGABRT)
if behave == "fail":
    say("ERROR: Could not open '" + flags["graph"] + "'.")
    sys.exit(1)
if behave == "silent":
    sys.exit(0)

import numpy as np  # noqa: E402  (the faults above need none of this)
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

_BOTH = {"graph", "num_threads", "num_runs", "warmup_runs", "use_gpu", "report_peak_memory_footprint"}
_KNOWN = {
    "litert": {*_BOTH, "use_cpu", "use_profiler"},
    "classic": {
        *_BOTH, "use_xnnpack", "use_nnapi",
        "enable_op_profiling", "op_profiling_output_mode", "op_profiling_output_file",
    },
}  # fmt: skip
_OURS = {"behave", "delay", "slower"}
unknown = {
    name: value for name, value in flags.items() if name not in _OURS | _KNOWN.get(behave, _KNOWN["classic"])
}
if unknown:
    say("WARN: Unconsumed cmdline flags: " + " ".join(f"--{name}={value}" for name, value in unknown.items()))

say(f"Called with: {' '.join(sys.argv[1:])}")
if hasattr(os, "sched_getaffinity"):
    say(f"On cores: {sorted(os.sched_getaffinity(0))}")

start = time.perf_counter()
interpreter = Interpreter(model_path=flags["graph"], num_threads=int(flags["num_threads"]))
interpreter.allocate_tensors()
init = 1e6 * (time.perf_counter() - start)
for detail in interpreter.get_input_details():
    interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
delay = float(flags.get("delay", "0"))
slower = flags.get("slower")
if slower:  # every further run of the program is slower, as on a phone that heats up
    counter = pathlib.Path(slower)
    count = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(count + 1))
    delay *= 1 + count


def once():
    begin = time.perf_counter()
    interpreter.invoke()
    time.sleep(delay)
    return 1e6 * (time.perf_counter() - begin)


warm = [once() for _ in range(max(1, int(flags["warmup_runs"])))]
times = [once() for _ in range(int(flags["num_runs"]))]
mean, deviation = statistics.fmean(times), statistics.pstdev(times)
prefix = "" if behave == "old" else "INFO: "
if flags.get("use_xnnpack") == "true":
    say(
        f"{prefix}Explicitly applied XNNPACK delegate, and the model graph will be completely executed by the delegate."
    )
say(
    f"{prefix}count={len(warm)} first={warm[0]:.0f} curr={warm[-1]:.0f} min={min(warm):.0f} max={max(warm):.0f} "
    f"avg={statistics.fmean(warm):g} std=0"
)
say("")
line = f"{prefix}count={len(times)} first={times[0]:.0f} curr={times[-1]:.0f} min={min(times):.0f} max={max(times):.0f}"
line += f" avg={mean:g} std={deviation:.0f}"
if behave != "old":
    ordered = sorted(times)
    line += f" p5={ordered[0]:.0f} median={statistics.median(times):.0f} p95={ordered[-1]:.0f}"
say(line)
say("")
if (
    behave == "litert"
):  # the format of litert/tools/benchmark_litert_model.h, whose lines go to the other stream
    where, small = "INFO: [./litert/tools/benchmark_litert_model.h:82]", f"{deviation / 1e3:.2f}"
    for name, value in (
        ("Model initialization:", f"{init / 1e3:.2f} ms"),
        ("Warmup (first):      ", f"{warm[0] / 1e3:.2f} ms"),
        ("Warmup (avg):        ", f"{statistics.fmean(warm) / 1e3:.2f} ms ({len(warm)} runs)"),
        ("Inference (avg):     ", f"{mean / 1e3:.2f} ms ({len(times)} runs)"),
        ("Inference (min):     ", f"{min(times) / 1e3:.2f} ms"),
        ("Inference (max):     ", f"{max(times) / 1e3:.2f} ms"),
        ("Inference (std):     ", small),
        ("Init footprint:      ", "1.50 MB"),
        ("Overall footprint:   ", "2.25 MB"),
    ):
        print(f"{where} {name} {value}", file=sys.stderr)
    if flags.get("use_profiler") == "true":
        print(
            f"{where} \n============================== Run Order ==============================\n"
            "\t  [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"
            "\t  AllocateTensors\t 0.291\t 0.291\t 0.0%\t 0.0%\t 452.0\t 0\tAllocateTensors/0\n"
            f"\t  Fully Connected (NC, F32) GEMM\t 0.1\t {mean / 1e3:.6f}\t 100%\t 100%\t 0.0\t 1\tDelegate/FC:0\n"
            f"\nTimings (microseconds): count={len(warm + times)} first={warm[0]:.0f} curr=1 min=1 max=2 avg=1 std=0\n"
            "Memory (bytes): count=0\n",
            file=sys.stderr,
        )
    sys.exit(0)
say(
    f"{prefix}Inference timings in us: Init: {init:.0f}, First inference: {warm[0]:.0f}, Warmup (avg): "
    f"{statistics.fmean(warm):g}, Inference (avg): {mean:g}"
)
say(f"{prefix}Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.25")
if flags.get("enable_op_profiling") == "true":
    pathlib.Path(flags["op_profiling_output_file"]).write_text(
        "============================== Run Order ==============================\n"
        "node type,first,avg_ms,%,cdf%,mem KB,times called,name\n"
        f"Fully Connected (NC, F32) GEMM,0.1,{mean / 1e3:.6f},100%,100%,0,1,"
        "Delegate/Fully Connected (NC\t F32) GEMM:0\n"
    )
