"""What benchmarks/selective.py trains: two data sets, their teachers, one small student, runs of one length."""

import functools
import os
import pathlib
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_kd
from benchmarks.stored import Results
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.selection import LayerRanking
from keras_kd.teachers.cache_errors import CacheLockedError
from keras_kd.teachers.targets import unpack

BATCH = 64
LEARNING_RATE = 3e-3
TEMPERATURE = 2.0
Arrays = tuple[np.ndarray, np.ndarray]


def load_fashion(data_dir: pathlib.Path, split: str) -> Arrays:
    """Images [n, 28, 28, 1] in 0..255 and labels [n]; offline where KERAS_HOME holds them."""
    del data_dir
    x, y = keras.datasets.fashion_mnist.load_data()[split == "test"]
    return x[..., None].astype("float32"), y.astype("int64")


def load_cifar10_jpeg(data_dir: pathlib.Path, split: str) -> Arrays:
    """Images [n, 32, 32, 3] in 0..255 and labels [n], classes in alphabetical order, shuffled."""
    images, names = [], []
    with tarfile.open(data_dir / "cifar10_jpeg" / f"{split}.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".jpg"):
                content = archive.extractfile(member)
                assert content is not None
                images.append(tf.io.decode_jpeg(content.read(), channels=3).numpy())
                names.append(pathlib.PurePath(member.name).parent.name)
    classes = sorted(set(names))
    order = np.random.default_rng(0).permutation(len(images))
    labels = np.array([classes.index(name) for name in names])
    return np.stack(images)[order].astype("float32"), labels[order]


LOADERS = {"fashion": load_fashion, "cifar10_jpeg": load_cifar10_jpeg}


def small_student(shape: tuple[int, ...]) -> keras.Model:
    """Four convolutions, with names to tap."""
    x = image = keras.Input(shape, name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    for number, (width, strides) in enumerate(((12, 1), (24, 2), (32, 1), (48, 2))):
        x = layers.Conv2D(width, 3, strides=strides, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="student")


def outputs() -> LogitsDistillation:
    """The loss on the teacher's outputs, in every arm that has a teacher."""
    return LogitsDistillation(loss="kl_divergence", temperature=TEMPERATURE, name="outputs")


def features(names: Iterable[tuple[str, str]]) -> list[Any]:
    """A loss for each pair (teacher layer, student layer)."""
    return [
        FeatureDistillation(teacher_layer_name=one, student_layer_name=other, name=f"pair{number}")
        for number, (one, other) in enumerate(names)
    ]


class Bench:
    """A data set, its teacher, and runs of one length; everything is loaded when it is first asked for.

    Args:
      dataset: of `DATASETS`.
      data_dir: folder of the teachers and of CIFAR-10-JPEG.
      folder: where the teacher's answers and the decoded images are kept.
      results: where the entries go.
      train_images: to train on, None for all.
      epochs: passes over them in every run.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: pathlib.Path,
        folder: pathlib.Path,
        results: Results,
        *,
        train_images: int | None,
        epochs: int,
    ):
        self.dataset, self.results, self.epochs = dataset, results, epochs
        self.folder = folder / f"selective_{dataset}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data_dir, self._train_images = data_dir, train_images

    @functools.cached_property
    def data(self) -> Arrays:
        """Training images and labels."""
        x, y = self._kept("train")
        return x[: self._train_images], y[: self._train_images]

    @functools.cached_property
    def test(self) -> Arrays:
        """All test images and labels."""
        return self._kept("test")

    def _kept(self, split: str) -> Arrays:
        path = self.folder / f"{split}.npz"
        if not path.is_file():
            x, y = LOADERS[self.dataset](self._data_dir, split)
            temporary = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(temporary, x=x.astype("uint8"), y=y)
            temporary.replace(path)
        with np.load(path) as stored:
            return stored["x"].astype("float32"), stored["y"]

    @functools.cached_property
    def teacher(self) -> keras.Model:
        """The trained teacher."""
        return keras.models.load_model(self._data_dir / "teachers" / f"{self.dataset}_teacher.keras")

    @functools.cached_property
    def cache(self) -> keras_kd.TeacherCache:
        """What the teacher says of every training image."""
        folder = self.folder / f"answers_{self._train_images}"
        while True:
            try:
                return keras_kd.TeacherCache.build(
                    self.teacher, self.data[0], folder, dtype="float32", verbose=False
                )
            except CacheLockedError:  # another process of this benchmark is at it
                time.sleep(1.0)

    def accuracy(self, model: keras.Model) -> float:
        """Top-1 on the test images."""
        return float(
            np.mean(model.predict(self.test[0], batch_size=500, verbose=0).argmax(-1) == self.test[1])
        )

    def student(self, seed: int) -> keras.Model:
        """The same untrained student for every arm of a comparison."""
        keras.utils.set_random_seed(seed)
        return small_student(self.data[0].shape[1:])

    def train(
        self,
        student: keras.Model,
        seed: int,
        losses: Iterable[Any] = (),
        weights: Any = None,
        *,
        sample_weight: np.ndarray | None = None,
        epochs: int | None = None,
    ) -> dict[str, float]:
        """Train for the same steps on the same order of examples in every arm: {"accuracy", "seconds"}.

        The teacher runs where its inner layers are taught; its outputs alone come out of the cache.
        """
        keras.utils.set_random_seed(seed)
        for layer in student.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.momentum = 0.9  # a short run: statistics that lag behind would hide what was learned
        losses, epochs = list(losses), epochs or self.epochs
        x, y = self.data
        data = self.cache.dataset(x, y, batch_size=BATCH, seed=seed, sample_weight=sample_weight)
        taps = any(isinstance(loss, FeatureDistillation) for loss in losses)
        if taps or not losses:
            data = data.map(lambda inputs, *rest: (unpack(inputs)[0], *rest))
        rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * -(-len(x) // BATCH))
        model = student
        if losses:
            teacher = self.teacher if taps else self.cache
            model = keras_kd.Distiller(teacher, student, losses, weights, student_loss_weight=0.5)
        model.compile(
            keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        begin = time.perf_counter()
        model.fit(data, epochs=epochs, verbose=0)
        seconds = time.perf_counter() - begin
        return {"accuracy": self.accuracy(student), "seconds": seconds}

    def ranking(self, seed: int) -> LayerRanking:
        """Of the untrained student of this seed."""

        def run() -> dict[str, Any]:
            begin = time.perf_counter()
            ranking = keras_kd.rank_layers(
                self.teacher, self.student(seed), *self.data, seed=seed, probe_steps=40
            )
            seconds = time.perf_counter() - begin
            return {"seconds": seconds, "pairs": by_ranking(ranking), "ranking": ranking.to_dict()}

        return LayerRanking.from_dict(
            self.results.get_or_run(f"{self.dataset}/ranking/{seed}", run)["ranking"]
        )

    @functools.cache  # noqa: B019 - lives as long as the run
    def carving(self, keep: float, criterion: str, reconstruct: bool) -> tuple[keras.Model, float]:
        """(the student before training, its accuracy): the same every time. "plain" is l1 without inputs."""
        if criterion == "plain":
            student = keras_kd.carve_student(self.teacher, keep, round_to=8)
        else:
            student = keras_kd.carve_student(
                self.teacher, keep, *self.data, criterion=criterion, round_to=8, reconstruct=reconstruct
            )
        return student, self.accuracy(student)

    def carved(
        self, keep: float, criterion: str = "taylor", *, reconstruct: bool = True
    ) -> tuple[keras.Model, float]:
        """(a student of its own to train, its accuracy before)."""
        student, start = self.carving(keep, criterion, reconstruct)
        twin = keras.models.clone_model(student)
        twin.set_weights(student.get_weights())
        return twin, start

    def trained_on(self, seed: int, choose: Callable[[LayerRanking], Any], scale: float = 1.0) -> Any:
        """A run with the teacher's outputs and the chosen pairs.

        The features' total weight is the same however many pairs there are: what differs is where it goes.
        """
        ranking = self.ranking(seed)
        names = choose(ranking)
        by_layer = {pair.teacher_layer: pair.loss_weight for pair in ranking.all_pairs}
        weights = [1.0, *(scale * by_layer[teacher] / len(names) for teacher, _ in names)]
        return self.train(self.student(seed), seed, [outputs(), *features(names)], weights)


def by_ranking(ranking: LayerRanking) -> list[tuple[str, str]]:
    """The three best pairs."""
    return [pair.names for pair in ranking.pairs(3)]


def last_pair(ranking: LayerRanking) -> list[tuple[str, str]]:
    """The deepest layers of both."""
    return [(ranking.teacher_layers[-1], ranking.student_layers[-1])]


def evenly_spaced(ranking: LayerRanking) -> list[tuple[str, str]]:
    """The last three student layers, each with the teacher layer at the same fraction of the depth."""
    return spread(ranking.teacher_layers, ranking.student_layers)[-3:]


def every_layer(ranking: LayerRanking) -> list[tuple[str, str]]:
    """Every teacher layer, each with the student layer at the same fraction of the depth."""
    return [(one, other) for other, one in spread(ranking.student_layers, ranking.teacher_layers)]


def spread(from_layers: tuple[str, ...], to_layers: tuple[str, ...]) -> list[tuple[str, str]]:
    """For each of `to_layers` the one of `from_layers` at the same depth.

    Example:
      >>> spread(("a", "b", "c", "d"), ("one", "two"))
      [('b', 'one'), ('d', 'two')]
    """
    ratio = len(from_layers) / len(to_layers)
    places = [
        max(0, min(round((number + 1) * ratio), len(from_layers)) - 1) for number in range(len(to_layers))
    ]
    return [(from_layers[place], name) for place, name in zip(places, to_layers)]
