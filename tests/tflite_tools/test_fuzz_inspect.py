"""A small part of the fuzzing; `fuzz_inspect.py` is the script for the rest."""

import contextlib
import tracemalloc

import pytest
from ai_edge_litert import schema_py_generated as schema
from fuzz_inspect import BYTES_PER_BYTE, fuzz
from tiny_models import Builder, conv_int8, dense_float

from tflite_tools import inspect, load
from tflite_tools.errors import InvalidModelError


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


@pytest.mark.parametrize("function", [inspect, load])
def test_a_thousand_names_for_one_large_buffer_are_no_thousand_copies(function):
    builder = Builder()
    builder.ends([], [])
    builder.metadata("first", bytes(1 << 20))
    for number in range(1000):
        entry = schema.MetadataT()
        entry.name, entry.buffer = f"name {number}", 1
        builder.model.metadata.append(entry)
    content = builder.pack()
    tracemalloc.start()
    with contextlib.suppress(InvalidModelError):  # refusing it is as good
        function(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A thousand copies would be a gigabyte.
    assert peak < BYTES_PER_BYTE * len(content)


@pytest.mark.slow
def test_twenty_thousand_damaged_files(shared_data):
    paths = [path for path in sorted(shared_data.rglob("*.tflite")) if path.stat().st_size < 700_000]
    fuzz([path.read_bytes() for path in paths], files=20_000, seed=0)
