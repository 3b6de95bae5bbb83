"""The command line: one command per function of the package.

Results go to standard output, as tables or with --json as JSON. Whatever is wrong with the arguments or the
file ends in one line on standard error and exit status 2.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags

from tflite_tools.benchmark_flags import define_target_flags, target_options, write_pictures
from tflite_tools.errors import nearest
from tflite_tools.matrix_command import define_matrix, run_matrix

_PROGRAM = "python -m tflite_tools"


class UsageError(ValueError):
    """Something about the command line itself."""


@dataclass(frozen=True)
class _Command:
    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[Any], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, or 2 for bad input.

    Args:
      arguments: what stands behind the program's name; None takes them from sys.argv.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, RuntimeError, OSError, ImportError, flags.Error, TypeError) as error:
        # One line, whatever the message holds; the first cause counts, and a traceback helps nobody.
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{_PROGRAM}: {text}", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    if not words or words[0] in ("help", "--help", "-h", "--helpfull"):
        print(_overview())
        return 0 if words else 2
    name = words[0]
    if name not in _COMMANDS:
        raise UsageError(
            f"there is no command {name!r}; there are {', '.join(_COMMANDS)}.{nearest(name, _COMMANDS)}"
        )
    command = _COMMANDS[name]
    values = flags.FlagValues()
    command.define(values)
    if any(word in ("--help", "-h", "-help") for word in words[1:]):
        print(f"{_PROGRAM} {name}: {command.summary}\n\n{_help(values)}")
        return 0
    rest = values([name, *words[1:]])[1:]
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; arguments are written as --name=value.")
    command.run(values)
    return 0


def _help(values: flags.FlagValues) -> str:
    # absl's own help also lists its flags for flag files, which nobody needs here.
    modules = values.flags_by_module_dict()
    own = [flag for name, found in modules.items() if not name.startswith("absl") for flag in found]
    lines = []
    for flag in own:
        default = f" (default: {flag.default})" if flag.default not in (None, False) else ""
        lines.append(f"  --{flag.name}{'' if flag.boolean else '=...'}  {flag.help}{default}")
    return "\n".join(lines)


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in _COMMANDS.items()]
    return (
        f"usage: {_PROGRAM} COMMAND --name=value ...\n\n"
        + "\n".join(lines)
        + f"\n\n{_PROGRAM} COMMAND --help "
        "lists a command's arguments."
    )


def _required(values: Any, *names: str) -> None:
    missing = [f"--{name}" for name in names if getattr(values, name) in (None, "")]
    if missing:
        raise UsageError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")


def _print(values: Any, result: Any) -> None:
    print(json.dumps(result.to_dict(), indent=2) if values.json else str(result))


def _common(values: flags.FlagValues, model: str = "The .tflite file.") -> None:
    flags.DEFINE_string("model", None, model, flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", flag_values=values)


def load_arrays(path: str, *names: str) -> tuple[Any, ...]:
    """Arrays of an .npz file; None for a name that it does not hold, except the first, which it must."""
    import zipfile

    import numpy as np

    if not pathlib.Path(path).is_file():
        raise UsageError(f"there is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                return (archive, *(None for _ in names[1:]))
            if names[0] not in archive.files:
                raise UsageError(f"{path} holds {archive.files}, but no array {names[0]!r}.")
            return tuple(archive[name] if name in archive.files else None for name in names)
    except UsageError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(f"{path} is no .npz file of plain arrays: {error}") from None


def _load_model(path: str) -> Any:
    from tflite_tools import load

    if not pathlib.Path(path).exists():
        raise UsageError(f"there is no file {path}.")
    return load(path)


def _define_inspect(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string(
        "html", None, "Also write a page with a picture of the graph here.", flag_values=values
    )
    flags.DEFINE_bool("explorer", False, "Open the file in Model Explorer, if installed.", flag_values=values)


def _inspect(values: Any) -> None:
    from tflite_tools.inspection import inspect

    _required(values, "model")
    found = inspect(values.model, sha256=True)
    if values.html:
        from tflite_tools.inspection_page import write_inspection_page

        write_inspection_page(found, values.html, title=pathlib.Path(values.model).name)
    _print(values, found)
    if values.explorer:
        from tflite_tools.explorer import open_explorer

        open_explorer(values.model)


def _define_convert(values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", None, "A .keras or .h5 file, or a SavedModel folder.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", flag_values=values)
    flags.DEFINE_string("output", None, "The .tflite file to write.", flag_values=values)
    flags.DEFINE_enum(
        "quantization",
        "none",
        ["none", "float16", "dynamic", "int8", "int16x8"],
        "How weights and activations are stored.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "calibration", None, "An .npz file; its array x calibrates int8 and int16x8.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size", 1, "The fixed batch size; 0 leaves it open.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string(
        "input_dtype", None, "Type of inputs and outputs: int8, uint8, int16, float32.", flag_values=values
    )


def _convert(values: Any) -> None:
    _required(values, "model", "output")
    if not pathlib.Path(values.model).exists():
        raise UsageError(f"there is no file {values.model}.")
    calibration = load_arrays(values.calibration, "x")[0] if values.calibration else None
    from tflite_tools.conversion import convert

    artifact = convert(
        values.model,
        quantization=None if values.quantization == "none" else values.quantization,
        calibration=calibration,
        batch_size=values.batch_size or None,
        input_dtype=values.input_dtype,
    )
    path = artifact.save(values.output)
    if values.json:
        record = {
            "path": str(path),
            "size_bytes": artifact.size_bytes,
            "gzip_bytes": artifact.gzip_bytes,
            "sha256": artifact.sha256,
            "provenance": artifact.provenance,
            "notes": artifact.notes,
        }
        print(json.dumps(record, indent=2, default=str))
        return
    print(
        f"{path}: {artifact.size_bytes:,} bytes ({artifact.gzip_bytes:,} gzipped), sha256 {artifact.sha256}"
    )
    for note in artifact.notes:
        print(f"  {note}")


def _define_evaluate(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string("data", None, "An .npz file with arrays x and y.", flag_values=values)
    flags.DEFINE_string(
        "task", "auto", "auto, classification, multi_label, regression or reconstruction.", flag_values=values
    )
    flags.DEFINE_enum(
        "from_logits",
        "auto",
        ["auto", "true", "false"],
        "Whether the outputs are logits.",
        flag_values=values,
    )


def _evaluate(values: Any) -> None:
    from tflite_tools.evaluation import evaluate

    _required(values, "model", "data")
    x, y = load_arrays(values.data, "x", "y")
    from_logits: Any = {"auto": "auto", "true": True, "false": False}[values.from_logits]
    _print(values, evaluate(_load_model(values.model), x, y, task=values.task, from_logits=from_logits))


def _define_compare(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string(
        "reference", None, "The model to compare with: .tflite, .keras or .h5.", flag_values=values
    )
    flags.DEFINE_string("data", None, "An .npz file with an array x.", flag_values=values)
    flags.DEFINE_bool(
        "layers", False, "Also compare layer by layer, with the float model.", flag_values=values
    )
    flags.DEFINE_string("plot", None, "With --layers: draw the errors to this file.", flag_values=values)


def _compare(values: Any) -> None:
    from tflite_tools.comparison import compare

    _required(values, "model", "reference", "data")
    (x,) = load_arrays(values.data, "x")
    if not pathlib.Path(values.reference).exists():
        raise UsageError(f"there is no file {values.reference}.")
    reference: Any = values.reference
    if pathlib.Path(reference).suffix in (".keras", ".h5"):
        import keras

        reference = keras.models.load_model(reference, compile=False)
    result = compare(reference, _load_model(values.model), x, layers=values.layers or bool(values.plot))
    if values.plot:
        result.plot(values.plot)
    _print(values, result)


def _define_benchmark(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string("target", "host", "Where to run: host, android or micro.", flag_values=values)
    flags.DEFINE_integer("num_threads", 1, "Threads of the runtime.", flag_values=values)
    flags.DEFINE_integer("num_runs", 50, "Timed runs, at the least.", flag_values=values)
    flags.DEFINE_integer("warmup_runs", 5, "Runs before those, which are not counted.", flag_values=values)
    flags.DEFINE_bool("op_profile", False, "Also measure every operator.", flag_values=values)
    define_target_flags(values)


def _benchmark(values: Any) -> None:
    from tflite_tools.benchmarking.dispatch import benchmark

    _required(values, "model")
    result = benchmark(
        values.model,
        values.target,
        num_threads=values.num_threads,
        num_runs=values.num_runs,
        warmup_runs=values.warmup_runs,
        op_profile=values.op_profile,
        **target_options(values, values.target),
    )
    write_pictures(values)
    _print(values, result)


def _define_c_array(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string("output_dir", ".", "The folder to write to.", flag_values=values)
    flags.DEFINE_string("name", "model", "Name of the array and of the two files.", flag_values=values)
    flags.DEFINE_bool(
        "firmware", False, "Also write the arena, the operators and a README.", flag_values=values
    )


def _c_array(values: Any) -> None:
    from tflite_tools.c_source import c_array

    _required(values, "model")
    artifact = _load_model(values.model)
    paths = [
        str(path) for path in c_array(artifact, values.output_dir, values.name, firmware=values.firmware)
    ]
    if values.firmware:
        folder = pathlib.Path(values.output_dir)
        paths += [str(folder / f"{values.name}_firmware.h"), str(folder / "README.md")]
    print(json.dumps({"files": paths}) if values.json else "\n".join(paths))


def _define_app_code(values: flags.FlagValues) -> None:
    _common(values)
    flags.DEFINE_string(
        "language", None, "kotlin, kotlin_compiled_model, java, swift or cpp.", flag_values=values
    )
    flags.DEFINE_string("class_name", "Model", "Name of the class.", flag_values=values)
    flags.DEFINE_string("output", None, "Write to this file and not to standard output.", flag_values=values)


def _app_code(values: Any) -> None:
    from tflite_tools.app_source import app_code

    _required(values, "model", "language")
    name = pathlib.Path(values.model).name
    text = app_code(_load_model(values.model), values.language, file_name=name, class_name=values.class_name)
    if values.output:
        pathlib.Path(values.output).write_text(text, encoding="utf-8")
        text = values.output
    print(json.dumps({"files" if values.output else "code": text}) if values.json else text)


def _define_report(values: flags.FlagValues) -> None:
    flags.DEFINE_list("input", [], "A report.json, or several, separated by commas.", flag_values=values)
    flags.DEFINE_list("models", [], "Or .tflite files to measure, the reference first.", flag_values=values)
    flags.DEFINE_string("data", None, "With --models: an .npz file with arrays x and y.", flag_values=values)
    flags.DEFINE_bool("op_profile", False, "With --models: also measure every operator.", flag_values=values)
    flags.DEFINE_string("html", None, "Write the page here.", flag_values=values)
    flags.DEFINE_string("markdown", None, "Write Markdown here.", flag_values=values)
    flags.DEFINE_string("plots", None, "Write the charts as PNG files to this folder.", flag_values=values)
    flags.DEFINE_string("title", None, "Title; default: that of the first report.", flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of tables.", flag_values=values)


def _report(values: Any) -> None:
    from tflite_tools.report import read_report
    from tflite_tools.report_building import report_of_models, stage_names
    from tflite_tools.report_merging import merge_reports

    if not values.input and not values.models:
        raise UsageError("--input or --models is missing.")
    x, y = load_arrays(values.data, "x", "y") if values.data else (None, None)
    reports = [read_report(path) for path in values.input]
    if values.models:
        models = {name: _load_model(path) for name, path in stage_names(values.models).items()}
        reports.append(report_of_models(models, x, y, op_profile=values.op_profile))
    report = merge_reports(reports, title=values.title)
    if values.html:
        report.write_html(values.html)
    if values.markdown:
        target = pathlib.Path(values.markdown)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(report.to_markdown(), encoding="utf-8")
    if values.plots:
        report.write_plots(values.plots)
    _print(values, report)


_COMMANDS = {
    "convert": _Command("convert a Keras model to a .tflite file", _define_convert, _convert),
    "inspect": _Command("what a .tflite file contains", _define_inspect, _inspect),
    "evaluate": _Command("accuracy of a .tflite file on labeled data", _define_evaluate, _evaluate),
    "compare": _Command("how far a .tflite file is from another model", _define_compare, _compare),
    "benchmark": _Command("latency and memory of a .tflite file", _define_benchmark, _benchmark),
    "matrix": _Command("models x threads x delegates in one table", define_matrix, run_matrix),
    "c_array": _Command("a .tflite file as C source for a microcontroller", _define_c_array, _c_array),
    "app_code": _Command("code that runs a .tflite file in an app", _define_app_code, _app_code),
    "report": _Command(
        "a page, Markdown or charts from .tflite or report.json files", _define_report, _report
    ),
}
