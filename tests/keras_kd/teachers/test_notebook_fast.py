"""The notebook on the teacher cache is stored without outputs, and runs from top to bottom."""

import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[3] / "examples" / "03_distill_fast.ipynb"


def read():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_outputs_are_stripped_and_cells_are_short():
    for cell in read().cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert cell.source.count("\n") < 25


@pytest.mark.slow
def test_it_runs_and_the_cached_student_is_as_good_in_a_fraction_of_the_time(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mlxtend")
    notebook = read()
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    printed = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            if output.output_type == "stream" and output.name == "stdout":
                for line in output.text.splitlines():
                    name, colon, figure = line.rpartition(": ")
                    if colon:
                        printed[name] = float(figure.rstrip("%"))
    assert printed["teacher"] > 94
    # A thousand test images: one standard deviation of a difference is about one point.
    assert printed["cached"] > printed["live"] - 2.0
    # A ratio of two trainings in one process, and far from the limit: about 0.4.
    assert printed["time of the cached training by that of the live one"] < 0.8
