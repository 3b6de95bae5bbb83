"""The tables of docs/selective.md, made out of what benchmarks/selective.py stored. No figure is typed."""

import pathlib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.common import filled, markdown, percent, points

#: Name in the results and of the teacher's file: name in the text.
DATASETS = {"fashion": "Fashion-MNIST", "cifar10_jpeg": "CIFAR-10-JPEG"}
PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "selective.md"
Runs = dict[int, dict[str, Any]]


class Stored:
    """The entries of one data set.

    Args:
      data: {"settings", "entries"} of the file.
      dataset: of `DATASETS`.
    """

    def __init__(self, data: dict[str, Any], dataset: str):
        prefix = f"{dataset}/"
        self.entries = {
            key[len(prefix) :]: entry for key, entry in data["entries"].items() if key.startswith(prefix)
        }
        self.settings = data["settings"]

    def runs(self, name: str) -> Runs:
        """{seed: entry} of one arm."""
        found = {}
        for key, entry in self.entries.items():
            arm, _, seed = key.rpartition("/")
            if arm == name:
                found[int(seed)] = entry
        return dict(sorted(found.items()))

    def arms(self, part: str) -> list[str]:
        """Names of the arms of a part that have entries."""
        return sorted({key.rpartition("/")[0] for key in self.entries if key.startswith(f"{part}/")})


def of(runs: Runs, field: str = "accuracy") -> list[float]:
    """One figure of every seed."""
    return [entry[field] for entry in runs.values() if entry.get(field) is not None]


def differences(runs: Runs, base: Runs) -> list[float]:
    """Of accuracy, seed by seed."""
    return [entry["accuracy"] - base[seed]["accuracy"] for seed, entry in runs.items() if seed in base]


#: Half the width of Student's 95 % interval in standard errors, by the number of values.
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}


def verdict(values: list[float]) -> str:
    """Whether Student's 95 % interval of the mean difference leaves out zero.

    Example:
      >>> verdict([0.010, 0.012, 0.011]), verdict([-0.010, 0.012, 0.001]), verdict([0.01])
      ('better', 'no difference beyond the seeds', 'one seed: none')
    """
    if len(values) < 2:
        return "one seed: none"
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    if abs(mean) <= STUDENT.get(len(values), 2.3) * spread / len(values) ** 0.5:
        return "no difference beyond the seeds"
    return "better" if mean > 0 else "worse"


def compared(stored: Stored, arms: Iterable[tuple[str, str]], base: str) -> str:
    """A row for each (text, arm), against one of them."""
    rows = []
    reference = stored.runs(base)
    for text, arm in arms:
        runs = stored.runs(arm)
        if runs:
            found = differences(runs, reference)
            rows.append(
                {
                    "": text,
                    "accuracy %": percent(of(runs)),
                    "difference": "" if arm == base else points(found),
                    "verdict": "" if arm == base else verdict(found),
                    "seeds": str(len(runs)),
                }
            )
    return markdown(rows)


def pairs(stored: Stored) -> str:
    """Accuracy by choice of layers, and what the choice costs."""
    arms = [
        ("the teacher's outputs alone", "pairs/outputs"),
        ("labels alone", "pairs/labels alone"),
        *(
            (f"outputs + {name}", f"pairs/{name}")
            for name in (
                "last pair",
                "3 evenly spaced pairs",
                "every teacher layer",
                "3 pairs by the ranking",
            )
        ),
    ]
    text = compared(stored, arms, "pairs/outputs")
    ranking, chosen = stored.runs("ranking"), stored.runs("pairs/3 pairs by the ranking")
    for name in ("last pair", "3 evenly spaced pairs"):
        found = differences(chosen, stored.runs(f"pairs/{name}"))
        if found:
            text += f"\n\nThe ranking's pairs against {name}: {points(found)} points ({verdict(found)})."
    if ranking and chosen:
        ratio = statistics.fmean(of(ranking, "seconds")) / statistics.fmean(of(chosen, "seconds"))
        text += (
            f"\n\nCost of the ranking: {ratio:.1f} times the seconds of the run of "
            f"{stored.settings['epochs']} epochs that it chose layers for."
        )
    tried = [
        pair["contribution"]
        for entry in ranking.values()
        for pair in entry["ranking"]["pairs"]
        if pair["contribution"] is not None
    ]
    if tried:
        text += f"\n\nContributions of the {len(tried)} pairs tried: {min(tried):+.1%} to {max(tried):+.1%}."
    for seed, entry in ranking.items():
        picks = ", ".join(f"{teacher} → {student}" for teacher, student in entry["pairs"])
        text += f"\n\nChosen with seed {seed}: {picks}."
    return text


def balance(stored: Stored) -> str:
    """Accuracy by who sets the weights of the three chosen pairs."""
    arms = [
        ("fixed, 1 / mean square", "pairs/3 pairs by the ranking"),
        *((arm.partition("/")[2], arm) for arm in stored.arms("balance")),
    ]
    arms = [
        (text if "Gradient" in text else f"fixed, {text.removeprefix('fixed, ')}", arm) for text, arm in arms
    ]
    return compared(stored, arms, "pairs/3 pairs by the ranking")


def confidence(stored: Stored) -> str:
    """Accuracy by example weights."""
    text = compared(
        stored,
        [("all examples alike", "pairs/outputs"), ("by confidence_weights", "confidence/confidence_weights")],
        "pairs/outputs",
    )
    right = of(stored.runs("confidence/confidence_weights"), "teacher_right")
    return text + (f"\n\nThe teacher is right on {right[0]:.1%} of the training images." if right else "")


def criteria(stored: Stored) -> str:
    """Start and end by keep and criterion."""
    rows = []
    arms = stored.arms("criteria")
    by_start = {arm: of(stored.runs(arm), "start")[0] for arm in arms}
    for arm in sorted(arms, key=lambda name: (-float(name.split("/")[1]), by_start[name])):
        _, keep, name = arm.split("/")
        runs = stored.runs(arm)
        text = "l1, no inputs given" if name == "plain" else name
        rows.append(
            {
                "keep": keep,
                "criterion": text,
                "start %": f"{100 * by_start[arm]:.2f}",
                "after one epoch %": percent(of(runs)),
                "seeds": str(len(runs)),
            }
        )
    return markdown(rows)


def carved(stored: Stored) -> str:
    """Carved against from scratch."""
    runs = stored.runs("carved/carved, labels")
    arms = [
        (name, f"carved/{name}")
        for name in (
            "scratch, labels",
            "scratch, labels and teacher",
            "carved, labels",
            "carved, labels and teacher",
        )
    ]
    text = compared(stored, arms, "carved/scratch, labels and teacher")
    start = of(runs, "start")
    return text + (f"\n\nThe carved student before any training: {100 * start[0]:.2f} %." if start else "")


def sizes(stored: Stored) -> str:
    """Accuracy against cost and latency."""
    latency = stored.entries.get("latency", {})
    full = statistics.median(latency["1.0"]) if latency else None
    rows = []
    arms = [arm.partition("/")[2] for arm in stored.arms("sizes")]
    names = sorted(arms, key=lambda name: -float(name) if name[0].isdigit() else 1)
    for name in names:
        runs = stored.runs(f"sizes/{name}")
        first = runs.get(0, {})
        median = statistics.median(latency[name]) if name in latency else None
        rows.append(
            {
                "": f"keep {name}"
                if name[0].isdigit()
                else "all channels, 75 % of the weights zero, not trained",
                "accuracy %": percent(of(runs)),
                "parameters": f"{first['parameters']:,}" if first else "-",
                "MACs": f"{first['macs']:,}" if first else "-",
                "gzip bytes": f"{first['gzip_bytes']:,}" if first else "-",
                "µs": "-" if median is None else f"{median:.0f}",
                "times as fast": "-" if median is None or not full else f"{full / median:.2f}",
                "seeds": str(len(runs)),
            }
        )
    return markdown(rows)


TABLES: dict[str, Callable[[Stored], str]] = {
    "pairs": pairs,
    "balance": balance,
    "confidence": confidence,
    "criteria": criteria,
    "carved": carved,
    "sizes": sizes,
}


def rendered(data: dict[str, Any], datasets: Iterable[str], parts: Iterable[str]) -> str:
    """The tables as text."""
    return "\n\n".join(
        f"## {DATASETS[dataset]}: {part}\n\n{TABLES[part](Stored(data, dataset))}"
        for part in parts
        if part in TABLES
        for dataset in datasets
    )


def write(data: dict[str, Any]) -> None:
    """Put the tables into the guide."""

    def part(name: str) -> str:
        return "\n\n".join(
            f"**{text}**\n\n{TABLES[name](Stored(data, dataset))}" for dataset, text in DATASETS.items()
        )

    PAGE.write_text(filled(PAGE.read_text(), part))
