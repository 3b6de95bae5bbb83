"""The coverage table: one small row in full, what counts as passed, and the page that shows it."""

import json
import pathlib
import subprocess
import sys

from benchmarks import coverage_table, stored

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSED = {
    "family": "A",
    "failed_at": None,
    "parity": 1e-6,
    "sparsity": 0.5,
    "qat": True,
    "int8": True,
    "int8_ends": True,
    "float_operators": {},
    "runs": True,
    "sqnr_db": 20.0,
    "bytes": 2048,
    "tfmot_prunes": True,
    "tfmot_quantizes": False,
}


def test_a_family_goes_all_the_way():
    command = [sys.executable, "-m", "benchmarks.coverage", "--one=MobileNet", "--notfmot"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-2000:]
    row = json.loads(lines[-1])
    assert row["failed_at"] is None, row["reason"]
    assert row["parity"] <= 1e-5
    assert abs(row["sparsity"] - 0.5) < 0.01
    assert row["int8"] and row["int8_ends"] and row["float_operators"] == {}
    assert row["sqnr_db"] >= coverage_table.SQNR_GOAL_DB


def test_the_last_line_counts_what_passed():
    failures = [
        {**PASSED, "parity": 2e-4},
        {**PASSED, "sparsity": 0.3},
        {**PASSED, "int8": False},
        {**PASSED, "int8_ends": False},
        {**PASSED, "sqnr_db": 14.9},
        {"family": "B", "failed_at": "bridge", "reason": "no rule for a layer"},
    ]
    text = coverage_table.table([PASSED, *failures])
    assert text.splitlines()[-1] == (
        "of 7: parity 5, pruned 5, QAT 6, int8 4, runs 6, SQNR >= 15 dB 5, TF-MOT prunes 6, TF-MOT quantizes 0"
    )
    assert "stopped at bridge: no rule for a layer" in text


def test_islands_are_named_and_float_operators_outside_of_them_too():
    row = {
        **PASSED,
        "islands": {
            "norm": "stays float: GroupNormalization has no integer kernel (96 bytes more than int8)"
        },
        "float_operators": {"MEAN": 2, "EXP": 1},
        "float_outside_islands": {"EXP": 1},
        "float_bytes": 128,
    }
    lines = coverage_table.table([row]).splitlines()
    assert lines[2:5] == [
        "    islands: 1 layers (GroupNormalization has no integer kernel), such as norm",
        "    float in the file (128 bytes): 1 EXP, 2 MEAN",
        "    of these in no named island: 1 EXP",
    ]


def test_the_page_shows_the_stored_rows():
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    entries = json.loads((stored.RESULTS / "coverage.json").read_text(encoding="utf-8"))["entries"]
    rows = [entries[family] for family in coverage_table.FAMILIES if family in entries]
    assert rows
    assert coverage_table.page(page, rows) == page
