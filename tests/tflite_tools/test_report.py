"""Stage and Report: figures, changes per class, Pareto fronts, and pages that need nothing from outside."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_models
from page_parser import Page

from tflite_tools import Report, Stage
from tflite_tools.report import read_report
from tflite_tools.report_building import report_of_models
from tflite_tools.report_merging import merge_reports
from tflite_tools.report_sections import changes_table, operator_time_table, pareto_front

STAGES = (
    Stage("teacher", 0.92, 280_000, 0.0, 3_400_000, 3_100_000, 2300.0, 12_000_000),
    Stage("student", 0.881, 12_800, 0.0, 190_000, 120_000, 410.0, 1_200_000),
    Stage("int8", 0.8925, 12_800, 0.76, 24_000, 11_000, None, 1_200_000, notes=("sparse weights",)),
)
# Ten examples of each class. The student sends cats to dogs, which the teacher did not.
TEACHER = [[9, 1, 0], [1, 9, 0], [0, 0, 10]]
STUDENT = [[6, 4, 0], [1, 9, 0], [0, 1, 9]]


def full_report(**changes):
    values = {
        "curves": {
            "student": {
                "loss": [2.0, 1.0, float("nan")],
                "val_loss": [2.1, 1.2, 1.1],
                "accuracy": [0.5, 0.8, 0.9],
            }
        },
        "layer_sparsity": {"conv": 0.75, "dense": np.float32(0.5)},
        "layer_error": {"conv": 0.01},
        "confusion": {"teacher": np.array(TEACHER), "int8": STUDENT},
        "class_names": ["cat", "dog", "<b>bird</b>"],
        "op_times": [
            {"name": "CONV", "mean_us": 30.0, "share": 0.75},
            {"name": "FC", "mean_us": 10.0, "share": 0.25},
        ],
        "notes": "Seed 0.",
    }
    return Report("A & B", STAGES, **{**values, **changes})


def test_a_stage_keeps_none_apart_from_zero():
    bare = Stage("bare")
    assert bare.accuracy is None and bare.to_dict()["latency_us"] is None
    assert Stage.from_dict(json.loads(json.dumps(STAGES[2].to_dict()))) == STAGES[2]
    assert "0.0 %" in str(Report("t", (Stage("a", sparsity=0.0),)))
    assert "–" in str(Report("t", (bare,)))


def test_a_stage_takes_numpy_numbers():
    stage = Stage("s", np.float32(0.5), np.int64(7), latency_us=np.float64(3.5))
    assert json.dumps(stage.to_dict())
    assert (type(stage.accuracy), type(stage.parameters)) == (float, int)


def test_a_stage_names_every_figure_that_is_out_of_range():
    with pytest.raises(ValueError) as caught:
        Stage("s", accuracy=91.2, size_bytes=-1, latency_us=float("nan"))
    for name in ("accuracy", "size_bytes", "latency_us", "'s'"):
        assert name in str(caught.value)


def test_unknown_and_missing_fields_are_listed():
    with pytest.raises(ValueError, match=r"unknown \['acuracy', 'size'\], missing \['name'\]"):
        Stage.from_dict({"acuracy": 1, "size": 2})


def test_a_report_comes_back_from_json(tmp_path):
    report = full_report()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    report.write_json(tmp_path / "new" / "r.json")
    assert read_report(tmp_path / "new" / "r.json") == report
    assert report.curves["student"]["loss"] == [2.0, 1.0, None]  # JSON has no NaN


def test_parts_that_do_not_fit_are_all_named():
    with pytest.raises(ValueError) as caught:
        Report("t", (Stage("a"), Stage("a")), confusion=[[1, 2], [3]], class_names=["x", "y", "z"])
    for part in (
        "two stages are called 'a'",
        "'a' is not square",
        "disagree on the number of classes: [2, 3]",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="there are no stages"):
        Report("t", ())


def test_the_text_is_the_table():
    text = str(full_report())
    assert "3,400,000" in text and "92.00 %" in text and "2.30 ms" in text and "12 M" in text
    assert "int8: sparse weights" in text and "Seed 0." in text


def test_changes_per_class_by_hand():
    header, rows = changes_table(full_report())
    assert header == ["class", "teacher", "int8", "change", "became"]
    # Cats fell from 9 to 6 of 10, and the 3 became dogs; birds lost one to dogs; dogs kept all.
    assert rows[0] == ["cat", "90.0 %", "60.0 %", "-30.0", "dog (+3)"]
    assert rows[1] == ["<b>bird</b>", "100.0 %", "90.0 %", "-10.0", "dog (+1)"]
    assert rows[2] == ["dog", "90.0 %", "90.0 %", "+0.0", "no other class"]


def test_per_class_accuracy_without_confusion():
    report = Report("t", STAGES[:2], per_class={"teacher": [0.9, 0.8], "student": [0.95, None]})
    header, rows = changes_table(report)
    assert header == ["class", "teacher", "student", "change", "became"]
    assert rows == [["1", "80.0 %", "–", "–", "–"], ["0", "90.0 %", "95.0 %", "+5.0", "–"]]
    assert changes_table(Report("t", STAGES)) is None


def test_a_class_without_examples_has_no_accuracy():
    report = Report("t", STAGES[:1], confusion=[[0, 0], [1, 3]])
    assert report.per_class == {"teacher": [None, 0.75]}


def test_the_pareto_front():
    points = [
        Stage("small", 0.80, size_bytes=10),
        Stage("beaten", 0.79, size_bytes=20),
        Stage("equal but larger", 0.80, size_bytes=11),
        Stage("large", 0.95, size_bytes=300),
        Stage("unknown size", 0.99),
        Stage("unknown accuracy", size_bytes=1),
    ]
    assert [stage.name for stage in pareto_front(points, "size_bytes")] == ["small", "large"]
    assert pareto_front(points, "latency_us") == []


def test_many_operators_are_summed_at_the_end():
    from tflite_tools.benchmarking.result import OperatorTime

    ops = [OperatorTime(f"op{i}", float(i), i / 780) for i in range(40)]
    _, rows = operator_time_table(ops)
    assert (rows[0][0], rows[-1][0], len(rows)) == ("op39", "10 others", 31)
    assert rows[-1][2] == "45.0 µs"  # 0 + 1 + ... + 9


def test_the_page_is_whole_and_needs_nothing(tmp_path):
    text = full_report().write_html(tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert len(page.ids) == len(set(page.ids)), "two charts share an id"
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 6  # bytes, latency, two metrics, sparsity, error
    for part in (
        "A &amp; B",
        "&lt;b&gt;bird&lt;/b&gt;",
        "sparse weights",
        "dog (+3)",
        "Operator times: int8",
    ):
        assert part in text, part
    assert "<b>bird</b>" not in text


def test_the_charts_use_the_colors_of_the_page(tmp_path):
    text = full_report().write_html(tmp_path / "report.html").read_text(encoding="utf-8")
    charts = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--series-0)" in charts and "var(--ink)" in charts
    # A fixed dark color would vanish in the dark. White and none are matplotlib's own for unseen things.
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", charts)) <= {"#ffffff"}


def test_the_same_figures_under_two_names_are_drawn_once(tmp_path):
    from tflite_tools.report_plots import charts

    history = {"loss": [2.0, 1.0], "val_loss": [2.0, 1.5], "total_loss": [2.0, 1.0], "other": [1.0, 1.0]}
    report = Report("t", STAGES[:1], curves={"teacher": history})
    assert [name for name, *_ in charts(report)] == ["curve_loss", "curve_other"]


def test_mistakes_are_seen_beside_right_answers(tmp_path):
    text = full_report().write_html(tmp_path / "report.html").read_text(encoding="utf-8")
    # Four of ten cats became dogs: the most frequent mistake of that stage has the full depth of its color.
    assert '<td class="wrong" style="--v:1.000" title="cat answered as dog: 4 (40.0 %)">4</td>' in text
    assert '<td class="right" style="--v:0.600" title="cat answered as cat: 6 (60.0 %)">6</td>' in text


def test_the_same_report_gives_the_same_page(tmp_path):
    first = full_report().write_html(tmp_path / "a.html").read_bytes()
    assert first == full_report().write_html(tmp_path / "b.html").read_bytes()


def test_a_bare_report_has_a_page(tmp_path):
    text = Report("bare", (Stage("only"),)).write_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert Page(text).open == [] and "<svg" not in text


def test_a_hundred_classes_stay_readable(tmp_path):
    matrix = np.eye(100, dtype=int) * 5
    text = (
        Report("t", STAGES[:1], confusion=matrix).write_html(tmp_path / "r.html").read_text(encoding="utf-8")
    )
    assert 'class="matrix dense upright"' in text


def test_plots_are_written_as_files(tmp_path):
    paths = full_report().write_plots(tmp_path / "plots")
    assert [path.name for path in paths][:2] == ["accuracy_bytes.png", "accuracy_latency.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_markdown():
    text = full_report().to_markdown()
    assert text.startswith("# A & B\n")
    assert "| teacher | 92.00 % | 280,000 |" in text
    assert "| cat | 90.0 % | 60.0 % | -30.0 | dog (+3) |" in text
    assert "## Operator times: int8" in text
    assert "| layer | int8 |" in text and "| conv | 75.00 % |" in text and "| conv | 1.00 % |" in text
    assert "a\\|b" in Report("t", (Stage("a|b"),)).to_markdown()


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'keras-kd\[report\]'"):
        full_report().write_html(tmp_path / "r.html")
    assert str(full_report()) and full_report().to_markdown() and full_report().to_json()


def test_text_and_json_load_neither_jinja_nor_matplotlib():
    program = (
        "import sys; from tflite_tools import Report, Stage; r = Report('t', [Stage('a', 0.5)]);"
        "str(r), r.to_markdown(), r.to_json();"
        "print([m for m in ('tensorflow', 'keras', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_merging():
    first = Report("one", STAGES[:2], confusion={"teacher": TEACHER}, notes=("n",))
    other_student = Stage("student", 0.9)
    second = Report("two", (STAGES[0], other_student), confusion={"student": STUDENT}, notes=("n", "m"))
    merged = merge_reports([first, second])
    assert merged.title == "one"
    # The common teacher once; two different students under two names.
    assert [stage.name for stage in merged.stages] == ["teacher", "student", "student (2)"]
    assert list(merged.confusion) == ["teacher", "student (2)"]
    assert merged.notes == ("n", "m")
    with pytest.raises(ValueError, match="nothing to put together"):
        merge_reports([])


def test_a_report_of_files(shared_data):
    tiny = shared_data / "mlperf_tiny"
    models = {
        "float": tiny / "ad01_fp32.tflite",
        "edge": shared_data / "tflite_zoo" / "coral_split_concat_edgetpu.tflite",
    }
    report = report_of_models(models, time_limit_s=0.5, verbose=False)
    good, bad = report.stages
    assert (good.size_bytes, good.macs, good.parameters, good.accuracy) == (1_067_648, 264_192, 265_864, None)
    assert good.latency_us > 0
    # What cannot run keeps what can be read from the file, and says why.
    assert (bad.latency_us, bad.accuracy, bad.size_bytes) == (None, None, 58_504)
    assert "Edge TPU" in bad.notes[-1]


def test_a_report_of_files_with_labels():
    x, y = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    models = {
        "right": tiny_models.dense_float(3, 3, np.eye(3)),
        "turned": tiny_models.dense_float(3, 3, np.eye(3)[[1, 0, 2]]),  # takes class 0 for 1, and 1 for 0
    }
    report = report_of_models(models, x, y, time_limit_s=0.2, verbose=False)
    assert [stage.accuracy for stage in report.stages] == [1.0, pytest.approx(1 / 3)]
    assert report.confusion["turned"] == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert changes_table(report)[1][0] == ["0", "100.0 %", "0.0 %", "-100.0", "1 (+1)"]


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is no JSON"), ("[]", "needs a dict"), ('{"title": "t", "stages": [], "color": 1}', "unknown")],
)
def test_a_file_that_is_no_report(tmp_path, content, says):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        read_report(path)
