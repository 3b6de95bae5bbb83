"""One report from several: the stages of all, in order, and everything that is known about each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tflite_tools.report import Report, Stage

_BY_STAGE = ("curves", "layer_sparsity", "layer_error", "confusion", "per_class", "op_times")


def merge_reports(reports: Sequence[Report], *, title: str | None = None) -> Report:
    """Puts several reports into one.

    Args:
      reports: in the order in which their stages are to stand. Equal stages of several reports (a common
        teacher) are taken once; different ones of the same name get the number of their report.
      title: default: that of the first report.

    Returns:
      The report.

    Raises:
      ValueError: no report at all, or reports whose classes disagree.
    """
    stages: dict[str, Stage] = {}
    parts: dict[str, dict[str, Any]] = {name: {} for name in _BY_STAGE}
    if not reports:
        raise ValueError("reports is empty: there is nothing to put together.")
    notes: dict[str, None] = {}
    for number, report in enumerate(reports, start=1):
        renamed = {}
        for stage in report.stages:
            name = stage.name
            if name in stages and stages[name] != stage:
                name = f"{name} ({number})"
            renamed[stage.name] = name
            stages[name] = dataclasses.replace(stage, name=name)
        for part in _BY_STAGE:
            for stage_name, value in (getattr(report, part) or {}).items():
                parts[part][renamed.get(stage_name, stage_name)] = value
        notes.update(dict.fromkeys(report.notes))
    return Report(
        title or reports[0].title,
        tuple(stages.values()),
        class_names=next((r.class_names for r in reports if r.class_names is not None), None),
        notes=tuple(notes),
        **{name: values or None for name, values in parts.items()},
    )
