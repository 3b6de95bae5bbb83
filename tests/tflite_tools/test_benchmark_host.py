"""The host benchmark: its statistics on made-up times, and a real run in a child process."""

import dataclasses
import importlib.metadata
import json
import math

import numpy as np
import pytest
import tiny_models

from tflite_tools import BenchmarkResult, TFLiteArtifact, benchmark
from tflite_tools.benchmarking import host, operator_profile
from tflite_tools.benchmarking.operator_profile import parse_summary, with_closed_sizes
from tflite_tools.benchmarking.result import DelegateShare, Latency, OperatorTime
from tflite_tools.benchmarking.statistics import median_interval, noise_warnings, relative_interval, summarize
from tflite_tools.errors import InvalidModelError, ModelCrashError, UnsupportedModelError
from tflite_tools.schema import parse


def test_the_figures_by_hand():
    found = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    # Sample standard deviation of 1..5: sqrt(10 / 4).
    assert (found.min, found.mean, found.median, found.max, found.runs) == (1.0, 3.0, 3.0, 5.0, 5)
    assert found.std == pytest.approx(math.sqrt(2.5))
    assert found.p95 == pytest.approx(4.8)  # linear between ranks, as NumPy and litert-benchmark do
    assert (found.outliers, found.median_low, found.median_high) == (0, None, None)


def test_one_run_has_no_deviation():
    assert summarize([7.0]).std is None
    with pytest.raises(ValueError, match="empty"):
        summarize([])


def test_outliers_are_counted_and_kept():
    found = summarize([10.0] * 20 + [11.0] * 20 + [500.0, 600.0])
    assert found.outliers == 2
    assert found.max == 600.0


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    # A skewed distribution like that of latencies, whose median is known: exp(0) = 1.
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = median_interval(rng.lognormal(0.0, 0.5, 50))
        hits += low <= 1.0 <= high
    # At least 95 % by construction; 2000 draws of a true 95 % fall below 94 % once in 50 seeds.
    assert hits / 2000 >= 0.94
    assert hits / 2000 <= 0.99  # and not by being needlessly wide


def test_more_runs_make_the_interval_narrower():
    rng = np.random.default_rng(1)
    times = 100 + rng.exponential(10.0, 4000)
    assert relative_interval(times) < relative_interval(times[:400]) < relative_interval(times[:40])
    assert relative_interval(times[:5]) == math.inf


def test_warnings_say_why():
    steady = [100.0 + 0.1 * (i % 7) for i in range(60)]
    assert noise_warnings(steady, summarize(steady), load=8.0, cores=2) == ()
    drifting = [100.0] * 30 + [120.0] * 30
    (text,) = noise_warnings(drifting, summarize(drifting), None, 2)
    assert "second half of the runs is +20 %" in text
    tail = [100.0] * 50 + [300.0] * 10
    (text,) = noise_warnings(tail, summarize(tail), load=8.0, cores=2)
    assert "1 run in 20 takes over 3.00 times the median" in text
    assert "load 8.0 on 2 cores" in text


@pytest.fixture(scope="module")
def result():
    return benchmark(TFLiteArtifact(tiny_models.dense_float()), num_runs=30, time_limit_s=2.0, seed=3)


def test_a_real_run(result):
    latency = result.latency_us
    assert 0 < latency.min <= latency.median <= latency.p95 <= latency.max
    assert latency.median_low <= latency.median <= latency.median_high
    assert latency.runs >= 30
    assert result.init_us > 0 and result.first_us > 0
    assert result.arena_bytes is None and result.ops is None
    assert (result.target, result.kind) == ("host", "measured")
    assert result.artifact_sha256 == TFLiteArtifact(tiny_models.dense_float()).sha256
    assert "ai-edge-litert" in result.runtime and "XNNPACK on" in result.runtime
    assert result.settings["num_runs"] == 30
    # Every operator of this file has an XNNPACK kernel.
    assert result.delegates == (DelegateShare("XNNPACK", 1, 1, 1),)


def test_it_is_frozen_and_comes_back_from_json(result):
    assert BenchmarkResult.from_dict(json.loads(result.to_json())) == result
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.init_us = 0


def test_it_prints_a_table(result):
    assert "host (measured)" in str(result)
    assert "XNNPACK runs 1 of 1 operators in 1 partition" in str(result)
    assert "arena        –" in str(result)


def test_what_was_not_measured_is_none():
    bare = BenchmarkResult("micro", "tflm", "board", "00", kind="estimated")
    assert bare.latency_us is None and bare.init_us is None and bare.peak_memory_bytes is None
    assert BenchmarkResult.from_dict(json.loads(bare.to_json())) == bare
    assert "micro (estimated)" in str(bare)
    with pytest.raises(ValueError, match="'measured' or 'estimated'"):
        BenchmarkResult("host", "r", "d", "00", kind="guessed")


def test_latency_reads_like_its_json():
    latency = Latency(median=3.0)
    assert latency["median"] == latency.median == 3.0
    with pytest.raises(KeyError):
        latency["mode"]


def test_operator_times_come_back_from_json():
    full = BenchmarkResult(
        "host", "r", "d", "00", Latency(median=1.0), ops=(OperatorTime("CONV", 1.5, 1.0, 2.0),)
    )
    assert BenchmarkResult.from_dict(json.loads(full.to_json())) == full
    assert "CONV" in str(full)


SUMMARY = """
=========================== Run Order ===========================
      [node type]  [start]  [first]  [avg ms]  [%]  [cdf%]  [mem KB]  [times called]  [Name]
      Delegate/Convolution (NHWC, QC8) IGEMM   0.000  0.005  0.004  75.000%  75.000%  0.000  10  [Delegate]:0
      SOFTMAX   0.002  0.001  0.000  25.000%  100.000%  0.000  10  [Builtin]:15

=========================== Top by Computation Time ===========================
      Delegate/Convolution (NHWC, QC8) IGEMM   0.000  0.005  0.004  75.000%  75.000%  0.000  10  [Delegate]:0

Timings (microseconds): count=2 curr=48
"""


def test_a_profile_summary_by_hand():
    # 48 microseconds in 10 runs, of which three quarters are the convolution's.
    convolution, softmax = parse_summary(SUMMARY, 10)
    assert (convolution.name, convolution.share, convolution.calls) == (
        "Convolution (NHWC, QC8) IGEMM #0",
        0.75,
        1.0,
    )
    assert convolution.mean_us == pytest.approx(3.6)
    assert (softmax.name, softmax.mean_us) == ("SOFTMAX #1", pytest.approx(1.2))
    assert parse_summary("something else altogether", 10) == ()


def test_a_real_operator_profile():
    found = benchmark(
        tiny_models.dense_float(256, 256), num_runs=20, interval=None, op_profile=True, num_threads=2
    )
    if importlib.metadata.version("ai-edge-litert") not in operator_profile.TESTED_VERSIONS:
        assert found.ops is None and any("No operator profile" in warning for warning in found.warnings)
        return
    assert found.ops and any("Fully Connected" in op.name for op in found.ops)
    # The percentages are printed with three digits.
    assert sum(op.share for op in found.ops) == pytest.approx(1.0, abs=1e-4)
    assert any("measured with one thread" in warning for warning in found.warnings)


def test_open_sizes_are_closed_for_the_profiler():
    b = tiny_models.Builder()
    x, y = b.tensor([1, 4]), b.tensor([1, 4])
    b.op("RELU", [x], [y])
    b.ends([x], [y])
    closed = b.pack()
    assert with_closed_sizes(closed) == (closed, False)
    b.graph.tensors[x].shapeSignature = [-1, 4]
    opened = b.pack()
    content, found = with_closed_sizes(opened)
    assert found and len(content) == len(opened)
    assert parse(opened).subgraphs[0].tensors[x].shape_signature == (-1, 4)
    assert parse(content).subgraphs[0].tensors[x].shape_signature == (1, 4)


def test_other_versions_get_no_profile_and_a_reason(monkeypatch):
    monkeypatch.setattr(operator_profile.importlib.metadata, "version", lambda name: "9.9.9")
    ops, (reason,) = operator_profile.operator_profile(b"", num_runs=1, num_threads=1, use_xnnpack=True)
    assert ops is None and "9.9.9 is installed" in reason


def test_exact_number_of_runs_and_no_xnnpack():
    found = benchmark(tiny_models.dense_float(), num_runs=12, interval=None, use_xnnpack=False)
    assert found.latency_us.runs == 12
    assert "XNNPACK off" in found.runtime
    assert found.delegates == ()


def test_the_time_limit_ends_it():
    found = benchmark(tiny_models.dense_float(), num_runs=100_000_000, time_limit_s=0.2)
    assert 0 < found.latency_us.runs < 100_000_000
    assert any("time limit of 0.2 s ended the benchmark" in warning for warning in found.warnings)


def test_all_bad_arguments_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        benchmark(b"", num_threads=0, num_runs=0, warmup_runs=-1, interval=2.0, time_limit_s=0)
    for name in ("num_threads", "num_runs", "warmup_runs", "interval", "time_limit_s"):
        assert name in str(caught.value)


def test_targets():
    with pytest.raises(ValueError, match=r"got 'hots'. Did you mean 'host'\?"):
        benchmark(b"", target="hots")


def test_a_broken_file_is_refused_before_a_process_is_started():
    with pytest.raises(InvalidModelError):
        benchmark(tiny_models.dense_float()[:200])


def test_a_custom_operator_is_named():
    with pytest.raises(UnsupportedModelError, match="MyDecoder"):
        benchmark(tiny_models.conv_int8())


def test_a_child_that_dies_or_hangs_leaves_this_process_alone(tmp_path, monkeypatch):
    # Which files abort the runtime differs from version to version, so stand-ins for the worker do it.
    (tmp_path / "aborting_worker.py").write_text("import os\nos.abort()\n")
    (tmp_path / "hanging_worker.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelCrashError, match="killed by SIGABRT while running the file") as caught:
        host.run_child("aborting_worker", b"", {}, 1.0)
    assert caught.value.signal_name == "SIGABRT"
    monkeypatch.setattr(host, "_STARTUP_LIMIT_S", 0.2)
    with pytest.raises(ModelCrashError, match=r"still busy after 0.4 s and was stopped"):
        host.run_child("hanging_worker", b"", {}, 0.2)


def test_real_files_run_or_say_why_not(shared_data):
    zoo = shared_data / "tflite_zoo"
    strings = benchmark(
        zoo / "tfls_test_model_nl_classifier_with_regex_tokenizer.tflite", num_runs=6, interval=None
    )
    assert strings.latency_us.runs == 6
    partly = benchmark(zoo / "tfls_mobilenet_v1_0.25_224_quant.tflite", num_runs=6, interval=None)
    (share,) = partly.delegates
    assert share.total == 31 and 0 < share.operators <= 31
    assert share.operators + sum(share.left.values()) == share.total
    with pytest.raises(UnsupportedModelError, match="Edge TPU"):
        benchmark(zoo / "coral_split_concat_edgetpu.tflite")
    with pytest.raises(UnsupportedModelError, match="Flex"):
        benchmark(zoo / "tfls_whitespace_tokenizer_flex_delegate.tflite")
