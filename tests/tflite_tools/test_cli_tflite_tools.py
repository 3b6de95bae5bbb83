"""The command line: what it prints, and that bad input ends in one line and exit status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_models

from tflite_tools import Report, Stage
from tflite_tools.cli import main


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.tflite"
    # Class k is the largest where feature k is: the right answers are known without any reference.
    path.write_bytes(tiny_models.dense_float(units=4, features=4, weights=np.eye(4)))
    return path


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_inspect_as_text_and_json(capsys, model):
    status, out, err = run(capsys, "inspect", f"--model={model}")
    assert (status, err) == (0, "") and "FULLY_CONNECTED" in out
    status, out, _ = run(capsys, "inspect", f"--model={model}", "--json")
    assert status == 0 and json.loads(out)["macs"] == 16


def test_benchmark_as_json(capsys, model):
    status, out, _ = run(
        capsys, "benchmark", f"--model={model}", "--num_runs=10", "--time_limit_s=0.5", "--json"
    )
    found = json.loads(out)
    assert status == 0 and found["target"] == "host" and found["latency_us"]["median"] > 0
    assert found["arena_bytes"] is None


def test_evaluate(capsys, model, tmp_path):
    # Three of four labels agree with the largest feature.
    np.savez(tmp_path / "d.npz", x=np.eye(4, dtype=np.float32), y=np.array([0, 1, 2, 0]))
    status, out, _ = run(capsys, "evaluate", f"--model={model}", f"--data={tmp_path / 'd.npz'}", "--json")
    assert status == 0 and json.loads(out)["accuracy"] == 0.75


def test_compare(capsys, model, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.eye(4, dtype=np.float32))
    arguments = (
        "compare",
        f"--model={model}",
        f"--reference={model}",
        f"--data={tmp_path / 'd.npz'}",
        "--json",
    )
    status, out, _ = run(capsys, *arguments)
    assert status == 0 and json.loads(out)["outputs"][0]["max_error"] == 0
    status, out, _ = run(capsys, *arguments, "--layers", f"--plot={tmp_path / 'layers.png'}")
    assert status == 0 and json.loads(out)["layers"][-1]["relative_error"] == 0
    assert (tmp_path / "layers.png").exists()


def test_c_array(capsys, model, tmp_path):
    status, out, _ = run(
        capsys, "c_array", f"--model={model}", f"--output_dir={tmp_path / 'c'}", "--name=net"
    )
    assert status == 0 and (tmp_path / "c" / "net.h").exists() and "net.cc" in out


def test_report(capsys, tmp_path):
    Report("t", (Stage("a", 0.5, size_bytes=10), Stage("b", 0.6, size_bytes=20))).write_json(
        tmp_path / "r.json"
    )
    arguments = ["report", f"--input={tmp_path / 'r.json'}", f"--html={tmp_path / 'r.html'}", "--title=New"]
    status, out, _ = run(
        capsys, *arguments, f"--markdown={tmp_path / 'r.md'}", f"--plots={tmp_path / 'plots'}"
    )
    assert status == 0 and out.startswith("New\n")
    assert "<h1>New</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (tmp_path / "r.md").read_text(encoding="utf-8").startswith("# New")
    assert (tmp_path / "plots" / "accuracy_bytes.png").exists()


def test_report_of_models(capsys, model, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.eye(4, dtype=np.float32), y=np.array([0, 1, 2, 0]))
    data = f"--data={tmp_path / 'd.npz'}"
    status, out, err = run(capsys, "report", f"--models={model}", data, "--json")
    (stage,) = json.loads(out)["stages"]
    assert status == 0 and (stage["name"], stage["accuracy"], stage["macs"]) == ("m", 0.75, 16)
    assert err == "measuring m ...\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inpsect"], "Did you mean 'inspect'?"),
        (["inspect"], "--model is missing."),
        (["evaluate", "--json"], "--model and --data are missing."),
        (["inspect", "--model=nothing.tflite"], "No such file"),
        (["inspect", "--model={tmp}"], "s a directory"),
        (["inspect", "--model={text}"], "Not a .tflite file"),
        (["inspect", "--model={truncated}"], "Broken .tflite file"),
        (["inspect", "--model={model}", "--wrong=1"], "Unknown command line flag 'wrong'"),
        (["inspect", "{model}"], "arguments are written as --name=value"),
        (["benchmark", "--model={model}", "--num_runs=0"], "num_runs must be 1 or more, got 0"),
        (["benchmark", "--model={model}", "--num_runs=many"], "--num_runs=many"),
        (["benchmark", "--model={model}", "--target=moon"], "target must be one of"),
        (["benchmark", "--model={text}"], "Not a .tflite file"),
        (["evaluate", "--model={model}", "--data={text}"], "is no .npz file"),
        (["evaluate", "--model={model}", "--data=none.npz"], "there is no file none.npz"),
        (["evaluate", "--model={model}", "--data={noise}"], "but no array 'x'"),
        (["evaluate", "--model={truncated}", "--data={data}"], "."),
        (["evaluate", "--model={model}", "--data={wrong_shape}"], "x"),
        (
            ["compare", "--model={model}", "--reference=no.keras", "--data={data}"],
            "there is no file no.keras",
        ),
        (["convert", "--model=no.keras", "--output=o.tflite"], "there is no file no.keras"),
        (["convert", "--model={model}", "--output=o.tflite", "--quantization=int9"], "int9"),
        (["c_array", "--model={model}", "--name=9lives", "--output_dir={tmp}"], "C identifier"),
        (["report", "--input={text}"], "is no JSON"),
        (["report"], "--input or --models is missing."),
        (["report", "--models={text}"], "Not a .tflite file"),
    ],
)
def test_bad_input_ends_in_one_line_and_status_2(capsys, model, tmp_path, arguments, says):
    files = {
        "tmp": tmp_path,
        "model": model,
        "text": tmp_path / "text",
        "truncated": tmp_path / "truncated.tflite",
        "data": tmp_path / "data.npz",
        "noise": tmp_path / "noise.npz",
        "wrong_shape": tmp_path / "wrong.npz",
    }
    files["text"].write_text("hello, this is a text and not a model")
    files["truncated"].write_bytes(model.read_bytes()[:300])
    np.savez(files["data"], x=np.eye(4, dtype=np.float32), y=np.arange(4))
    np.savez(files["noise"], z=np.zeros(3))
    np.savez(files["wrong_shape"], x=np.zeros([2, 7], np.float32), y=np.arange(2))
    status, out, err = run(capsys, *(argument.format(**files) for argument in arguments))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("python -m tflite_tools: ") and says in err
    assert "Traceback" not in err


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and all(
        name in out for name in ("convert", "inspect", "evaluate", "compare", "c_array")
    )
    assert run(capsys)[0] == 2
    status, out, _ = run(capsys, "benchmark", "--help")
    assert status == 0 and "--num_runs=..." in out and "flagfile" not in out


def test_as_a_program(model):
    command = [sys.executable, "-m", "tflite_tools"]
    done = subprocess.run([*command, "inspect", f"--model={model}", "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["quantization_scheme"] == "float32"
    done = subprocess.run([*command, "inspect", "--model=/dev/null"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
