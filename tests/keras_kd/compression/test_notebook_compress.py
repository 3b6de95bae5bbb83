"""The notebook on compression is stored without outputs, and runs from top to bottom."""

import pathlib
import re

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[3] / "examples" / "02_compress.ipynb"


def read():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_outputs_of_the_compression_notebook_are_stripped():
    for cell in read().cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.slow
def test_the_compression_notebook_runs_and_keeps_its_promises(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mlxtend")
    notebook = read()
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=580, kernel_name="python3", resources=resources).execute()
    printed, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            pictures += "image/png" in output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                printed += output.text
    assert pictures == 3
    files = re.findall(r"^ *(\S.*): ([\d.]+)%, +([\d,]+) bytes, +([\d,]+) gzipped$", printed, re.M)
    accuracy, size, gzipped = (
        [float(part.replace(",", "")) for part in column] for column in list(zip(*files))[1:]
    )
    # A thousand test images: two standard deviations of a difference are about 1.5 points.
    assert accuracy[2] > accuracy[0] - 1.5
    assert size[1] < 0.45 * size[0]
    assert gzipped[2] < 0.7 * gzipped[1]
    agreement = float(re.search(r"agree on ([\d.]+)%", printed).group(1))
    assert agreement >= 99.5
