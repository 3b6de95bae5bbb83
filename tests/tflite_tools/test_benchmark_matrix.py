"""The matrix: cells, failures among them, its JSON, its report, and the comparison of two runs."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_models
from test_benchmark_micro import two_dense

from tflite_tools.benchmarking.matrix import Matrix, benchmark_matrix, changes, compare_matrices
from tflite_tools.cli import main
from tflite_tools.report import read_report

QUICK = {"num_runs": 5, "warmup_runs": 0, "interval": None, "time_limit_s": 2.0}


@pytest.fixture(scope="module")
def found():
    models = {"dense": two_dense(), "custom": tiny_models.conv_int8()}
    return benchmark_matrix(models, threads=(1, 2), delegates=("none", "xnnpack"), **QUICK)


def test_every_combination_once_and_failures_in_their_cells(found):
    assert [(c.model, c.num_threads, c.delegate) for c in found.cells] == [
        (model, threads, delegate)
        for model in ("dense", "custom")
        for threads in (1, 2)
        for delegate in ("none", "xnnpack")
    ]
    good, bad = found.cells[:4], found.cells[4:]
    assert all(cell.latency_us > 0 and cell.error is None for cell in good)
    assert [cell.result.settings["use_xnnpack"] for cell in good] == [False, True, False, True]
    assert [cell.result.settings["num_threads"] for cell in good] == [1, 1, 2, 2]
    assert all(cell.result is None and "MyDecoder" in cell.error for cell in bad)
    text = str(found)
    assert "none x1" in text and "xnnpack x2" in text and text.count("  failed") == 4


def test_json_report_and_plot(found, tmp_path):
    assert Matrix.from_dict(json.loads(found.to_json())) == found
    report = read_report(found.to_report("T").write_json(tmp_path / "r.json"))
    assert [stage.latency_us for stage in report.stages] == [cell.latency_us for cell in found.cells]
    assert "MyDecoder" in str(report)
    pytest.importorskip("matplotlib")
    assert "dense" in found.write_plot(tmp_path / "p.svg").read_text(encoding="utf-8")


def test_comparing_two_runs(found):
    (first, *_) = found.cells
    latency = dataclasses.replace(first.result.latency_us, median=100.0)
    before = Matrix(
        "host", (dataclasses.replace(first, result=dataclasses.replace(first.result, latency_us=latency)),)
    )
    slower = dataclasses.replace(latency, median=125.0)
    after = Matrix(
        "host", (dataclasses.replace(first, result=dataclasses.replace(first.result, latency_us=slower)),)
    )
    text = compare_matrices(before, after)
    assert "+25.0 %" in text and "Not the same" not in text and "not the same" not in text
    # One cell against eight; those that are in one run only, or failed, have no change.
    rows = {change.cell: change for change in changes(before, found)}
    assert list(rows) == [cell.key for cell in found.cells]
    assert rows[first.key].same_file is True and all(
        change.percent is None for key, change in rows.items() if key != first.key
    )


def test_what_else_differs_between_two_runs_is_told(found):
    def other(cell):
        if cell.result is None:
            return cell
        result = dataclasses.replace(cell.result, device="Another", artifact_sha256="0" * 64)
        return dataclasses.replace(cell, result=result)

    text = compare_matrices(found, Matrix("host", tuple(map(other, found.cells))))
    assert f"Not the same device: {found.cells[0].result.device} before, Another after." in text
    assert text.count("not the same file") == 4


def test_all_bad_arguments_at_once():
    with pytest.raises(ValueError) as caught:
        benchmark_matrix({}, "host", threads=(), delegates=("gpu", "xnnpak"))
    for part in ("models is empty", "threads is empty", "got 'gpu'", "Did you mean 'xnnpack'"):
        assert part in str(caught.value)


def test_the_command(tmp_path, capsys):
    for name, dtype in (("a", np.float32), ("b", np.int8)):
        (tmp_path / f"{name}.tflite").write_bytes(two_dense(dtype))
    common = ["matrix", f"--models={tmp_path}/a.tflite,{tmp_path}/b.tflite", "--threads=1", "--num_runs=5"]
    common += ["--time_limit_s=0.3", f"--output={tmp_path}/m.json"]
    assert main([*common, f"--report={tmp_path}/r.json"]) == 0
    assert "xnnpack x1" in capsys.readouterr().out
    assert main([*common, f"--compare={tmp_path}/m.json"]) == 0
    assert "change" in capsys.readouterr().out
    assert main([*common, f"--compare={tmp_path}/m.json", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert [change["same_file"] for change in comparison] == [True, True]
    assert main(["report", f"--input={tmp_path}/r.json"]) == 0
    assert "a, 1 thread, xnnpack" in capsys.readouterr().out
    assert main([*common, "--use_gpu"]) == 2
    assert "--delegates" in capsys.readouterr().err
    assert main([*common, "--threads=many"]) == 2
    assert main(["matrix", "--threads=1"]) == 2


def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "a.tflite").write_bytes(two_dense())
    pytest.importorskip("matplotlib")
    command = ["matrix", f"--models={tmp_path}/a.tflite", f"--output={tmp_path}/a.tflite/m.json"]
    assert main([*command, f"--report={tmp_path}", f"--plot={tmp_path}/p.xyz"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    for part in (
        "there can be no folder",
        "(--output)",
        "is a folder (--report)",
        "ends in .png, .svg or .pdf",
    ):
        assert part in said
    (tmp_path / "custom.tflite").write_bytes(tiny_models.conv_int8())
    command = ["matrix", f"--models={tmp_path}/custom.tflite", f"--output={tmp_path}/new/m.json"]
    assert main(command) == 2  # nothing was measured, and why is kept
    assert "MyDecoder" in capsys.readouterr().err and (tmp_path / "new" / "m.json").exists()
