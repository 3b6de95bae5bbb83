"""Selective distillation, measured: do chosen layers teach better, and what is a carved student worth?

    python benchmarks/selective.py                                  # minutes: Fashion-MNIST, two seeds, short runs
    python benchmarks/selective.py --full                           # hours on two cores: both data sets, three seeds
    python benchmarks/selective.py --parts=latency --json

Parts:
  pairs       layers chosen by rank_layers against the last layer only, evenly spaced pairs, all layers, and the
              teacher's outputs alone; same student, same steps, the same order of examples.
  balance     weights by GradientBalanced against one over the features' mean square, on the chosen pairs.
  confidence  examples weighted by confidence_weights against all alike.
  carved      a student carved out of the teacher against the same shape from scratch, with and without its teacher.
  criteria    where carved students start from, by criterion, before any training.
  latency     accuracy against latency of the float32 .tflite, for five sizes of carved student.

Each row is the mean over the seeds, with the standard deviation between them. Needs the folder of real data and
trained teachers (--data_dir); CIFAR-10-JPEG is CIFAR-10 that went through JPEG, and its figures are not CIFAR-10's.
"""

import gzip
import json
import os
import pathlib
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

# A script of this folder is named as the package tflite_tools is, and must not be taken for it.
_HERE = pathlib.Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if pathlib.Path(path or ".").resolve() != _HERE]

import keras_kd
import tflite_tools
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.selection import carve, confidence_weights
from tflite_tools.text_table import text_table

PARTS = ("pairs", "balance", "confidence", "carved", "criteria", "latency")
DATASETS = ("fashion", "cifar10_jpeg")
BATCH = 64

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir",
    os.environ.get(
        "KERAS_KD_SHARED_DATA", str(pathlib.Path(__file__).resolve().parents[2] / "shared" / "data")
    ),
    "Folder with the data sets and the trained teachers.",
)
flags.DEFINE_bool("full", False, "Both data sets, three seeds, runs of --steps=3000 on all training images.")
flags.DEFINE_list("datasets", None, f"Of {', '.join(DATASETS)}; default fashion, with --full both.")
flags.DEFINE_list("parts", list(PARTS), f"Of {', '.join(PARTS)}.")
flags.DEFINE_integer("seeds", None, "How many; default 2, with --full 3.", lower_bound=1)
flags.DEFINE_integer(
    "steps", None, "Optimizer steps of each run; default 120, with --full 3000.", lower_bound=1
)
flags.DEFINE_integer("train_images", None, "Default 6000, with --full all.", lower_bound=500)
flags.DEFINE_integer("test_images", None, "Default 2000, with --full all.", lower_bound=100)
flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
flags.register_validator(
    "parts", lambda parts: set(parts) <= set(PARTS), f"parts must be of {', '.join(PARTS)}"
)


def load_fashion(folder: pathlib.Path, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28, 1] in 0..255 and labels [n]."""
    files = folder / "keras_home" / "datasets" / "fashion-mnist"
    name = {"train": "train", "test": "t10k"}[split]
    images = gzip.decompress((files / f"{name}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((files / f"{name}-labels-idx1-ubyte.gz").read_bytes())
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)[:count]
    return x.astype("float32"), np.frombuffer(labels, np.uint8, offset=8)[:count].astype("int64")


def load_cifar10_jpeg(folder: pathlib.Path, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, 3] in 0..255 and labels [n], classes in alphabetical order, shuffled."""
    images, names = [], []
    with tarfile.open(folder / "cifar10_jpeg" / f"{split}.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None
                images.append(tf.io.decode_jpeg(content.read(), channels=3).numpy())
                names.append(pathlib.PurePath(member.name).parent.name)
    classes = sorted(set(names))
    order = np.random.default_rng(0).permutation(len(images))[:count]
    return np.stack(images)[order].astype("float32"), np.array([classes.index(name) for name in names])[order]


LOADERS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "fashion": load_fashion,
    "cifar10_jpeg": load_cifar10_jpeg,
}


def small_student(shape: tuple[int, ...]) -> keras.Model:
    """Four convolutions, with names to tap."""
    x = image = keras.Input(shape, name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for number, (width, strides) in enumerate(((12, 1), (24, 2), (32, 1), (48, 2))):
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="student")


class Bench:
    """A data set, its teacher, and runs of one length."""

    def __init__(
        self, dataset: str, *, steps: int, seeds: int, train_images: int | None, test_images: int | None
    ):
        folder = pathlib.Path(FLAGS.data_dir)
        self.dataset, self.steps, self.seeds = dataset, steps, range(seeds)
        self.x, self.y = LOADERS[dataset](folder, "train", train_images)
        self.test = LOADERS[dataset](folder, "test", test_images)
        self.teacher = keras.models.load_model(folder / "teachers" / f"{dataset}_teacher.keras")
        self._rankings: dict[int, Any] = {}

    def accuracy(self, model: keras.Model) -> float:
        """Top-1 on the test images."""
        return float(
            np.mean(model.predict(self.test[0], batch_size=500, verbose=0).argmax(-1) == self.test[1])
        )

    def student(self, seed: int) -> keras.Model:
        """The same untrained student for every arm of a comparison."""
        keras.utils.set_random_seed(seed)
        return small_student(self.x.shape[1:])

    def train(
        self,
        student: keras.Model,
        seed: int,
        losses: Any = (),
        weights: Any = None,
        *,
        sample_weight: np.ndarray | None = None,
        student_loss_weight: float = 0.5,
    ) -> float:
        """Train for the same steps on the same order of examples; test accuracy."""
        keras.utils.set_random_seed(seed)
        for layer in student.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.9  # a short run: statistics that lag behind would hide what was learned
        label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, self.steps))
        model = student
        if losses:
            model = keras_kd.Distiller(
                self.teacher, student, list(losses), weights, student_loss_weight=student_loss_weight
            )
        model.compile(optimizer, label_loss)
        order = np.random.default_rng(seed)
        places = np.concatenate(
            [order.permutation(len(self.x)) for _ in range(-(-self.steps * BATCH // len(self.x)))]
        )[: self.steps * BATCH]
        weight = None if sample_weight is None else sample_weight[places]
        model.fit(
            self.x[places], self.y[places], sample_weight=weight, batch_size=BATCH, shuffle=False, verbose=0
        )
        return self.accuracy(student)

    def ranking(self, seed: int) -> Any:
        """Of the untrained student of this seed."""
        if seed not in self._rankings:
            self._rankings[seed] = keras_kd.rank_layers(
                self.teacher, self.student(seed), self.x, self.y, seed=seed, probe_steps=40
            )
        return self._rankings[seed]

    def over_seeds(self, run: Callable[[int], float]) -> dict[str, Any]:
        """Mean and deviation of a figure over the seeds."""
        values = [run(seed) for seed in self.seeds]
        return {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "values": values,
        }


def outputs() -> LogitsDistillation:
    return LogitsDistillation(loss="kl_divergence", temperature=2.0, name="outputs")


def features(names: Iterable[tuple[str, str]]) -> list[Any]:
    return [
        FeatureDistillation(teacher_layer_name=one, student_layer_name=other, name=f"pair{number}")
        for number, (one, other) in enumerate(names)
    ]


def evenly_spaced(ranking: Any) -> list[tuple[str, str]]:
    """Every student layer with the teacher layer at the same fraction of the depth."""
    last = len(ranking.teacher_layers) - 1
    count = len(ranking.student_layers)
    return [
        (ranking.teacher_layers[round((number + 1) / count * last)], name)
        for number, name in enumerate(ranking.student_layers)
    ]


def feature_run(bench: Bench, choose: Callable[[Any], list[tuple[str, str]]]) -> Callable[[int], float]:
    def run(seed: int) -> float:
        ranking = bench.ranking(seed)
        names = choose(ranking)
        scale = {pair.teacher_layer: pair.loss_weight for pair in ranking.all_pairs}
        # The same total weight for features in every arm: what differs is where it goes.
        weights = [1.0, *(scale[teacher] / len(names) for teacher, _ in names)]
        return bench.train(bench.student(seed), seed, [outputs(), *features(names)], weights)

    return run


def pairs_part(bench: Bench) -> list[dict[str, Any]]:
    arms: list[tuple[str, Callable[[int], float]]] = [
        ("labels alone", lambda seed: bench.train(bench.student(seed), seed)),
        ("the teacher's outputs", lambda seed: bench.train(bench.student(seed), seed, [outputs()])),
        ("outputs + last pair", feature_run(bench, lambda r: [(r.teacher_layers[-1], r.student_layers[-1])])),
        ("outputs + 3 evenly spaced pairs", feature_run(bench, lambda r: evenly_spaced(r)[-3:])),
        ("outputs + every student layer", feature_run(bench, evenly_spaced)),
        ("outputs + 1 pair by the ranking", feature_run(bench, lambda r: [p.names for p in r.pairs(1)])),
        ("outputs + 3 pairs by the ranking", feature_run(bench, lambda r: [p.names for p in r.pairs(3)])),
    ]
    return [{"arm": name, **bench.over_seeds(run)} for name, run in arms]


def balance_part(bench: Bench) -> list[dict[str, Any]]:
    def balanced(ratio: float) -> Callable[[int], float]:
        def run(seed: int) -> float:
            names = [pair.names for pair in bench.ranking(seed).pairs(3)]
            weights = [1.0, *(keras_kd.schedules.GradientBalanced(ratio / len(names)) for _ in names)]
            return bench.train(bench.student(seed), seed, [outputs(), *features(names)], weights)

        return run

    arms = [("by mean square", feature_run(bench, lambda r: [p.names for p in r.pairs(3)]))]
    arms += [(f"GradientBalanced, ratio {ratio} in all", balanced(ratio)) for ratio in (0.3, 1.0)]
    return [{"arm": name, **bench.over_seeds(run)} for name, run in arms]


def confidence_part(bench: Bench) -> list[dict[str, Any]]:
    taught = bench.teacher.predict(bench.x, batch_size=500, verbose=0)
    weight = confidence_weights(taught, bench.y, temperature=2.0)

    def weighted(sample_weight: Any) -> Callable[[int], float]:
        return lambda seed: bench.train(bench.student(seed), seed, [outputs()], sample_weight=sample_weight)

    arms = [("all examples alike", weighted(None)), ("by the teacher's confidence", weighted(weight))]
    return [{"arm": name, **bench.over_seeds(run)} for name, run in arms]


def once(name: str, value: float) -> dict[str, Any]:
    """A row that does not depend on the seed."""
    return {"arm": name, "mean": value, "deviation": None, "values": [value]}


def median_us(artifact: Any) -> float | None:
    latency = tflite_tools.benchmark(artifact, num_threads=1).latency_us
    return None if latency is None else latency.median


def carved_student(bench: Bench, keep: float, criterion: str = "activation") -> Any:
    return carve(bench.teacher, keep, bench.x, bench.y, criterion=criterion, round_to=8)


def from_scratch(model: keras.Model, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.models.clone_model(model)


def carved_part(bench: Bench) -> list[dict[str, Any]]:
    student = carved_student(bench, 0.25).student

    def copy(seed: int) -> keras.Model:
        twin = from_scratch(student, seed)
        twin.set_weights(student.get_weights())
        return twin

    rows = [{"arm": "carved, before training", **bench.over_seeds(lambda seed: bench.accuracy(copy(seed)))}]

    def trained(make: Callable[[int], keras.Model], losses: tuple[Any, ...]) -> Callable[[int], float]:
        return lambda seed: bench.train(make(seed), seed, losses)

    for start, make in (("from scratch", lambda seed: from_scratch(student, seed)), ("carved", copy)):
        rows.append({"arm": f"{start}, labels", **bench.over_seeds(trained(make, ()))})
        rows.append({"arm": f"{start}, labels and teacher", **bench.over_seeds(trained(make, (outputs(),)))})
    return rows


def criteria_part(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for keep in (0.75, 0.5, 0.25):
        plain = bench.accuracy(keras_kd.carve_student(bench.teacher, keep))
        rows.append(once(f"keep {keep}, l1, statistics as they were", plain))
        for criterion in ("l1", "bn_scale", "activation", "taylor"):
            student = keras_kd.carve_student(bench.teacher, keep, bench.x, bench.y, criterion=criterion)
            rows.append(once(f"keep {keep}, {criterion}", bench.accuracy(student)))
    return rows


def latency_part(bench: Bench) -> list[dict[str, Any]]:
    rows = []
    for keep in (1.0, 0.75, 0.5, 0.25, 0.125):
        carving = carved_student(bench, keep)
        if keep == 1.0:  # the teacher itself, untrained further
            accuracy: dict[str, Any] = {
                "mean": bench.accuracy(carving.student),
                "deviation": None,
                "values": [],
            }
        else:

            def run(seed: int, start: keras.Model = carving.student) -> float:
                twin = from_scratch(start, seed)
                twin.set_weights(start.get_weights())
                return bench.train(twin, seed, (outputs(),))

            accuracy = bench.over_seeds(run)
        artifact = tflite_tools.convert(carving.student)
        row = {
            "arm": f"keep {keep}",
            **accuracy,
            "parameters": carving.after.params,
            "macs": carving.after.macs,
            "size_bytes": artifact.size_bytes,
            "latency_us": median_us(artifact),
        }
        rows.append(row)
    rows.append(unstructured_row(bench))
    return rows


def unstructured_row(bench: Bench) -> dict[str, Any]:
    """Three quarters of the weights zero, channels as they were: smaller when zipped, as slow as ever."""
    model = keras.models.clone_model(bench.teacher)
    model.set_weights(bench.teacher.get_weights())
    for weight in model.weights:
        if len(weight.shape) > 1:
            value = weight.numpy()
            weight.assign(np.where(np.abs(value) < np.quantile(np.abs(value), 0.75), 0.0, value))
    artifact = tflite_tools.convert(model)
    return {
        "arm": "all channels, 75 % of the weights zero",
        "mean": bench.accuracy(model),
        "deviation": None,
        "values": [],
        "parameters": int(model.count_params()),
        "macs": tflite_tools.inspect(artifact).macs,
        "size_bytes": artifact.size_bytes,
        "latency_us": median_us(artifact),
    }


def rendered(part: str, rows: list[dict[str, Any]]) -> str:
    header = ["", "accuracy", "deviation"]
    extra = [name for name in ("parameters", "macs", "size_bytes", "latency_us") if name in rows[0]]
    lines = []
    for row in rows:
        deviation = "–" if row["deviation"] is None else f"{100 * row['deviation']:.2f}"
        figures = [f"{row[name]:,.0f}" if row.get(name) is not None else "–" for name in extra]
        lines.append([row["arm"], f"{100 * row['mean']:.2f} %", deviation, *figures])
    text = text_table([*header, *extra], lines)
    if part in VERDICTS:
        text += "\n" + VERDICTS[part](rows)
    return text


def verdict_on_pairs(rows: list[dict[str, Any]]) -> str:
    by_name = {row["arm"]: row for row in rows}
    chosen = by_name["outputs + 3 pairs by the ranking"]
    sentences = []
    for name in ("the teacher's outputs", "outputs + last pair", "outputs + 3 evenly spaced pairs"):
        sentences.append(compared("3 pairs by the ranking", chosen, name, by_name[name]))
    return "\n".join(sentences)


def compared(name: str, row: dict[str, Any], other_name: str, other: dict[str, Any]) -> str:
    """A difference, and whether it is larger than the runs differ among themselves."""
    differences = [one - two for one, two in zip(row["values"], other["values"])]
    mean = statistics.fmean(differences)
    spread = statistics.stdev(differences) if len(differences) > 1 else None
    if spread is None:
        meaning = "one seed: no verdict"
    elif abs(mean) <= 2 * spread / len(differences) ** 0.5:
        meaning = "no difference beyond the spread of the seeds"
    else:
        meaning = "helps" if mean > 0 else "does not help, it hurts"
    return f"{name} against {other_name}: {100 * mean:+.2f} points ({meaning})"


VERDICTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "pairs": verdict_on_pairs,
    "balance": lambda rows: compared(rows[2]["arm"], rows[2], rows[0]["arm"], rows[0]),
    "confidence": lambda rows: compared("weights by confidence", rows[1], "all alike", rows[0]),
    "carved": lambda rows: compared("carved with teacher", rows[4], "from scratch with teacher", rows[2]),
}

RUNS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "pairs": pairs_part,
    "balance": balance_part,
    "confidence": confidence_part,
    "carved": carved_part,
    "criteria": criteria_part,
    "latency": latency_part,
}


def main(argv: list[str]) -> None:
    del argv
    if not pathlib.Path(FLAGS.data_dir).is_dir():
        sys.exit(f"There is no folder {FLAGS.data_dir!r}: give --data_dir.")
    full = FLAGS.full
    settings: dict[str, Any] = {
        "steps": FLAGS.steps or (3000 if full else 120),
        "seeds": FLAGS.seeds or (3 if full else 2),
        "train_images": FLAGS.train_images or (None if full else 6000),
        "test_images": FLAGS.test_images or (None if full else 2000),
    }
    results: dict[str, Any] = {"settings": {**settings, "batch_size": BATCH}, "datasets": {}}
    for dataset in FLAGS.datasets or (DATASETS if full else DATASETS[:1]):
        bench = Bench(dataset, **settings)
        found: dict[str, Any] = {"teacher": bench.accuracy(bench.teacher)}
        results["datasets"][dataset] = found
        if not FLAGS.json:
            print(f"{dataset}: teacher {100 * found['teacher']:.2f} %, {settings}", flush=True)
        for part in FLAGS.parts:
            begin = time.monotonic()
            found[part] = RUNS[part](bench)
            if not FLAGS.json:
                print(
                    f"\n{part} ({time.monotonic() - begin:.0f} s)\n{rendered(part, found[part])}", flush=True
                )
    if FLAGS.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    app.run(main)
