"""Logs of the benchmark programs, in every format that is known.

"recorded" logs are lines as real devices and tools printed them (published by their users); "made up" ones follow the
format of a version of which no log was at hand.
"""

import pytest

from tflite_tools.benchmarking.logs import parse_log, parse_operator_table

# Recorded on an embedded board (published documentation of a vendor), NNAPI delegate, no percentiles.
RECORDED_NNAPI = """\
    INFO: STARTING!
    INFO: Log parameter values verbosely: [0]
    INFO: Explicitly applied NNAPI delegate, and the model graph will be completely executed by the delegate.
    INFO: The input model file size (MB): 0.497264
    INFO: Initialized session in 66.002ms.
    INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
    INFO: count=1 curr=637079

    INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
    INFO: count=520 first=2531 curr=2793 min=1171 max=9925 avg=1885.74 std=870

    INFO: Inference timings in us: Init: 66002, First inference: 637079, Warmup (avg): 637079, Inference (avg): 1885.74
    INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual \
memory footprint of the model at runtime. Take the information at your discretion.
    INFO: Memory footprint delta from the start of the tool (MB): init=7.40234 overall=7.83203
"""

# Recorded on a phone; old builds print no prefix.
RECORDED_PARTLY = """\
Explicitly applied NNAPI delegate, and the model graph will be partially executed by the delegate w/ 11 \
delegate kernels.
The input model file size (MB): 5.42276
Inference timings in us: Init: 30724, First inference: 226753, Warmup (avg): 171396, Inference (avg): 143630
"""

# Recorded from the benchmark app through logcat.
RECORDED_LOGCAT = """\
01-02 03:04:05.678  1234  1234 I tflite  : Inference timings in us: Init: 5811, First inference: 67743, \
Warmup (avg): 65539, Inference (avg): 65155.5
"""

MADE_UP_PERCENTILES = """\
INFO: count=6 first=120034 curr=90012 min=90000 max=120034 avg=95000.5 std=10000 p5=90000 median=91000 p95=120034

INFO: count=50 first=18535 curr=14500 min=14100 max=18535 avg=14575.2 std=620 p5=14150 median=14480 p95=15900

INFO: Inference timings in us: Init: 5685, First inference: 120034, Warmup (avg): 95000.5, Inference (avg): 14575.2
INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.3
INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.75
"""

# Recorded on a phone with LiteRT's tool (published by a processor's maker), --use_profiler=true; shortened.
RECORDED_LITERT = """\
VERBOSE: Replacing 1 out of 1 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions for subgraph 0.
INFO: The input model file size (MB): 3.27774
INFO: Initialized session in 4.478ms.
INFO: count=1055 first=1033 curr=473 min=443 max=1033 avg=465.319 std=18 p5=459 median=463 p95=478

INFO: count=2112 first=463 curr=459 min=442 max=979 avg=464.545 std=13 p5=460 median=462 p95=478

INFO: [./litert/tools/benchmark_litert_model.h:82] Model initialization: 4.48 ms
INFO: [./litert/tools/benchmark_litert_model.h:84] Warmup (first):       1.03 ms
INFO: [./litert/tools/benchmark_litert_model.h:86] Warmup (avg):         0.47 ms (1055 runs)
INFO: [./litert/tools/benchmark_litert_model.h:88] Inference (avg):      0.46 ms (2112 runs)
INFO: [./litert/tools/benchmark_litert_model.h:92] Inference (min):      0.44 ms
INFO: [./litert/tools/benchmark_litert_model.h:94] Inference (max):      0.98 ms
INFO: [./litert/tools/benchmark_litert_model.h:96] Inference (std):      0.01
INFO: [./litert/tools/benchmark_litert_model.h:103] Throughput:           525.55 MB/s
INFO: [./litert/tools/benchmark_litert_model.h:114] Init footprint:       8.94 MB
INFO: [./litert/tools/benchmark_litert_model.h:116] Overall footprint:    11.51 MB
INFO: [./litert/tools/benchmark_litert_model.h:123] Peak memory usage not available. (peak_mem_mb <= 0)
"""
RECORDED_LITERT_PROFILE = """\
INFO: [./litert/tools/benchmark_litert_model.h:179]
============================== Run Order ==============================
\t        [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\tLiteRT::Run[buffer registration]\t 0.020\t 0.014\t 3.309%\t 3.309%\t 0.000\t 1\tLiteRT::Run[buffer registration]/0
\t    AllocateTensors\t    0.291\t    0.291\t  0.022%\t  3.331%\t   452.000\t        0\tAllocateTensors/0
\tStatic Reshape (NC)\t    0.085\t    0.003\t  0.739%\t  4.070%\t     0.000\t        1\tDelegate/Static Reshape (NC):0
\tFully Connected (NC, PF32) GEMM\t 0.538\t 0.382\t 92.948%\t 97.018%\t 0.000\t 1\tDelegate/Fully Connected:1
\tLiteRT::Run[Buffer sync]\t 0.013\t 0.012\t 2.982%\t100.000%\t 0.000\t 1\tLiteRT::Run[Buffer sync]/0

============================== Summary by node type ==============================
\t        [Node type]\t  [count]\t  [avg ms]\t    [avg %]\t    [cdf %]\t  [mem KB]\t[times called]
\tFully Connected (NC, PF32) GEMM\t        1\t     0.382\t    93.171%\t    93.171%\t     0.000\t        1
\tLiteRT::Run[buffer registration]\t        1\t     0.013\t     3.171%\t    96.341%\t     0.000\t        1
\tLiteRT::Run[Buffer sync]\t        1\t     0.012\t     2.927%\t    99.268%\t     0.000\t        1
\tStatic Reshape (NC)\t        1\t     0.003\t     0.732%\t   100.000%\t     0.000\t        1
\tAllocateTensors\t        1\t     0.000\t     0.000%\t   100.000%\t   452.000\t        0

Timings (microseconds): count=3166 first=947 curr=406 min=390 max=947 avg=411.071 std=14
Memory (bytes): count=0
5 nodes observed
"""


def test_recorded_nnapi():
    log = parse_log(RECORDED_NNAPI)
    assert log.tool == "benchmark_model"
    found = log.latency
    assert (found.runs, found.min, found.max, found.mean, found.std) == (520, 1171, 9925, 1885.74, 870)
    assert found.median is None and found.p95 is None  # not printed, so not invented
    assert (log.init_us, log.first_us) == (66002, 637079)
    assert log.peak_memory_bytes == round(7.83203 * 2**20)
    assert log.delegates == (("NNAPI", "completely"),)


def test_recorded_partial_delegate_without_prefix():
    log = parse_log(RECORDED_PARTLY)
    assert log.delegates == (("NNAPI", "partially"),)
    assert log.latency.mean == 143630 and log.latency.runs is None and log.peak_memory_bytes is None


def test_recorded_logcat():
    log = parse_log(RECORDED_LOGCAT)
    assert (log.init_us, log.first_us, log.latency.mean) == (5811, 67743, 65155.5)


def test_percentiles_and_the_watched_peak():
    log = parse_log(MADE_UP_PERCENTILES)
    found = log.latency
    assert (found.median, found.p95, found.runs, found.mean) == (14480, 15900, 50, 14575.2)
    assert log.first_us == 120034
    assert log.peak_memory_bytes == round(12.75 * 2**20)


def test_recorded_litert():
    """It prints TFLite's lines, its own in milliseconds, and behind the profile sums that are no result."""
    log = parse_log(RECORDED_LITERT + RECORDED_LITERT_PROFILE)
    assert log.tool == "benchmark_litert_model"
    found = log.latency
    assert (found.runs, found.min, found.max, found.mean) == (2112, 442, 979, 464.545)
    assert (found.median, found.p95, found.std) == (462, 478, 13)
    assert (log.init_us, log.first_us) == (pytest.approx(4480), 1033)
    assert log.peak_memory_bytes == round(11.51 * 2**20)
    assert log.replaced_nodes == (("TfLiteXNNPackDelegate", 1, 1, 1),)
    # What ran; preparing the tensors was called 0 times per inference.
    times = {"Fully Connected (NC, PF32) GEMM": 382, "LiteRT::Run[buffer registration]": 14}
    times |= {"LiteRT::Run[Buffer sync]": 12, "Static Reshape (NC)": 3}
    assert {op.name: op.mean_us for op in log.ops} == pytest.approx(times)
    # The tool's own shares are of 0.411 ms with rounding.
    assert log.ops[0].share == pytest.approx(0.92948, abs=1e-3)


def test_litert_alone():
    """Its own lines without TFLite's; the peak is made up, because the recorded phone did not tell it."""
    own = "\n".join(line for line in RECORDED_LITERT.splitlines() if "count=" not in line)
    log = parse_log(
        own + "\nINFO: [./litert/tools/benchmark_litert_model.h:119] Peak memory:          12.75 MB\n"
    )
    found = log.latency
    assert (found.mean, found.min, found.max, found.std) == pytest.approx((460, 440, 980, 10))
    assert found.runs == 2112 and found.median is None and found.p95 is None
    assert (log.init_us, log.first_us) == pytest.approx((4480, 1030))
    assert log.peak_memory_bytes == round(12.75 * 2**20)


def test_unknown_flags():
    # Recorded (published by a user): an old build that was asked for half precision.
    assert parse_log("STARTING!\nUnconsumed cmdline flags: --allow_fp16\n").unknown_flags == ("allow_fp16",)
    assert parse_log("WARN: Unconsumed cmdline flags: --a_b=x/--c --d=1").unknown_flags == ("a_b", "d")


def test_degenerate_counts():
    one = parse_log("count=1 curr=812").latency
    assert (one.runs, one.mean, one.median, one.std) == (1, 812, 812, None)
    same = parse_log("INFO: count=7 curr=15(all same)").latency
    assert (same.runs, same.min, same.max, same.p95, same.std) == (7, 15, 15, 15, 0)
    assert parse_log("count=0").latency is None
    assert parse_log("nothing of interest").latency is None


def test_coverage():
    log = parse_log(
        "VERBOSE: Replacing 29 out of 31 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 2 partitions for "
        "subgraph 0.\nINFO: Though GPU delegate is explicitly applied, the model graph will not be executed by the "
        "delegate.\n"
    )
    assert log.replaced_nodes == (("TfLiteXNNPackDelegate", 29, 31, 2),)
    assert log.delegates == (("GPU", "not"),)
    old = parse_log("Replacing 3 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions.")
    assert old.replaced_nodes == (("TfLiteGpuDelegateV2", 3, None, 1),)


# Recorded (published by a user): commas in the first column, and none in the last.
RECORDED_CSV = """\
============================== Run Order ==============================
node type,first,avg_ms,%,cdf%,mem KB,times called,name
Convolution (NHWC, F32) IGEMM,0.16,0.1999,11.4405%,11.4405%,0,1,Delegate/Convolution (NHWC\t F32) IGEMM:0
HardSwish (NC),0.016,0.0656,3.75436%,15.1949%,0,1,Delegate/HardSwish (NC):1
Convolution (NHWC, F32) DWConv,0.013,0.0408,2.33503%,17.5299%,0,1,Delegate/Convolution (NHWC\t F32) DWConv:2
Sum (ND) Reduce,0.016,0.0148,0.847021%,18.3769%,0,1,Delegate/Sum (ND) Reduce:3

============================== Top by Computation Time ==============================
node type,first,avg_ms,%,cdf%,mem KB,times called,name
Convolution (NHWC, F32) IGEMM,0.16,0.1999,11.4405%,11.4405%,0,1,Delegate/Convolution (NHWC\t F32) IGEMM:0

Number of nodes executed: 4
"""


def test_recorded_operator_csv():
    ops = parse_operator_table(RECORDED_CSV)
    assert [op.name for op in ops] == [
        "Convolution (NHWC, F32) IGEMM",
        "HardSwish (NC)",
        "Convolution (NHWC, F32) DWConv",
        "Sum (ND) Reduce",
    ]
    assert ops[0].mean_us == pytest.approx(199.9)
    total = 0.1999 + 0.0656 + 0.0408 + 0.0148
    assert ops[0].share == pytest.approx(0.1999 / total)


def test_columns_are_found_by_header_and_not_by_number():
    with_start = (
        "node type, start, first, avg ms, %, cdf%, mem KB, times called, name\n"
        "CONV_2D, 0.000, 9.9, 4.2, 70%, 70%, 0, 2, conv1\n"
        "CONV_2D, 4.200, 9.9, 1.3, 20%, 90%, 0, 1, conv2\n"
        "SOFTMAX, 5.500, 9.9, 0.5, 10%, 100%, 0, 1, softmax\n"
    )
    conv, softmax = parse_operator_table(with_start)
    assert (conv.name, conv.mean_us, conv.calls) == ("CONV_2D", pytest.approx(5500), 3)
    assert (softmax.mean_us, softmax.share) == (pytest.approx(500), pytest.approx(0.5 / 6))


def test_the_table_on_the_screen():
    # The text table of older builds: tab-separated cells and headers in brackets; warm-up first, then the regular runs.
    screen = (
        "Profiling Info for Benchmark Initialization:\n"
        "\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"
        "\t         AllocateTensors\t    9.000\t    9.000\t 100.0%\t 100.0%\t 0.000\t 1\tAllocateTensors/0\n"
        "\n"
        "Operator-wise Profiling Info for Regular Benchmark Runs:\n"
        "============================== Run Order ==============================\n"
        "\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]\n"
        "\t                 CONV_2D\t    4.269\t    4.000\t  80.0%\t  80.0%\t 0.000\t 1\t[relu1]:0\n"
        "\t                 SOFTMAX\t    1.269\t    1.000\t  20.0%\t 100.0%\t 0.000\t 1\t[prob]:1\n"
        "\n"
    )
    conv, softmax = parse_operator_table(screen)
    assert (conv.name, conv.mean_us, softmax.mean_us) == ("CONV_2D", pytest.approx(4000), pytest.approx(1000))


def test_no_table():
    assert parse_operator_table("node type,first,avg_ms,%,cdf%\n") is None
    assert parse_operator_table("") is None
