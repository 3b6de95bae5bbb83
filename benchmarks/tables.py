"""Makes the tables of docs/benchmarks.md out of the JSON files under benchmarks/results.

    python benchmarks/tables.py                        # rewrite docs/benchmarks.md
    python benchmarks/tables.py --check                # fail if the page differs from the results
    python benchmarks/tables.py --results=FOLDER --print     # print the tables of other results

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is outside the marks is written by hand.
No figure is typed: a table is remade from the file of its name.
"""

import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app, flags

from benchmarks.common import filled, markdown, percent, points
from benchmarks.stored import RESULTS

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
_CHECK = flags.DEFINE_bool("check", False, "Change nothing; fail where the page is out of date.")
_PRINT = flags.DEFINE_bool("print", False, "Print the tables instead of writing them into the page.")
_FOLDER = flags.DEFINE_string("results", str(RESULTS), "The folder of the JSON files.")

METHODS = {
    "alone": "labels alone",
    "keras": "keras.distillation as it comes",
    "keras_kld": "keras.distillation with `loss=KLDivergence()`",
    "soft": "keras_kd, soft targets, the same settings",
    "soft_T1_half": "keras_kd, soft targets, T = 1, half labels",
    "soft_T2_no_labels": "keras_kd, soft targets, T = 2, no labels",
    "correlation": "keras_kd, correlation, half labels",
    "correlation_soft": "keras_kd, correlation and soft targets, a third labels",
    "standardized": "keras_kd, standardized logits",
}
OURS = ("soft", "soft_T1_half", "soft_T2_no_labels", "correlation", "correlation_soft", "standardized")
Stored = dict[str, Any]


def read(name: str, folder: str | pathlib.Path = RESULTS) -> Stored:
    """{"settings": ..., "entries": ...}; empty where there is no such file."""
    path = pathlib.Path(folder) / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {"settings": {}, "entries": {}}


def by_seed(entries: dict[str, Any], prefix: str, suffix: str = "") -> dict[int, dict[str, Any]]:
    """{seed: entry} of the keys `prefix/<seed>suffix`."""
    pattern = re.compile(re.escape(prefix) + r"/(\d+)" + re.escape(suffix))
    found = {}
    for key, value in entries.items():
        match = pattern.fullmatch(key)
        if match:
            found[int(match.group(1))] = value
    return dict(sorted(found.items()))


def column(runs: dict[int, dict[str, Any]], name: str) -> list[float]:
    """One figure of every seed that has it."""
    return [run[name] for run in runs.values() if run.get(name) is not None]


def paired(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> list[float]:
    """Differences of accuracy, seed by seed, where both are there."""
    return [run["accuracy"] - base[seed]["accuracy"] for seed, run in runs.items() if seed in base]


def count(values: list[float], text: str = "{:,.0f}") -> str:
    """The median, or a dash."""
    return text.format(statistics.median(values)) if values else "-"


def quality(data: Stored) -> str:
    """Two tables for each size of student: accuracy by method; and the compressed files."""
    entries, setting = data["entries"], data["settings"]
    if not setting:
        return markdown([])
    teacher = entries.get("teacher", {})
    parts = [
        f"{setting['examples']:,} training images in {setting['views']} views each ({setting['augmentation']}), "
        f"{setting['epochs']} epochs of batches of {setting['batch_size']}, Adam from {setting['learning_rate']:g}; "
        f"teacher of {teacher.get('parameters', 0):,} parameters, "
        f"{100 * teacher.get('accuracy', 0):.2f} %. Compression: {setting['compress_examples']:,} of these images, "
        f"{setting['compress_epochs']} epochs for pruning and as many for quantization."
    ]
    for size in ("2k", "12k", "60k"):
        base = by_seed(entries, f"{size}/alone")
        if not base:
            continue
        rows, files = [], []
        for method, text in METHODS.items():
            runs = by_seed(entries, f"{size}/{method}")
            if runs:
                rows.append(
                    {
                        "training": text,
                        "accuracy %": percent(column(runs, "accuracy")),
                        "over labels alone": "" if method == "alone" else points(paired(runs, base)),
                        "held out %": percent(column(runs, "held_out_accuracy")),
                        "seeds": str(len(runs)),
                    }
                )
            files += _files(entries, size, method, text)
        parameters = next(iter(base.values()))["parameters"]
        parts.append(f"**Student of {parameters:,} parameters**\n\n{markdown(rows)}")
        if files:
            parts.append(f"The same students, pruned to 75 % zeros, int8 `.tflite`:\n\n{markdown(files)}")
    return "\n\n".join(parts)


def best_of_ours(entries: dict[str, Any], size: str) -> str | None:
    """The method of keras_kd with the highest mean on the held-out training images."""
    means = {}
    for method in OURS:
        found = column(by_seed(entries, f"{size}/{method}"), "held_out_accuracy")
        if found:
            means[method] = statistics.fmean(found)
    return max(means, key=lambda method: means[method]) if means else None


def _files(entries: dict[str, Any], size: str, method: str, text: str) -> list[dict[str, str]]:
    """A row for each way to compress the students of one method."""
    rows = []
    floats = by_seed(entries, f"{size}/{method}")
    alone = by_seed(entries, f"{size}/{method}", "/labels_alone")
    no_teacher = by_seed(entries, f"{size}/alone", "/labels_alone")
    ways = (("labels_alone", "TF-MOT alone"), ("with_teacher", "keras_kd, with the teacher"))
    for kind, way in ways:
        runs = by_seed(entries, f"{size}/{method}", f"/{kind}")
        if not runs:
            continue
        pruned = {seed: {"accuracy": run["pruned_float_accuracy"]} for seed, run in runs.items()}
        rows.append(
            {
                "student": text,
                "pruned and quantized by": way,
                "file's accuracy %": percent(column(runs, "accuracy")),
                "over TF-MOT alone": "" if kind == "labels_alone" else points(paired(runs, alone)),
                "over no teacher": "" if runs == no_teacher else points(paired(runs, no_teacher)),
                "over its float student": points(paired(runs, floats)),
                "over the pruned float": points(paired(runs, pruned)),
                "bytes, gzip": f"{count(column(runs, 'size_bytes'))}, {count(column(runs, 'gzip_bytes'))}",
                "µs": count(column(runs, "latency_us"), "{:.1f}"),
                "seeds": str(len(runs)),
            }
        )
    return rows


def every_loss(data: Stored) -> str:
    """A row for each loss, the best first."""
    entries, setting = data["entries"], data["settings"]
    names = sorted({key.rsplit("/", 1)[0] for key in entries})
    base = by_seed(entries, "labels alone")
    runs = {name: by_seed(entries, name) for name in names}
    weights = data["settings"].get("weights", {})
    best_first = sorted(names, key=lambda name: -statistics.fmean(column(runs[name], "accuracy")))
    if not names:
        return markdown([])
    protocol = (
        f"{setting['examples']:,} training images in {setting['views']} views each ({setting['augmentation']}), "
        f"{setting['epochs']} epochs; student of {setting['student_parameters']:,} parameters.\n\n"
    )
    return protocol + markdown(
        [
            {
                "loss": f"`{name}`" if name in weights else name,
                "weight": f"{weights[name]:g}" if name in weights else "",
                "accuracy %": percent(column(runs[name], "accuracy")),
                "over labels alone": "" if name not in weights else points(paired(runs[name], base)),
                "seeds": str(len(runs[name])),
            }
            for name in best_first
        ]
    )


TASKS = {
    "resnet8": "ResNet8, CIFAR-10-JPEG",
    "har": "accelerometer (st_har, split by file)",
    "vowels": "JapaneseVowels",
}


def microcontrollers(data: Stored) -> str:
    """One table of the tasks with an int8 file, and one of few labels."""
    entries, rows = data["entries"], []
    for part, text in TASKS.items():
        teacher = entries.get(f"{part}/teacher")
        base = by_seed(entries, f"{part}/alone")
        for method in ("alone", "distilled"):
            runs = by_seed(entries, f"{part}/{method}")
            files = by_seed(entries, f"{part}/{method}", "/int8")
            if not runs or teacher is None:
                continue
            rows.append(
                {
                    "task": text,
                    "training": method,
                    "teacher %": f"{100 * teacher['accuracy']:.2f}",
                    "student %": percent(column(runs, "accuracy")),
                    "over alone": "" if method == "alone" else points(paired(runs, base)),
                    "int8 file %": percent(column(files, "accuracy")),
                    "int8 file, bytes": count(column(files, "size_bytes")),
                    "parameters": count(column(files, "parameters")),
                    "seeds": str(len(runs)),
                }
            )
    base = by_seed(entries, "few_labels/labels")
    few = []
    for name in ("labels", "labels and teacher", "teacher, no labels"):
        runs = by_seed(entries, f"few_labels/{name}")
        if runs:
            few.append(
                {
                    "what the student sees": {
                        "labels": "1,000 labelled images",
                        "labels and teacher": "the same images, labels and teacher",
                        "teacher, no labels": "all images without labels, teacher",
                    }[name],
                    "accuracy %": percent(column(runs, "accuracy")),
                    "over the labels alone": "" if name == "labels" else points(paired(runs, base)),
                    "seeds": str(len(runs)),
                }
            )
    return markdown(rows) + (f"\n\n{markdown(few)}" if few else "")


def step_time(data: Stored) -> str:
    """Milliseconds of each variant against keras.distillation's."""
    rows = []
    for pair, found in data["entries"].items():
        for variant, milliseconds in found["milliseconds"].items():
            rows.append({"pair": pair, "what": variant, "ms": f"{milliseconds:.1f}"})
    ratios = [
        {"pair": pair, "ratio": what, "measured": f"{ratio:.2f}", "aimed at": f"≤ {goal:g}"}
        for pair, found in data["entries"].items()
        for what, (ratio, goal) in found["ratios"].items()
    ]
    return f"{markdown(rows)}\n\n{markdown(ratios)}"


def cached_steps(data: Stored) -> str:
    """A row for each pair of student and teacher: a step from the cache against the live teacher and plain `fit`."""
    return markdown(
        [
            {
                "student": f"{found['student_parameters']:,} parameters",
                "teacher's MACs by the student's": f"{teacher['macs_by_student']:.0f}x",
                "keras.distillation, live / plain": f"{teacher['live_by_plain']:.2f}",
                "cached / plain": f"{found['cached_by_plain']:.2f}",
                "cached / live": f"{teacher['cached_by_live']:.2f}",
            }
            for key, found in data["entries"].items()
            if key.startswith("steps/")
            for teacher in sorted(found["teachers"].values(), key=lambda teacher: teacher["macs_by_student"])
        ]
    )


def tools(data: Stored) -> str:
    """A row for each comparison of tflite_tools."""
    return markdown(
        [
            {
                "what": name,
                "ours": _duration(row["ours_s"]),
                "theirs": _duration(row["theirs_s"]),
                "ours / theirs": f"{row['ratio']:.3g}",
                "aimed at": row["target"],
                "reached": "yes" if row["reached"] else "no",
            }
            for name, row in data["entries"].items()
        ]
    )


def peer_values(data: Stored) -> str:
    """A row for each loss and peer: both values, and how far values and gradients lie apart."""
    rows = [
        {
            "loss": name,
            "peer": peer,
            "ours": f"{found['ours']:.6g}",
            "the peer's": f"{found['theirs']:.6g}",
            "value apart": f"{found['value_difference']:.1e}",
            "gradient apart": f"{found['gradient_difference']:.1e}",
        }
        for peer in ("torchdistill", "keras.distillation")
        for name, found in data["entries"].get(peer, {}).items()
    ]
    if "keras_default" in data["entries"]:
        found = data["entries"]["keras_default"]
        rows.append(
            {
                "loss": "soft targets, T = 4",
                "peer": "keras.distillation as it comes",
                "ours": f"{found['ours']:.6g}",
                "the peer's": f"{found['theirs']:.6g}",
                "value apart": f"{found['value_difference']:.1e}",
                "gradient apart": f"{found['gradient_difference']:.1e}",
            }
        )
    return markdown(rows)


def _duration(seconds: float) -> str:
    """Seconds, milliseconds or microseconds."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


TABLES: dict[str, Callable[[Stored], str]] = {
    "quality_fashion": quality,
    "quality_patient": quality,
    "losses": every_loss,
    "microcontrollers": microcontrollers,
    "step_time": step_time,
    "teacher_cache": cached_steps,
    "tflite_tools": tools,
    "peer_values": peer_values,
}


def run(argv: list[str], page: pathlib.Path, makers: Mapping[str, Callable[[], str]]) -> None:
    """What a script of tables does by the flags above: writes its page, checks it, or prints.

    Args:
      argv: of `main`.
      page: whose tables they are.
      makers: name of a table -> how it is made.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if _PRINT.value:
        for name, make in makers.items():
            print(f"## {name}\n\n{make()}\n")
        return

    def made(name: str) -> str:
        if name not in makers:
            raise ValueError(f"There is no table {name!r}; there are {', '.join(makers)}.")
        return makers[name]()

    old = page.read_text()
    new = filled(old, made)
    if _CHECK.value and new != old:
        raise SystemExit(f"{page} is out of date: run python benchmarks/{pathlib.Path(argv[0]).name}")
    if not _CHECK.value:
        page.write_text(new)


def main(argv: list[str]) -> None:
    """Writes, checks or prints."""
    run(argv, PAGE, {name: lambda n=name: TABLES[n](read(n, _FOLDER.value)) for name in TABLES})  # type: ignore[misc]


if __name__ == "__main__":
    app.run(main)
