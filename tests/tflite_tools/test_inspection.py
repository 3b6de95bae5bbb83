"""What `inspect` says about a file, as a whole."""

import importlib.metadata
import importlib.util
import io
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tiny_models
from ai_edge_litert import schema_py_generated as schema

from tflite_tools import TFLiteArtifact, inspect
from tflite_tools.errors import InvalidModelError
from tflite_tools.inspection import Inspection


def test_a_small_file_in_full():
    found = inspect(tiny_models.conv_int8())
    assert found.ops == {"CONV_2D": 1, "MyDecoder": 1}
    assert (found.quantization_scheme, found.description, found.schema_version) == (
        "int8",
        "made by a test",
        3,
    )
    assert found.macs == 5 * 5 * 4 * 3 * 3 * 2
    assert found.uncounted_ops == found.custom_ops == ("MyDecoder",)
    assert found.flex_ops == ()
    assert (found.parameters, found.parameter_bytes) == (72 + 4, 72 + 16)
    assert found.sparsity == 15 / 72  # the biases, zeros all of them, are not weights
    assert found.bytes_by_dtype == {"int8": 72, "int32": 16}
    (x,) = found.inputs
    assert (x.name, x.shape, x.dtype) == ("x", (1, 5, 5, 2), "int8")
    assert (x.quantization.kind, x.quantization.scales, x.quantization.zero_points) == (
        "per-tensor",
        (0.5,),
        (-3,),
    )
    weights = found.tensors[1]
    assert (weights.quantization.kind, weights.quantization.dimension) == ("per-channel", 0)
    np.testing.assert_allclose(weights.quantization.scales, [0.1, 0.2, 0.3, 0.4], rtol=1e-7)
    assert [tensor.name for tensor in found.outputs] == ["y"]
    assert [(entry.name, entry.text) for entry in found.metadata] == [("min_runtime_version", "1.5.0")]
    # 50 bytes of input with 100 of the convolution's result; then those with 28 of output.
    assert found.activation_bytes == 150


def test_activation_bytes_count_what_lives_at_one_time():
    b = tiny_models.Builder()
    x, h, g, y = b.tensor([100]), b.tensor([10]), b.tensor([1000]), b.tensor([5])
    b.op("RELU", [x], [h])  # x 400 + h 40
    b.op("RELU", [h], [g])  # x is dead: h 40 + g 4000
    b.op("ADD", [g, h], [y])  # h 40 + g 4000 + y 20
    b.ends([x], [y])
    assert inspect(b.pack()).activation_bytes == 4060


def test_an_artifact_bytes_and_a_path_give_the_same(tmp_path):
    content = tiny_models.dense_float()
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    assert inspect(content) == inspect(path) == inspect(str(path)) == inspect(TFLiteArtifact(content))


def test_it_comes_back_from_json():
    found = inspect(tiny_models.conv_int8())
    assert Inspection.from_dict(json.loads(found.to_json())) == found


def test_other_things_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"TFLiteArtifact, bytes, or the path of a \.tflite file, got list"):
        inspect([1, 2])
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nothing.tflite")
    with pytest.raises(InvalidModelError, match=r"Not a \.tflite file"):
        inspect(b"<html>not found</html>")


def test_no_tensorflow_is_loaded():
    program = (
        "import sys, tflite_tools; sys.path.insert(0, 'tests/tflite_tools'); import tiny_models;"
        "tflite_tools.inspect(tiny_models.conv_int8());"
        "print([m for m in ('tensorflow', 'keras', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    root = str(__import__("pathlib").Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"


def test_graphs_that_operators_run():
    b = tiny_models.Builder()
    x, y = b.tensor([1, 4]), b.tensor([1, 4])
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    b.op("WHILE", [x], [y], options=options, options_type=schema.BuiltinOptions.WhileOptions)
    b.ends([x], [y])
    b.subgraph("condition")
    c = b.tensor([1, 4])
    b.ends([c], [c])
    b.subgraph("body")
    i, w, o = b.tensor([1, 4]), b.tensor([4, 4], values=np.eye(4)), b.tensor([1, 4])
    b.op("FULLY_CONNECTED", [i, w, -1], [o])
    b.ends([i], [o])
    found = inspect(b.pack())
    assert [graph.name for graph in found.subgraphs] == ["main", "condition", "body"]
    assert found.operators[0].calls == (1, 2)
    assert found.macs == 16
    assert "WHILE: the graphs that loops run are counted once." in found.notes
    assert found.uncounted_ops == ()
    assert "2: body" in str(found)


def test_a_file_without_operators():
    b = tiny_models.Builder()
    x = b.tensor([1])
    b.ends([x], [x])
    found = inspect(b.pack())
    assert (found.macs, found.ops, found.sparsity) == (0, {}, None)
    assert "no operators" in str(found)


def test_files_appended_as_a_zip_are_listed():
    content = tiny_models.dense_float()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
        archive.writestr("vocab.txt", "a\n" * 1000)
    tail = packed.getvalue()
    found = inspect(content + tail)
    assert found.appended_files == ("labels.txt", "vocab.txt")
    assert found.bytes_by_use["files appended as a zip"] == len(tail)
    broken = inspect(content + tail[:-30] + b"PK\x05\x06" + b"\xff" * 18)
    assert broken.appended_files == ()
    assert any("cannot be read" in note for note in broken.notes)


def test_metadata_that_is_no_text_has_none():
    b = tiny_models.Builder()
    b.metadata("blob", bytes(range(256)))
    b.metadata("TFLITE_METADATA", b"\xff" * 40)  # damaged metadata do not make the model unreadable
    b.metadata("long", b"x" * 5000)
    blob, support, long = inspect(b.pack()).metadata
    assert (blob.text, blob.size_bytes, support.text) == (None, 256, None)
    assert len(long.text) < 500


def test_fallbacks_are_estimates_with_a_source():
    found = inspect(tiny_models.conv_int8())
    by_name = {fallback.accelerator: fallback for fallback in found.fallbacks}
    # A page, or a package of PyPI in a named version.
    assert all(re.search(r"https://|\d+\.\d+\.\d+.*PyPI: ", f.source) for f in found.fallbacks)
    assert all(f.kind == "estimated" for f in found.fallbacks)
    assert by_name["Coral Edge TPU"].operators == {"MyDecoder": 1}
    assert by_name["Coral Edge TPU"].on_accelerator == 1
    core_ml = by_name["Core ML delegate (Apple Neural Engine)"]
    assert core_ml.operators == {"CONV_2D": 1, "MyDecoder": 1}
    assert any("float activations only: CONV_2D" in reason for reason in core_ml.reasons)
    flow = {f.accelerator: f for f in inspect(tiny_models.dense_float()).fallbacks}
    assert flow["Core ML delegate (Apple Neural Engine)"].operators == {}
    assert flow["Arm Ethos-U55 and U65"].operators == {"FULLY_CONNECTED": 1}


def test_the_fallback_table_names_operators_that_exist():
    from tflite_tools.delegates import _ACCELERATORS

    for accelerator in _ACCELERATORS:
        unknown = accelerator.operators - set(vars(schema.BuiltinOperator))
        assert not unknown, (accelerator.name, unknown)


def test_the_ethos_lists_are_those_that_vela_prints(tmp_path):
    """Vela writes its own list; the table names the version it was taken from."""
    from tflite_tools.delegates import _ACCELERATORS

    if importlib.util.find_spec("ethosu") is None or importlib.metadata.version("ethos-u-vela") != "5.2.0":
        pytest.skip("ethos-u-vela 5.2.0 is not installed")
    program = "from ethosu.vela.vela import main; main(['--supported-ops-report'])"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    report = (tmp_path / "SUPPORTED_OPS.md").read_text()
    lists = {accelerator.name: accelerator.operators for accelerator in _ACCELERATORS}
    for title, name in (
        ("Ethos-U55 and Ethos-U65 TFLite", "Arm Ethos-U55 and U65"),
        ("Ethos-U85 TFLite", "Arm Ethos-U85"),
    ):
        section = report.split(f"## {title} Summary Table")[1].split("## ")[0]
        assert set(re.findall(r"^\| ([A-Z0-9_]+) \|", section, re.MULTILINE)) == lists[name]


def test_the_text_says_what_a_reader_needs():
    text = str(inspect(tiny_models.conv_int8()))
    for part in (
        "quantization  int8",
        "MACs          at least 1.8 k",
        "0.5 * (q + 3)",
        "per-channel",
        "20.8 %",
        "an estimate from published lists",
        "Custom operators, which need their own kernels at run time: MyDecoder.",
        "min_runtime_version  8      1.5.0",
    ):
        assert part in text, part


def test_names_cannot_steer_the_terminal():
    b = tiny_models.Builder()
    x = b.tensor([1], name="\x1b]0;owned\x07\u202egnirts")
    b.ends([x], [x])
    found = inspect(b.pack())
    assert found.tensors[0].name == "\x1b]0;owned\x07\u202egnirts"  # what the file says stays as it is
    assert not set("\x1b\x07\u202e") & set(str(found))


def test_every_real_file_inspects_and_round_trips(shared_data):
    paths = [*(shared_data / "tflite_zoo").glob("*.tflite"), *(shared_data / "mlperf_tiny").glob("*.tflite")]
    assert len(paths) >= 50
    for path in paths:
        found = inspect(path)
        assert Inspection.from_dict(json.loads(found.to_json())) == found, path.name
        assert str(found)
        assert len(found.operators) == sum(found.ops.values())
        assert all(0 <= tensor.sparsity <= 1 for tensor in found.tensors if tensor.sparsity is not None)


def test_known_facts_of_real_files(shared_data):
    zoo = shared_data / "tflite_zoo"
    assert inspect(zoo / "coral_split_concat_edgetpu.tflite").custom_ops == ("edgetpu-custom-op",)
    assert "FlexSentencepieceOp" in inspect(zoo / "tfls_wiki40b-lm-en.tflite").flex_ops
    labels = inspect(zoo / "tfls_mobilenet_v1_0.25_224_1_metadata_1.tflite")
    assert labels.appended_files == ("labels.txt",)
    support = {entry.name: entry.text for entry in labels.metadata}["TFLITE_METADATA"]
    assert support.startswith("name: ")
    assert inspect(zoo / "tfls_mobilenet_v1_0.25_224_quant.tflite").inputs[0].shape == (1, 224, 224, 3)


def test_zeros_of_a_real_file_against_the_generated_classes(shared_data):
    content = (shared_data / "mlperf_tiny" / "vww_96_int8.tflite").read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content)
    zeros = total = 0
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and tensor.type == schema.TensorType.INT8 and len(tensor.shape) >= 2:
            values = np.asarray(data, np.uint8).view(np.int8)
            zeros, total = zeros + int((values == 0).sum()), total + values.size
    assert inspect(content).sparsity == zeros / total
