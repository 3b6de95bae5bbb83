"""The artifact, and metadata embedded in front of the file."""

import contextlib
import gzip
import hashlib
import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from tflite_tools import TFLiteArtifact, load, predict
from tflite_tools.errors import InvalidModelError
from tflite_tools.file_facts import keeps_state, operator_codes, read_metadata
from tflite_tools.flatbuffer import model_table
from tflite_tools.metadata_writer import add_metadata

MINIMAL = b"\x0c\x00\x00\x00TFL3\x04\x00\x04\x00\x04\x00\x00\x00"


def _object_api(content):
    """The generated schema classes, an independent reader of the same bytes."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)


def test_sizes_and_digest_are_those_of_the_bytes(tmp_path):
    artifact = TFLiteArtifact(MINIMAL)
    assert artifact.size_bytes == 16
    assert artifact.sha256 == hashlib.sha256(MINIMAL).hexdigest()
    assert artifact.gzip_bytes == len(gzip.compress(MINIMAL, 9, mtime=0))
    path = artifact.save(tmp_path / "new" / "m.tflite")
    assert path.read_bytes() == MINIMAL
    assert [p.name for p in path.parent.iterdir()] == ["m.tflite"]  # no temporary file stays behind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"TFL3",
        b"\x08\0\0\0TFL4" + bytes(8),
        b"\xff\xff\xff\xffTFL3" + bytes(8),
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_load_refuses_what_is_no_model(content, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"broken\.tflite"):
        load(path)


def test_load_of_a_folder_or_a_missing_file(tmp_path):
    with pytest.raises(InvalidModelError, match="folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.tflite")


@pytest.mark.parametrize("name", ["vww_96_int8", "ad01_fp32", "kws_ref_model", "str_ww_ref_model"])
def test_embedding_changes_neither_outputs_nor_other_metadata(shared_data, name):
    before = load(shared_data / "mlperf_tiny" / f"{name}.tflite")
    after = load(before.with_metadata(class_names=["ä", "b"], seed=7).content)
    assert after.metadata == {"class_names": ["ä", "b"], "seed": 7}
    entries = read_metadata(after.content)
    assert {k: v for k, v in entries.items() if k != "tflite_tools"} == read_metadata(before.content)
    old, new = _object_api(before.content), _object_api(after.content)
    # The schema's own reader sees the same graph, and one buffer more.
    assert len(new.buffers) == len(old.buffers) + 1
    for first, second in zip(old.buffers, new.buffers):
        assert np.array_equal(np.asarray(first.data), np.asarray(second.data))
    assert [len(g.tensors) for g in new.subgraphs] == [len(g.tensors) for g in old.subgraphs]
    assert new.description == old.description and new.version == old.version
    shape = old.subgraphs[0].tensors[old.subgraphs[0].inputs[0]].shape
    x = np.random.default_rng(0).normal(size=(3, *shape[1:])).astype("float32")
    if name == "str_ww_ref_model" or "int8" in name or "kws" in name:
        x = (x * 40).clip(-128, 127).astype("int8")
    np.testing.assert_array_equal(
        predict(before, x, isolate=False), predict(after, x, isolate=False)
    )  # fmt: skip


def test_embedding_keeps_every_buffer_aligned_as_it_was(shared_data):
    def residues(content):
        spans = [buffer.span(0, 1) for buffer in model_table(content).tables(4)]
        return [span[0] % 16 for span in spans if span is not None]

    before = (shared_data / "mlperf_tiny" / "ad01_int8.tflite").read_bytes()
    after = add_metadata(before, {"a": b"x" * 5, "b": b""})
    old, new = residues(before), residues(after)
    assert new[: len(old)] == old
    assert set(new[len(old) :]) == {0}  # the schema's force_align for what was added


def test_embedding_twice_replaces_the_entry(shared_data):
    first = load(shared_data / "mlperf_tiny" / "ad01_int8.tflite").with_metadata(note="one")
    second = load(first.with_metadata(note="two").content)
    assert second.metadata == {"note": "two"}
    assert list(read_metadata(second.content)).count("tflite_tools") == 1


def test_metadata_that_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match=r"metadata\['when'\].*object"):
        TFLiteArtifact(MINIMAL).with_metadata(when=object())


def test_foreign_entry_of_the_same_name_is_left_alone():
    for content in (b"\xff\xfe", b"[1]", b'{"metadata": 3}', b"[" * 100_000):
        artifact = load(add_metadata(MINIMAL, {"tflite_tools": content}))
        assert artifact.metadata == {} and artifact.provenance == {}


def test_truncations_never_escape_the_reader(shared_data):
    content = load(shared_data / "mlperf_tiny" / "kws_ref_model.tflite").with_metadata(a=1).content
    rng = np.random.default_rng(0)
    for size in rng.integers(0, 6000, 300):
        for call in (load, operator_codes, keeps_state):
            with contextlib.suppress(InvalidModelError):
                call(content[: int(size)])


def test_flipped_bytes_never_escape_the_reader(shared_data):
    content = load(shared_data / "mlperf_tiny" / "kws_ref_model.tflite").with_metadata(a=1).content
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(content)
        for position in rng.integers(0, len(content), 8):
            broken[position] = rng.integers(0, 256)
        broken[rng.integers(0, 1500)] = rng.integers(0, 256)
        for call in (load, operator_codes, keeps_state):
            with contextlib.suppress(InvalidModelError):
                call(bytes(broken))


def test_metadata_that_overlap_are_refused_before_they_fill_the_memory():
    """Ten thousand entries that all name the same megabyte would be ten gigabytes."""
    entries = {f"entry {number}": b"x" for number in range(10_000)}
    content = bytearray(add_metadata(MINIMAL, {**entries, "large": bytes(1 << 20)}))
    large = len(entries)
    for entry in model_table(bytes(content)).tables(6):
        place = entry.place(1)
        content[place : place + 4] = struct.pack("<I", large)
    with pytest.raises(InvalidModelError, match="again and again"):
        load(bytes(content))


def test_loading_imports_no_tensorflow(shared_data):
    code = (
        "import sys, tflite_tools; "
        f"a = tflite_tools.load({str(shared_data / 'mlperf_tiny' / 'vww_96_int8.tflite')!r}); "
        "a.with_metadata(x=1); "
        "print([m for m in ('tensorflow', 'keras', 'tf_keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
