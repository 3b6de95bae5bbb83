"""The command `matrix`."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from absl import flags

from tflite_tools.benchmark_flags import check_picture, define_target_flags, target_options


def define_matrix(values: flags.FlagValues) -> None:
    """Its flags."""
    flags.DEFINE_list("models", None, "The .tflite files, separated by commas.", flag_values=values)
    flags.DEFINE_string("target", "host", "host or android.", flag_values=values)
    flags.DEFINE_list("threads", ["1"], "Numbers of threads, separated by commas.", flag_values=values)
    flags.DEFINE_list(
        "delegates", ["xnnpack"], "none, xnnpack, gpu, nnapi; separated by commas.", flag_values=values
    )
    flags.DEFINE_integer("num_runs", 50, "Timed runs of each, at the least.", flag_values=values)
    flags.DEFINE_integer("warmup_runs", 5, "Runs before those.", flag_values=values)
    flags.DEFINE_bool("op_profile", False, "Also measure every operator.", flag_values=values)
    flags.DEFINE_string("output", None, "Write the whole matrix to this JSON file.", flag_values=values)
    flags.DEFINE_string("report", None, "Write a report.json, for the command report.", flag_values=values)
    flags.DEFINE_string("plot", None, "Draw the latencies to this file.", flag_values=values)
    flags.DEFINE_string("compare", None, "The --output of an earlier run.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", flag_values=values)
    define_target_flags(values)


def run_matrix(values: Any) -> None:
    """Runs it.

    Raises:
      ValueError: about the command line.
      RuntimeError: every combination failed; the table and the files are written all the same.
    """
    from tflite_tools.benchmarking.matrix import Matrix, benchmark_matrix, changes, compare_matrices

    if not values.models:
        raise ValueError("--models is missing.")
    if values["use_xnnpack"].present or values["use_gpu"].present or values["use_nnapi"].present:
        raise ValueError("the matrix takes --delegates in place of --use_xnnpack, --use_gpu and --use_nnapi.")
    wrong = [word for word in values.threads if not word.strip().isdigit()]
    if wrong:
        raise ValueError(f"--threads must be numbers separated by commas, got {', '.join(wrong)}.")
    earlier = None
    if values.compare:
        try:
            earlier = Matrix.from_dict(json.loads(pathlib.Path(values.compare).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{values.compare} is no matrix: {error}") from None
    _check_outputs(values)
    options = target_options(values, values.target)
    for name in ("use_xnnpack", "use_gpu", "use_nnapi"):
        options.pop(name, None)
    matrix = benchmark_matrix(
        _named(values.models),
        values.target,
        threads=[int(word) for word in values.threads],
        delegates=values.delegates,
        on_cell=lambda cell: print(f"{cell.key}: {cell.error or 'done'}", file=sys.stderr, flush=True),
        num_runs=values.num_runs,
        warmup_runs=values.warmup_runs,
        op_profile=values.op_profile,
        **options,
    )
    if values.output:
        pathlib.Path(values.output).write_text(matrix.to_json() + "\n", encoding="utf-8")
    if values.report:
        matrix.to_report().write_json(values.report)
    if values.plot:
        matrix.write_plot(values.plot)
    if values.json:
        found = matrix.to_dict()
        if earlier is not None:
            found["comparison"] = [change.to_dict() for change in changes(earlier, matrix)]
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        print(matrix)
        if earlier is not None:
            print(f"\n{compare_matrices(earlier, matrix)}")
    if all(cell.error for cell in matrix.cells):
        raise RuntimeError(f"nothing was measured; the first reason: {matrix.cells[0].error}")


def _check_outputs(values: Any) -> None:
    """Makes the folders, and refuses files that could not be written, before an hour of measuring is lost to them.

    Raises:
      ValueError: all such are named.
      ImportError: a plot is wanted, and matplotlib is missing.
    """
    problems = []
    for name in ("output", "report", "plot"):
        path = getattr(values, name)
        if path is None:
            continue
        if pathlib.Path(path).is_dir():
            problems.append(f"{path} is a folder (--{name})")
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems.append(
                f"there can be no folder {pathlib.Path(path).parent} (--{name}): {error.strerror}"
            )
    if values.plot is not None:
        check_picture(values.plot, problems)
    if problems:
        raise ValueError(f"{'; '.join(problems)}.")


def _named(paths: list[str]) -> dict[str, str]:
    """Short names where they tell the files apart, whole paths where not."""
    stems = [pathlib.Path(path).stem for path in paths]
    return {stem if stems.count(stem) == 1 else path: path for stem, path in zip(stems, paths)}
