"""The notebook is stored without outputs, and runs from top to bottom."""

import pathlib

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "01_distill_in_a_notebook.ipynb"


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
def test_it_runs_and_the_student_under_the_teacher_is_not_worse(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mlxtend")
    notebook = read()
    client = nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed, pictures = {}, 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            pictures += "image/png" in output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                name, _, figure = output.text.strip().rpartition(": ")
                printed[name] = float(figure.rstrip("%"))
    assert pictures == 3
    assert printed["teacher"] > 94
    # A thousand test images: one standard deviation is 0.75 points.
    assert printed["student distilled"] > printed["student alone"] - 0.75
