"""The page of a report: one HTML file with everything inside."""

from __future__ import annotations

import pathlib
from typing import Any

from tflite_tools.report import Report, stage_table
from tflite_tools.report_plots import charts, svg
from tflite_tools.report_sections import changes_table, class_labels, operator_time_table
from tflite_tools.version import __version__

_MOST_CLASSES_WITH_NUMBERS = 24


def report_page(report: Report) -> str:
    """The report as a self-contained HTML page."""
    return render(
        "report.html",
        report=report,
        table=stage_table(report.stages),
        charts=[
            (title, svg(draw, height, f"chart{i}"))
            for i, (_, title, draw, height) in enumerate(charts(report))
        ],
        confusion=_confusion(report),
        classes=changes_table(report),
        operators={stage: operator_time_table(ops) for stage, ops in (report.op_times or {}).items() if ops},
        version=__version__,
    )


def render(template: str, **values: Any) -> str:
    """Fills one of the package's templates. Everything is escaped unless the template says otherwise.

    Raises:
      ImportError: Jinja2 is missing; the message says how to install it.
    """
    try:
        import jinja2
    except ImportError:
        raise ImportError(
            "HTML pages need Jinja2, which is not installed. Install it with: pip install 'keras-kd[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).with_name("templates")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def _confusion(report: Report) -> list[dict[str, Any]]:
    """Per stage, the matrix as rows of cells: their count, fraction of the true class, and depth of color."""
    labels = class_labels(report)
    result = []
    for stage, matrix in (report.confusion or {}).items():
        fractions = [[value / (sum(row) or 1) for value in row] for row in matrix]
        # Mistakes are few beside right answers; on one scale with them they would not be seen.
        worst = (
            max((f for i, row in enumerate(fractions) for j, f in enumerate(row) if i != j), default=0) or 1
        )
        rows = []
        for i, (label, counts) in enumerate(zip(labels, matrix)):
            cells = []
            for j, (value, fraction) in enumerate(zip(counts, fractions[i])):
                kind, depth = ("right", fraction) if i == j else ("wrong", fraction / worst)
                cells.append({"count": value, "fraction": fraction, "kind": kind, "depth": depth})
            rows.append((label, cells))
        result.append(
            {
                "stage": stage,
                "labels": labels,
                "rows": rows,
                "dense": len(matrix) > _MOST_CLASSES_WITH_NUMBERS,
                "upright": all(len(label) <= 3 for label in labels),
            }
        )
    return result
