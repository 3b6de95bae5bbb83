"""The page of an inspection: one HTML file with the tables and a picture of every graph."""

from __future__ import annotations

import os
import pathlib

from tflite_tools.graph_picture import MOST_OPERATORS, graph_picture
from tflite_tools.inspection import Inspection
from tflite_tools.inspection_tables import facts, remarks, tables
from tflite_tools.report_page import render
from tflite_tools.text_table import printable
from tflite_tools.version import __version__


def inspection_page(found: Inspection, title: str) -> str:
    """The inspection as a self-contained HTML page: no scripts, nothing loaded from anywhere.

    Raises:
      ImportError: Jinja2 is missing; the message says how to install it.
    """
    pictures = []
    for graph in found.subgraphs:
        if graph.operators:
            name = "Graph" if len(found.subgraphs) == 1 else f"Graph {graph.index}: {graph.name}"
            pictures.append((name, graph_picture(found, graph.index), graph.operators))
    page = render(
        "inspection.html",
        title=title,
        found=found,
        facts=facts(found),
        tables=tables(found),
        remarks=remarks(found),
        pictures=pictures,
        most_operators=MOST_OPERATORS,
        version=__version__,
    )
    return printable(page)


def write_inspection_page(found: Inspection, path: str | os.PathLike[str], *, title: str) -> pathlib.Path:
    """Writes the page and returns its path."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(inspection_page(found, title), encoding="utf-8")
    return target
