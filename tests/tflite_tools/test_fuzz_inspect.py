"""A small part of the fuzzing; `fuzz_inspect.py` is the script for the rest."""

import pytest
from fuzz_inspect import fuzz
from tiny_models import conv_int8, dense_float


def test_damaged_small_files_inspect_or_are_refused():
    result = fuzz([conv_int8(), dense_float()], files=3000, seed=7)
    # Both must happen, or the mutations are too weak or too strong to prove anything.
    assert result["outcomes"]["inspect: read"] > 100
    assert result["outcomes"]["inspect: refused"] > 1000


def test_damaged_real_files_inspect_or_are_refused(shared_data):
    paths = [path for path in sorted(shared_data.rglob("*.tflite")) if path.stat().st_size < 300_000]
    result = fuzz([path.read_bytes() for path in paths], files=600, seed=11)
    assert result["outcomes"]["inspect: read"] > 50
    assert result["outcomes"]["inspect: refused"] > 50


@pytest.mark.slow
def test_twenty_thousand_damaged_files(shared_data):
    paths = [path for path in sorted(shared_data.rglob("*.tflite")) if path.stat().st_size < 700_000]
    fuzz([path.read_bytes() for path in paths], files=20_000, seed=0)
