"""Makes the tables of docs/teacher_cache.md out of what the two benchmarks of the cache have stored.

    python benchmarks/teacher_cache_tables.py            # rewrite the tables of the page
    python benchmarks/teacher_cache_tables.py --check    # fail where the page differs from the results
    python benchmarks/teacher_cache_tables.py --print

The flags are those of tables.py. A table stands between `<!-- table: NAME -->` and `<!-- end -->`. The bytes and hours
for ImageNet are worked out from the measured rates and the assumptions at the top of this file.
"""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app

from benchmarks.common import markdown, percent
from benchmarks.tables import by_seed, column, read, run

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "teacher_cache.md"

# {name: (images, classes, key of the measured build with as many classes)}
DATA_SETS = {
    "ImageNet-1k": (1_281_167, 1_000, "size/1000000/1000"),
    "ImageNet-21k": (14_197_122, 21_841, "size/10000/21841"),
}
VIEWS = (10, 100)
# Assumed: a teacher like ResNet-50 at 224 x 224, on the processor that the rates were measured on ...
TEACHER_MACS = 4.1e9
# ... and one on an accelerator that answers so many images a second.
ACCELERATOR_IMAGES_PER_S = 2_000
TOP_K_BYTES = 20 * (2 + 2) + 4


def speed() -> str:
    """A row for each pair of student and teacher."""
    rows = []
    for name, found in sorted(_part("steps").items(), key=lambda item: item[1]["student_macs"]):
        teachers = sorted(found["teachers"].values(), key=lambda teacher: teacher["macs_by_student"])
        parameters, macs = f"{found['student_parameters']:,}", f"{found['student_macs'] / 1e6:.1f} M"
        rows += [
            {
                "student": f"{name}, {parameters} parameters, {macs} MACs",
                "plain, ms a step": f"{found['plain_ms_per_step']:.0f}",
                "teacher's MACs": f"{teacher['macs_by_student']:.0f}x",
                "live / plain": f"{teacher['live_by_plain']:.2f}",
                "cached / live": f"{teacher['cached_by_live']:.2f}",
                "cached / plain": f"{found['cached_by_plain']:.2f}",
                "cached / plain on the cache's pipeline": f"{found['cached_by_plain_on_its_pipeline']:.2f}",
            }
            for teacher in teachers
        ]
    return markdown(rows)


def building() -> str:
    """A row for each build."""
    return markdown(
        [
            {
                "build": f"{name}, teacher of {found['teacher_macs'] / 1e6:.0f} M MACs",
                "examples": f"{found['examples']:,}",
                "examples/s": f"{found['examples_per_s']:,.0f}",
                "throughput by that of the bare loop": f"{found['build_by_bare_throughput']:.2f}",
            }
            for name, found in sorted(_part("build").items(), key=lambda item: item[1]["teacher_macs"])
        ]
    )


def sizes() -> str:
    """A row for each number of examples."""
    rows = sorted(_part("size").values(), key=lambda found: (found["classes"], found["examples"]))
    return markdown(
        [
            {
                "examples": f"{found['examples']:,}",
                "classes": f"{found['classes']:,}",
                "bytes / payload": f"{found['bytes_by_payload']:.4f}",
                "build, µs an example": f"{found['build_us_per_example']:.1f}",
                "step, ms": f"{found['step_ms']:.2f}",
                "start of an epoch, ms": f"{found['epoch_start_ms']:.0f}"
                if "epoch_start_ms" in found
                else "-",
                "peak memory without the data, MB": f"{found['peak_resident_mb']:,.0f}",
            }
            for found in rows
        ]
    )


def accuracy(protocol: str) -> str:
    """A row for each number of views."""
    entries = read(f"teacher_cache_accuracy_{protocol}")["entries"]
    kinds = {
        "K = 1, no augmentation": "cached, one view: the images as they are",
        "K = 1": "cached, one augmented view",
        "K = 4": "cached, 4 views",
        "K = 8": "cached, 8 views",
        "live": "live teacher, a new view in every epoch",
    }
    rows = []
    for kind, text in kinds.items():
        runs = by_seed(entries, kind)
        if runs:
            rows.append(
                {
                    "teacher": text,
                    "test accuracy %": percent(column(runs, "accuracy")),
                    "on the training images %": percent(column(runs, "train_accuracy")),
                    "seeds": str(len(runs)),
                }
            )
    return markdown(rows)


def top_k(who: str) -> str:
    """A row for each k."""
    found = read("teacher_cache_top_k")["entries"].get("errors", {}).get(who)
    rows = []
    for k, errors in sorted((found["errors"] if found else {}).items(), key=lambda item: int(item[0])):
        row = {"k": k, "kept mass at T = 1": f"{errors[0]['kept_mass']:.4f}"}
        row |= {f"KL at T = {error['temperature']:g}": f"{error['kl']:.4f}" for error in errors}
        row |= {"total variation at T = 4": f"{errors[2]['total_variation']:.4f}"}
        rows.append(row)
    return markdown(rows)


def imagenet() -> str:
    """Bytes and hours from the measured rates."""
    measured = read("teacher_cache")["entries"]
    plain = [value for key, value in measured.items() if key.startswith("build/") and "augmented" not in key]
    build = max(plain, key=lambda found: found["teacher_macs"], default=None)
    rows = []
    for name, (images, classes, key) in DATA_SETS.items():
        own = measured.get(key)
        if own is None or build is None:
            continue
        overhead = measured["size/1000000/1000"]["bytes_by_payload"]
        for views in VIEWS:
            count = images * views
            own_h = count * own["build_us_per_example"] / 3.6e9
            rows.append(
                {
                    "data": f"{name}, {images:,} images",
                    "views": str(views),
                    "20 largest": _bytes(count * TOP_K_BYTES * overhead),
                    "all logits": _bytes(count * 2 * classes),
                    "h, the cache's own work": f"{own_h:,.{2 if own_h < 1 else 0}f}",
                    f"h, teacher at {ACCELERATOR_IMAGES_PER_S:,}/s": f"{count / ACCELERATOR_IMAGES_PER_S / 3600:,.0f}",
                    f"h, teacher here at {build['macs_per_s'] / TEACHER_MACS:,.0f}/s": (
                        f"{count * TEACHER_MACS / build['macs_per_s'] / 3600:,.0f}"
                    ),
                }
            )
    return markdown(rows)


def _part(part: str) -> dict[str, Any]:
    entries = read("teacher_cache")["entries"]
    return {key.partition("/")[2]: value for key, value in entries.items() if key.startswith(f"{part}/")}


def _bytes(count: float) -> str:
    """Decimal units.

    Example:
      >>> _bytes(1.08e9), _bytes(6.2e13)
      ('1.1 GB', '62.0 TB')
    """
    return f"{count / 1e9:,.1f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed,
    "building": building,
    "sizes": sizes,
    "accuracy_few": lambda: accuracy("few"),
    "accuracy_many": lambda: accuracy("many"),
    "top_k_trained": lambda: top_k("trained"),
    "top_k_synthetic": lambda: top_k("synthetic"),
    "imagenet": imagenet,
}


def main(argv: list[str]) -> None:
    """Writes, checks or prints."""
    run(argv, PAGE, TABLES)


if __name__ == "__main__":
    app.run(main)
