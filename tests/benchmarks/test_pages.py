"""The pages with tables say what the committed results say."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["compression", "distributed", "teacher_cache"])
def test_a_page_is_made_of_the_results(script):
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}_tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_teachers_gains_are_taken_seed_by_seed():
    from benchmarks import compression_tables

    entries = {
        "labels/labels/0": {"accuracy": 0.80, "agreement": 0.99},
        "labels/labels/1": {"accuracy": 0.90, "agreement": 1.0},
        "labels/chosen/1": {"accuracy": 0.92, "agreement": 1.0},
    }
    table = compression_tables.with_teacher(entries)
    # Only seed 1 has both: 92 against 90, not against the mean of 85.
    assert "+2.00" in table and "85.00" in table


def test_hours_and_bytes_follow_from_the_measured_rates(tmp_path, monkeypatch):
    from benchmarks import teacher_cache_tables

    entries = {
        "build/medium": {"macs_per_s": 41e9, "teacher_macs": 2},  # ten images of 4.1 G a second
        "build/small": {"macs_per_s": 1e9, "teacher_macs": 1},
        "size/1000000/1000": {"build_us_per_example": 36.0, "bytes_by_payload": 1.0},
        "size/10000/21841": {"build_us_per_example": 360.0},
    }
    monkeypatch.setattr(teacher_cache_tables, "read", lambda name: {"entries": entries})
    first = teacher_cache_tables.imagenet().splitlines()[2]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    # 1,281,167 images in 10 views: 84 bytes or 2,000; at 36 µs, at 2,000/s, at 10/s.
    assert cells == ["ImageNet-1k, 1,281,167 images", "10", "1.1 GB", "25.6 GB", "0.13", "2", "356"]
