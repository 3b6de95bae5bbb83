"""Selective distillation, measured: do chosen layers teach better, and what is a carved student worth?

    python benchmarks/selective.py                 # 6,400 training images, 3 epochs, 3 seeds: the guide's tables
    python benchmarks/selective.py --datasets=fashion --parts=pairs --minutes=5       # run it again to go on
    python benchmarks/selective.py --full          # all training images, 10 epochs, 5 seeds: many hours
    python benchmarks/selective.py --print         # no runs: the tables of what is stored

Parts:
  pairs       layers chosen by rank_layers against the last layer only, evenly spaced pairs, every teacher layer, and
              the teacher's outputs alone; same student, same steps, the same order of examples.
  balance     weights by GradientBalanced against fixed ones, on the chosen pairs.
  confidence  examples weighted by confidence_weights against all alike.
  criteria    where carved students start from, by criterion and by whether kernels are fitted, and where one epoch of
              distillation takes them.
  carved      a student carved out of the teacher against the same shape from scratch, with and without its teacher.
  sizes       accuracy of five sizes of carved student, and a teacher of the same shape with three quarters of its
              weights zero; makes their float32 .tflite files.
  latency     times those files; alone on the machine.

Every run is an entry of benchmarks/results/selective.json (selective_full.json) and is not made twice. --data_dir holds
the teachers and CIFAR-10-JPEG, which is CIFAR-10 that went through JPEG: its figures are not CIFAR-10's. Fashion-MNIST
comes from keras.datasets. The tables stand in docs/selective.md; --write puts them there.
"""

import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
from absl import app, flags

import keras_kd
import tflite_tools
from benchmarks import selective_tables
from benchmarks.common import Clock, cache_dir
from benchmarks.selective_runs import (
    BATCH,
    Bench,
    by_ranking,
    evenly_spaced,
    every_layer,
    features,
    last_pair,
    outputs,
)
from benchmarks.selective_tables import DATASETS
from benchmarks.stored import Results
from keras_kd.selection import confidence_weights

Entries = Iterator[tuple[str, Callable[[], Any]]]

KEEPS = (0.25, 0.5, 0.75)
SIZES = (1.0, 0.75, 0.5, 0.25, 0.125)
CARVED = 0.25
SPARSITY = 0.75
#: (criterion, whether kernels are fitted); "plain" is l1 without inputs: statistics and kernels as they were.
CRITERIA = (
    ("plain", False),
    ("l1", False),
    ("bn_scale", False),
    ("activation", False),
    ("taylor", False),
    ("l1", True),
    ("activation", True),
    ("taylor", True),
)


def pairs_part(bench: Bench, seed: int) -> Entries:
    """Which layers to teach."""

    def alone() -> Any:
        return bench.train(bench.student(seed), seed)

    def taught() -> Any:
        return bench.train(bench.student(seed), seed, [outputs()])

    yield f"pairs/labels alone/{seed}", alone
    yield f"pairs/outputs/{seed}", taught
    for name, choose in (
        ("last pair", last_pair),
        ("3 evenly spaced pairs", evenly_spaced),
        ("3 pairs by the ranking", by_ranking),
        ("every teacher layer", every_layer),
    ):
        yield f"pairs/{name}/{seed}", functools.partial(bench.trained_on, seed, choose)


def balance_part(bench: Bench, seed: int) -> Entries:
    """Who sets the weights; 1 / mean square is the last arm of `pairs`."""
    for factor in (0.1, 10.0):
        fixed = functools.partial(bench.trained_on, seed, by_ranking, factor)
        yield f"balance/{factor:g} / mean square/{seed}", fixed

    def balanced(ratio: float) -> Any:
        names = by_ranking(bench.ranking(seed))
        weights = [1.0, *(keras_kd.schedules.GradientBalanced(ratio / len(names)) for _ in names)]
        return bench.train(bench.student(seed), seed, [outputs(), *features(names)], weights)

    for ratio in (0.3, 1.0):
        yield f"balance/GradientBalanced, ratio {ratio:g} in all/{seed}", functools.partial(balanced, ratio)


def confidence_part(bench: Bench, seed: int) -> Entries:
    """Examples by the teacher's confidence; all alike is an arm of `pairs`."""

    def weighted() -> Any:
        x, y = bench.data
        answers = bench.cache.targets(np.arange(len(x)))["outputs"]
        weight = confidence_weights(answers, y, temperature=2.0)
        entry = bench.train(bench.student(seed), seed, [outputs()], sample_weight=weight)
        return {**entry, "teacher_right": float(np.mean(np.argmax(answers, -1) == y))}

    yield f"confidence/confidence_weights/{seed}", weighted


def criteria_part(bench: Bench, seed: int) -> Entries:
    """Start and end of carved students."""

    def run(keep: float, criterion: str, reconstruct: bool) -> Any:
        student, start = bench.carved(keep, criterion, reconstruct=reconstruct)
        return {"start": start, **bench.train(student, seed, [outputs()], epochs=1)}

    for keep in KEEPS:
        for criterion, reconstruct in CRITERIA:
            name = criterion + (" + reconstruct" if reconstruct else "")
            yield f"criteria/{keep}/{name}/{seed}", functools.partial(run, keep, criterion, reconstruct)


def carved_part(bench: Bench, seed: int) -> Entries:
    """A quarter of the channels: carved or from scratch, with and without the teacher."""

    def run(start: str, losses: list[Any]) -> Any:
        student, before = bench.carved(CARVED)
        if start == "scratch":
            keras.utils.set_random_seed(seed)
            student = keras.models.clone_model(student)
        return {"start": before, **bench.train(student, seed, losses)}

    for start in ("scratch", "carved"):
        for name, losses in (("labels", []), ("labels and teacher", [outputs()])):
            yield f"carved/{start}, {name}/{seed}", functools.partial(run, start, losses)


def file_of(bench: Bench, name: str) -> pathlib.Path:
    """The float32 .tflite of one size, or of "unstructured"; made where it is not there."""
    path = bench.folder / f"{name}.tflite"
    if not path.is_file():
        model = with_zeros(bench.teacher) if name == "unstructured" else bench.carved(float(name))[0]
        tflite_tools.convert(model).save(path)
    return path


def with_zeros(teacher: keras.Model) -> keras.Model:
    """The teacher with the smallest weights of each kernel zero, channels as they were."""
    model = keras.models.clone_model(teacher)
    model.set_weights(teacher.get_weights())
    for weight in model.weights:
        if len(weight.shape) > 1:
            value = weight.numpy()
            weight.assign(np.where(np.abs(value) < np.quantile(np.abs(value), SPARSITY), 0.0, value))
    return model


def costs(bench: Bench, name: str) -> dict[str, Any]:
    """What the file of this size holds."""
    artifact = tflite_tools.load(file_of(bench, name))
    found = tflite_tools.inspect(artifact)
    return {"macs": found.macs, "size_bytes": artifact.size_bytes, "gzip_bytes": artifact.gzip_bytes}


def sizes_part(bench: Bench, seed: int) -> Entries:
    """Accuracy of five sizes; what does not depend on the seed stands with the first."""

    def run(keep: float) -> Any:
        student, start = bench.carved(keep)
        entry = {"start": start, "parameters": int(student.count_params())}
        if seed == 0:
            entry.update(costs(bench, str(keep)))
        if keep == 1.0:  # the teacher as it is
            return {**entry, "accuracy": entry["start"]}
        same = bench.results.entries.get(f"{bench.dataset}/carved/carved, labels and teacher/{seed}")
        if keep == CARVED and same:
            return {**entry, "accuracy": same["accuracy"], "seconds": same["seconds"]}
        return {**entry, **bench.train(student, seed, [outputs()])}

    def unstructured() -> Any:
        model = with_zeros(bench.teacher)
        entry = {"accuracy": bench.accuracy(model), "parameters": int(model.count_params())}
        return {**entry, **costs(bench, "unstructured")}

    for keep in SIZES:
        if keep < 1.0 or seed == 0:
            yield f"sizes/{keep}/{seed}", functools.partial(run, keep)
    if seed == 0:
        yield f"sizes/unstructured/{seed}", unstructured


def latency_part(bench: Bench, seed: int) -> Entries:
    """Five rounds over all files, one after the other, so that what slows the machine slows all of them."""

    def run() -> Any:
        names = [*map(str, SIZES), "unstructured"]
        rounds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(5):
            for name in names:
                latency = tflite_tools.benchmark(file_of(bench, name), num_threads=1).latency_us
                assert latency is not None and latency.median is not None
                rounds[name].append(latency.median)
        return rounds

    if seed == 0:
        yield "latency", run


PARTS: dict[str, Callable[[Bench, int], Entries]] = {
    "pairs": pairs_part,
    "balance": balance_part,
    "confidence": confidence_part,
    "criteria": criteria_part,
    "carved": carved_part,
    "sizes": sizes_part,
    "latency": latency_part,
}

_DATA = flags.DEFINE_string(
    "data_dir", os.environ.get("KERAS_KD_SHARED_DATA"), "Folder of teachers/*.keras and cifar10_jpeg/."
)
_CACHE = flags.DEFINE_string(
    "cache_dir", None, "For the teachers' answers and the files; default a temporary one."
)
_QUICK = flags.DEFINE_bool("quick", True, "6,400 training images, 3 epochs, 3 seeds; --noquick is --full.")
_FULL = flags.DEFINE_bool("full", False, "All training images, 10 epochs, 5 seeds.")
_DATASETS = flags.DEFINE_list("datasets", list(DATASETS), f"Of {', '.join(DATASETS)}.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}.")
_SEEDS = flags.DEFINE_list("seeds", None, "Numbers of the seeds; default 0,1,2, with --full 0 to 4.")
_MINUTES = flags.DEFINE_float("minutes", 0.0, "How long new runs may begin; 0 is without end.")
_PRINT = flags.DEFINE_bool("print", False, "Run nothing: print the tables of what is stored.")
_WRITE = flags.DEFINE_bool("write", False, "Run nothing: write the tables into docs/selective.md.")
flags.register_validator(
    "parts", lambda given: set(given) <= set(PARTS), f"parts must be of {', '.join(PARTS)}"
)
flags.register_validator(
    "datasets", lambda given: set(given) <= set(DATASETS), f"datasets must be of {', '.join(DATASETS)}"
)


def main(argv: list[str]) -> None:
    """Runs what is missing, and prints the tables."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    full = _FULL.value or not _QUICK.value
    length: dict[str, Any] = (
        {"train_images": None, "epochs": 10} if full else {"train_images": 6400, "epochs": 3}
    )
    seeds = [int(seed) for seed in _SEEDS.value] if _SEEDS.value else list(range(5 if full else 3))
    results = Results("selective_full" if full else "selective", {**length, "batch_size": BATCH})
    if not (_PRINT.value or _WRITE.value):
        if not _DATA.value or not pathlib.Path(_DATA.value).is_dir():
            print(f"Skipped: --data_dir must be the folder of the trained teachers, got {_DATA.value!r}.")
            return
        run_missing(results, length, seeds)
    data = {"settings": results.settings, "entries": results.entries}
    if _WRITE.value:
        selective_tables.write(data)
    else:
        print(selective_tables.rendered(data, _DATASETS.value, _PARTS.value))


def run_missing(results: Results, length: dict[str, Any], seeds: list[int]) -> None:
    """Makes the entries that are not there, until the time is up."""
    clock = Clock(_MINUTES.value)
    for dataset in _DATASETS.value:
        bench = Bench(dataset, pathlib.Path(_DATA.value), cache_dir(_CACHE.value), results, **length)
        for part in _PARTS.value:
            for seed in seeds:
                for key, run in PARTS[part](bench, seed):
                    name = f"{dataset}/{key}"
                    if name in results.entries:
                        continue
                    if clock.is_over():
                        print("The time is up; run this again to go on.", flush=True)
                        return
                    begin = time.monotonic()
                    entry = results.get_or_run(name, run)
                    found = entry.get("accuracy")
                    text = "" if found is None else f": {found:.4f}"
                    print(f"{name}{text} ({time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    app.run(main)
