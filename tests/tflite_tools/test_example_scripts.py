"""The scripts that evaluate other people's files, run as a reader would run them."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
SAMPLE = "ad01_sample_normal_id_01_00000000_hist_librosa.bin"


def run(script, *arguments):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_anomaly_detector(shared_data, tmp_path):
    folder = shared_data / "mlperf_tiny"
    names = ("ad01_fp32", "ad01_dynamic_range", "ad01_int8", "ad01_fullint_floatio")
    files = [folder / f"{name}.tflite" for name in names]
    normal = np.fromfile(folder / SAMPLE, "<f4").reshape(-1, 640)
    printed = run("evaluate_anomaly_detector.py", f"--sample={folder / SAMPLE}", *files)
    errors = dict(re.findall(r"^(\w+)\.tflite +[\d,]+ +([\d.]+) +–$", printed, re.MULTILINE))
    assert f"{len(normal)} windows" in printed and set(errors) == set(names)
    # The same machine, recorded once, as four files reconstruct it.
    assert float(errors["ad01_int8"]) == pytest.approx(float(errors["ad01_fp32"]), rel=0.25)
    # A sound that no machine makes: the same energies from high to low. Every file must call it the stranger one.
    strange = normal.reshape(-1, 5, 128)[:, :, ::-1].reshape(-1, 640)
    np.concatenate([normal, strange]).astype("<f4").tofile(tmp_path / "both.bin")
    np.savetxt(tmp_path / "labels", [0] * len(normal) + [1] * len(strange), fmt="%d")
    printed = run(
        "evaluate_anomaly_detector.py",
        f"--sample={tmp_path / 'both.bin'}",
        f"--labels={tmp_path / 'labels'}",
        *files,
    )
    areas = re.findall(r"([\d.]+)$", printed, re.MULTILINE)
    assert len(areas) == 4 and all(float(area) > 0.95 for area in areas), printed


def test_resnet8_on_a_part_of_its_images(shared_data):
    pytest.importorskip("PIL")
    folder = shared_data / "mlperf_tiny"
    printed = run(
        "evaluate_resnet8.py",
        f"--float_model={folder / 'pretrainedResnet.tflite'}",
        f"--int8_model={folder / 'pretrainedResnet_quant.tflite'}",
        f"--images={shared_data / 'cifar10_jpeg' / 'test.tar.xz'}",
        "--limit=400",
    )
    measured = [float(value) for value in re.findall(r"^accuracy +([\d.]+)$", printed, re.MULTILINE)]
    # 75.5 and 75.4 % of all 10,000; of 400 the standard deviation is 2.2 points, and 7 are three of them.
    assert len(measured) == 2 and all(abs(value - 0.755) < 0.07 for value in measured), printed
    assert "airplane" in printed and "CONV_2D" in printed  # classes by name; errors layer by layer
