"""Target "micro": TFLite Micro's own kernels, the exact arena, budgets, and refusals before anything runs."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
from ai_edge_litert import schema_py_generated as schema

from tflite_tools import BenchmarkResult, benchmark
from tflite_tools.benchmarking import micro, micro_support, vela
from tflite_tools.benchmarking.boards import BOARDS, find_board
from tflite_tools.benchmarking.memory_timeline import layer_costs, write_memory_picture
from tflite_tools.benchmarking.micro_worker import parse_allocations, random_feeds, smallest
from tflite_tools.cli import main
from tflite_tools.errors import InvalidModelError, UnsupportedModelError

needs_tflm = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None, reason="tflite-micro is not installed (extra 'micro')"
)
needs_vela = pytest.mark.skipif(
    importlib.util.find_spec("ethosu") is None, reason="ethos-u-vela is not installed (extra 'micro')"
)


def two_dense(dtype=np.float32):
    """x[8] -> h[16] -> y[4], two FULLY_CONNECTED."""
    quantized = {"scales": [0.1], "zero_points": [0]} if dtype == np.int8 else {}
    bias = {"scales": [0.01], "zero_points": [0]} if dtype == np.int8 else {}
    b = tiny_models.Builder()
    rng = np.random.default_rng(0)
    x = b.tensor([1, 8], dtype, name="x", **quantized)
    previous, width = x, 8
    for units in (16, 4):
        values = rng.integers(-5, 5, [units, width])
        w = b.tensor([units, width], dtype, values, **quantized)
        c = b.tensor([units], np.int32 if dtype == np.int8 else dtype, np.ones(units), **bias)
        y = b.tensor([1, units], dtype, **quantized)
        b.op(
            "FULLY_CONNECTED",
            [previous, w, c],
            [y],
            options=schema.FullyConnectedOptionsT(),
            options_type=schema.BuiltinOptions.FullyConnectedOptions,
        )
        previous, width = y, units
    b.ends([x], [previous])
    return b.pack()


# --- what the file alone shows ---


def hybrid():
    b = tiny_models.Builder()
    x = b.tensor([1, 4], name="x")
    w = b.tensor([3, 4], np.int8, np.ones([3, 4]), scales=[0.1])
    y = b.tensor([1, 3])
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    b.ends([x], [y])
    return b.pack()


def halves():
    b = tiny_models.Builder()
    x = b.tensor([1, 4], name="x")
    w16 = b.tensor([3, 4], np.float16, np.ones([3, 4]))
    w = b.tensor([3, 4])
    y = b.tensor([1, 3])
    b.op("DEQUANTIZE", [w16], [w])
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    b.ends([x], [y])
    return b.pack()


def one_op(name, dtype=np.float32, custom=None):
    b = tiny_models.Builder()
    x, y = b.tensor([1, 4], dtype, scales=[1.0]), b.tensor([1, 4], dtype, scales=[1.0])
    b.op(name, [x, x], [y], custom=custom)
    b.ends([x], [y])
    return b.pack()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (hybrid(), "dynamic range: FULLY_CONNECTED"),
        (halves(), r"its weights are float16 \(FULLY_CONNECTED\)"),
        (one_op("ADD", np.uint8), r"quantized to uint8 \(ADD\)"),
        (one_op("TOPK_V2"), "TFLite Micro has no kernel for TOPK_V2"),
        (one_op("", custom="FlexErf"), r"TensorFlow's own kernels \(FlexErf\)"),
        (one_op("", custom="MyDecoder"), "no kernel for MyDecoder"),
        (one_op("", custom="edgetpu-custom-op"), "Coral Edge TPU"),
    ],
)
def test_a_refusal_has_its_reason_before_anything_runs(content, says, monkeypatch):
    monkeypatch.setattr(micro, "run_child", lambda *_: pytest.fail("something was run"))
    with pytest.raises(UnsupportedModelError, match=says):
        benchmark(content, "micro")


def test_broken_bytes_are_refused():
    with pytest.raises(InvalidModelError):
        benchmark(b"no model at all", "micro")


def test_names_of_the_resolver():
    # As MicroMutableOpResolver declares them (tensorflow/lite/micro/micro_mutable_op_resolver.h).
    expected = {
        "ADD_N": "AddAddN",
        "ARG_MAX": "AddArgMax",
        "AVERAGE_POOL_2D": "AddAveragePool2D",
        "BATCH_MATMUL": "AddBatchMatMul",
        "CUMSUM": "AddCumSum",
        "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
        "FULLY_CONNECTED": "AddFullyConnected",
        "L2_POOL_2D": "AddL2Pool2D",
        "LEAKY_RELU": "AddLeakyRelu",
        "PADV2": "AddPadV2",
        "RELU6": "AddRelu6",
        "SPACE_TO_BATCH_ND": "AddSpaceToBatchNd",
        "SPLIT_V": "AddSplitV",
        "SVDF": "AddSvdf",
        "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
        "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    }
    assert {name: micro_support.resolver_call(name) for name in expected} == expected
    assert micro_support.resolver_call("TOPK_V2") is None


# Asks TFLite Micro for every builtin operator of the schema, each in a process of its own.
_ASK = """
import os, sys
import tiny_models
from ai_edge_litert import schema_py_generated as schema
from tflite_micro import runtime
for name, code in vars(schema.BuiltinOperator).items():
    if not isinstance(code, int) or name == "CUSTOM":
        continue
    b = tiny_models.Builder()
    x, y = b.tensor([1, 4]), b.tensor([1, 4])
    b.op(name, [x], [y])
    b.ends([x], [y])
    content = b.pack()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        try:
            runtime.Interpreter.from_bytes(content, arena_size=100000)
        finally:
            os._exit(0)
    os.close(write)
    said = os.fdopen(read, "rb").read()
    os.waitpid(child, 0)
    if b"Didn't find op" not in said and b"Failed to get registration" not in said:
        print(name)
"""


@needs_tflm
def test_the_list_of_operators_is_that_of_the_installed_package():
    folder = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    assert set(done.stdout.split()) == set(micro_support.supported_operators())


# --- finding the arena ---


@pytest.mark.parametrize("needed", [1, 16, 17, 1504, 1936, 5000])
@pytest.mark.parametrize("start", [16, 1504, 1600, 4000])
def test_smallest_multiple_of_16(needed, start):
    assert smallest(lambda size: size >= needed, start) == -(-needed // 16) * 16


def test_smallest_tries_few_sizes():
    tried = []
    smallest(lambda size: tried.append(size) or size >= 24_272, 24_272)
    assert tried == [24_272, 24_256]


def test_reading_the_list_of_allocations():
    found = parse_allocations(
        "[RecordingMicroAllocator] Arena allocation total 1504 bytes\n"
        "[RecordingMicroAllocator] Arena allocation head 32 bytes\n"
        "[RecordingMicroAllocator] Arena allocation tail 1472 bytes\n"
        "[RecordingMicroAllocator] 'TfLiteEvalTensor data' used 240 bytes with alignment overhead (requested 240 "
        "bytes for 10 allocations)\n"
    )
    assert found == {"total": 1504, "head": 32, "tail": 1472, "parts": {"TfLiteEvalTensor data": 240}}
    with pytest.raises(RuntimeError, match="could not be read"):
        parse_allocations("something else")


def loads(content, arena):
    """Whether TFLite Micro runs the file in that arena; an oracle without our worker."""
    code = (
        "import sys; from tflite_micro import runtime\n"
        "runtime.Interpreter.from_bytes(sys.stdin.buffer.read(), arena_size=int(sys.argv[1])).invoke()"
    )
    command = [sys.executable, "-c", code, str(arena)]
    return subprocess.run(command, input=content, capture_output=True).returncode == 0


@needs_tflm
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_the_arena_is_exact(dtype):
    content = two_dense(dtype)
    result = benchmark(content, "micro", num_runs=10)
    assert loads(content, result.arena_bytes)
    assert not loads(content, result.arena_bytes - 16)
    details = result.micro
    assert details.activation_bytes + details.persistent_bytes == details.recorded_bytes
    assert 0 < sum(details.parts.values()) <= details.persistent_bytes
    assert (details.compared_runs, details.compared_values) == (10, 40)
    # Sums of 16 products in float; the order of addition may differ by the last bits, int8 by one step.
    assert details.largest_difference <= (1 if dtype == np.int8 else 1e-4)
    assert details.operators == ("FULLY_CONNECTED",) and details.resolver == ("AddFullyConnected",)
    # A time of this machine would say nothing about a microcontroller.
    assert result.latency_us is None and result.init_us is None
    assert BenchmarkResult.from_dict(json.loads(result.to_json())) == result
    assert "AddFullyConnected" in str(result) and "median" not in str(result)


@needs_tflm
def test_what_the_kernels_refuse_is_told_in_their_words():
    b = tiny_models.Builder()
    x, y = b.tensor([1, 4], np.int32), b.tensor([1, 4], np.int32)
    b.op("FLOOR_MOD", [x, x], [y])
    b.ends([x], [y])
    with pytest.raises(UnsupportedModelError, match="FLOOR_MOD"):
        benchmark(b.pack(), "micro")


@needs_tflm
def test_real_files(shared_data):
    folder = shared_data / "mlperf_tiny"
    result = benchmark(folder / "kws_ref_model.tflite", "micro", num_runs=20)
    content = (folder / "kws_ref_model.tflite").read_bytes()
    assert loads(content, result.arena_bytes) and not loads(content, result.arena_bytes - 16)
    assert result.micro.identical_outputs is True and result.micro.compared_values == 20 * 12
    lstm = benchmark(shared_data / "tflite_zoo" / "tflm_trained_lstm_int8.tflite", "micro", num_runs=5)
    assert lstm.micro.identical_outputs is True  # and keeps its state from run to run in both runtimes
    with pytest.raises(UnsupportedModelError, match="dynamic range"):
        benchmark(folder / "ad01_dynamic_range.tflite", "micro")


# --- does it fit ---


@needs_tflm
def test_a_budget_says_by_how_much_it_does_not_fit():
    content = two_dense()
    found = benchmark(content, "micro", num_runs=1, flash_bytes=1000, arena_bytes=500)
    budget = found.micro.budget
    assert not budget.fits
    assert budget.flash_left == 1000 - len(content)
    assert budget.arena_left == 500 - found.arena_bytes
    assert any("int8" in advice for advice in budget.advice)
    assert f"{len(content) - 1000:,} too few" in str(found)
    fits = benchmark(content, "micro", num_runs=1, board="arduino-nano-33-ble").micro.budget
    assert fits.fits and fits.flash_left == 1024 * 1024 - len(content) and not fits.advice


def test_boards_have_sources():
    for board in BOARDS.values():
        assert board.source.count("https://") >= 1
        assert 0 < board.largest_block_bytes <= board.ram_bytes < board.flash_bytes
    with pytest.raises(ValueError, match="Did you mean 'raspberry-pi-pico'"):
        find_board("rasberry-pi-pico")


def test_all_bad_arguments_at_once():
    with pytest.raises(ValueError) as caught:
        benchmark(
            two_dense(), "micro", num_threads=2, num_runs=0, flash_bytes=0, board="uno", npu="ethos-u99"
        )
    for part in (
        "num_threads must be 1",
        "num_runs must be 1",
        "flash_bytes",
        "board must be",
        "npu must be",
    ):
        assert part in str(caught.value)


# --- which layer sets the arena ---


def test_activations_by_hand():
    first, second = layer_costs(two_dense())
    # 8 inputs and 16 hidden floats live during the first operator, 16 and 4 during the second.
    assert (first.alive_bytes, second.alive_bytes) == (4 * 24, 4 * 20)
    assert (first.sets_peak, second.sets_peak) == (True, False)
    assert (first.macs, second.macs) == (8 * 16, 16 * 4)
    assert (first.parameter_bytes, second.parameter_bytes) == (4 * (128 + 16), 4 * (64 + 4))
    assert first.name == "FULLY_CONNECTED 1x16"


def test_the_picture_names_the_layer_of_the_peak(tmp_path):
    pytest.importorskip("matplotlib")
    path = write_memory_picture(two_dense(), tmp_path / "sub" / "peak.svg")
    # matplotlib writes the text of each label as a comment above its glyphs.
    assert "the peak of 96 is at operator 0, FULLY_CONNECTED 1x16" in path.read_text(encoding="utf-8")


def test_inputs_repeat():
    inputs = [{"dtype": "int8", "shape": [3]}, {"dtype": "int64", "shape": [2]}]
    first, again = (list(random_feeds(inputs, 7, 3)) for _ in range(2))
    assert len(first) == 3 and all(np.array_equal(a, b) for f, g in zip(first, again) for a, b in zip(f, g))
    assert all(np.array_equal(feed[1], [0, 0]) for feed in first)


# --- Ethos-U by estimate ---

_ROW = {
    "system_config": "Ethos_U55_High_End_Embedded",
    "memory_mode": "Shared_Sram",
    "core_clock": "500000000.0",
    "inference_time": "0.0001798",
    "sram_memory_used": "21.671875",
    "off_chip_flash_memory_used": "30.375",
    "on_chip_flash_memory_used": "0.0",
    "cycles_total": "89900",
}


@needs_vela
def test_reading_the_summary():
    said = (
        "Warning (supported operators) operator: SIN, ofm: 'y'\nReason: Unsupported opType\n\n"
        "CPU operators = 1 (50.0%)\nNPU operators = 1 (50.0%)\n"
    )
    found = vela.read_summary(_ROW, "ethos-u55-128", said)
    assert (found.cycles, found.inference_us, found.sram_bytes) == (89_900, pytest.approx(179.8), 22_192)
    assert (found.npu_operators, found.cpu_operators) == (1, 1)
    assert found.cpu_reasons == ("SIN: Unsupported opType",)
    assert found.kind == "estimated" and "not measured" in str(found)
    with pytest.raises(UnsupportedModelError, match="puts no operator of this file on ethos-u55-128"):
        vela.read_summary({**_ROW, "cycles_total": "0"}, "ethos-u55-128", said)


@needs_vela
def test_vela_itself():
    found = vela.estimate_npu(two_dense(np.int8), "ethos-u55-128")
    assert found.cycles > 0 and found.inference_us > 0 and found.cpu_operators == 0
    with pytest.raises(UnsupportedModelError, match="nothing to estimate"):
        vela.estimate_npu(two_dense(np.float32), "ethos-u55-128")


# --- the command ---


@needs_tflm
@needs_vela
def test_the_command(tmp_path, capsys):
    path = tmp_path / "m.tflite"
    path.write_bytes(two_dense(np.int8))
    common = ["benchmark", f"--model={path}", "--target=micro"]
    assert main([*common, "--board=arduino-zero", "--npu=ethos-u55-64", "--num_runs=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["micro"]["budget"]["fits"] is True and found["micro"]["npu"]["kind"] == "estimated"
    assert found["latency_us"] is None
    assert main([*common, f"--picture={tmp_path}/peak.xyz"]) == 2
    out, error = capsys.readouterr()
    assert not out and ".png, .svg or .pdf" in error
    assert main([*common, "--num_threads=4"]) == 2
    assert "num_threads must be 1" in capsys.readouterr().err
    assert main(["benchmark", f"--model={path}", "--board=arduino-zero", "--npu=ethos-u55-64"]) == 2
    error = capsys.readouterr().err
    assert "--board belongs to --target=micro; --npu belongs to --target=micro; --target is host" in error
