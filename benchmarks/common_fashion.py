"""Fashion-MNIST for the benchmarks: images, the teacher, its answers to augmented views, and training batches."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_kd
from keras_kd.teachers.augmentations import RandomFlip, RandomShift, Sequence
from keras_kd.teachers.targets import pack, unpack

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
AUGMENT = Sequence((RandomFlip(), RandomShift(2)))
# Two views hold all of it. Shifts cost a student of a few thousand parameters points, whoever teaches it.
FLIPS = RandomFlip()
HELD_OUT = 5000
TEACHER_FILE = "teachers/fashion_teacher.keras"


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, x_test, y_test): bytes [.., 28, 28, 1] and int32 labels; offline where KERAS_HOME holds them."""
    (x, y), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    return x[..., None], y.astype("int32"), x_test[..., None], y_test.astype("int32")


def training_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the first `count` training images in a fixed shuffled order, of the 5,000 that none of them is).

    Benchmarks that ask for as many take the same images, and none trains on those held out.
    """
    order = np.random.default_rng(0).permutation(60_000)
    return np.sort(order[HELD_OUT:][:count]), order[:HELD_OUT]


def accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Top-1, as a fraction."""
    return float(np.mean(np.asarray(model.predict(x, batch_size=1000, verbose=0)).argmax(-1) == y))


def residual_network(*widths: int) -> keras.Model:
    """A teacher: pixels 0..255 to logits, each width at half the resolution of the one before."""
    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Rescaling(1 / 255)(inputs)
    for number, width in enumerate(widths):
        strides = 1 if number == 0 else 2
        y = layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
        x = layers.BatchNormalization()(layers.Conv2D(width, 1, strides, use_bias=False)(x))
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def teacher(path: str | None, folder: pathlib.Path) -> keras.Model:
    """The teacher at `path`, or in the folder of shared data, or else one that is trained here and kept.

    Args:
      path: of a `.keras` file of 28x28x1 bytes to 10 logits, or None.
      folder: where a teacher that had to be trained is kept. It is trained for as many epochs as
        BENCHMARK_TEACHER_EPOCHS says (12), two to three minutes each on two cores.
    """
    epochs = int(os.environ.get("BENCHMARK_TEACHER_EPOCHS", "12"))
    shared = pathlib.Path(os.environ.get("KERAS_KD_SHARED_DATA", "/nonexistent"), TEACHER_FILE)
    own = folder / f"fashion_teacher_{epochs}.keras"
    for candidate in (pathlib.Path(path) if path else None, shared, own):
        if candidate is not None and candidate.is_file():
            return keras.models.load_model(candidate, compile=False)
    if path:
        raise FileNotFoundError(f"--teacher: there is no {path}")
    print(f"No teacher was given: training one for {epochs} epochs ...", flush=True)
    keras.utils.set_random_seed(1000)
    x, y, _, _ = images()
    model = residual_network(32, 48, 96, 160)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=0)
    seeds = tf.data.Dataset.random(seed=0, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    data = tf.data.Dataset.zip((data, seeds)).map(
        lambda pair, seed: (AUGMENT(pair[0], tf.cast(seed % 2147483647, tf.int32)), pair[1]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(x) // 128)
    model.compile(keras.optimizers.AdamW(rate), LOSS, metrics=["accuracy"])
    model.fit(data.batch(128).prefetch(2), epochs=epochs, verbose=2)
    model.save(own)
    return model


class Views:
    """Augmented views of the training images and what the teacher says of each, from a `TeacherCache`.

    Every method trains on these very pixels. They are drawn once and kept, so that a run costs its training steps
    and nothing else.

    Args:
      network: the teacher.
      x: bytes [examples, 28, 28, 1].
      y: labels.
      count: views of each example.
      folder: where the cache and the pixels are kept.
      augment: what makes a view of an image.
      layers_: names of layers of the teacher whose features to keep too.
      dtype: in which the answers are stored.
      verbose: print the progress of the teacher.
    """

    def __init__(
        self,
        network: keras.Model,
        x: np.ndarray,
        y: np.ndarray,
        count: int,
        folder: pathlib.Path,
        augment: Any = AUGMENT,
        layers_: tuple[str, ...] = (),
        dtype: str = "float32",
        verbose: bool = False,
    ):
        self.x, self.y, self.count = x, y, count
        self.cache = keras_kd.TeacherCache.build(
            network, x, folder, views=count, augment=augment, dtype=dtype, layers=layers_, verbose=verbose
        )
        pixels, answers = folder / "pixels.npy", folder / "answers.npz"
        if not (pixels.is_file() and answers.is_file()):
            self._unroll(pixels, answers)
        self._pixels = np.load(pixels, mmap_mode="r").reshape(-1, *x.shape[1:])
        with np.load(answers) as stored:
            self._targets = {
                "outputs": stored["outputs"],
                "features": {name: stored[f"feature {name}"] for name in layers_},
            }

    def _unroll(self, pixels: pathlib.Path, answers: pathlib.Path) -> None:
        """Takes every view out of the cache's own pipeline once, in the order of the examples."""
        beside = pixels.with_suffix(".part")
        views = np.lib.format.open_memmap(beside, "w+", np.uint8, (self.count, *self.x.shape))
        found: dict[str, list[np.ndarray]] = {}
        data = self.cache.dataset(self.x, batch_size=500, shuffle=False)
        for view in range(self.count):  # each pass over the data is the next view
            start = 0
            for (packed,) in data:
                inputs, targets = unpack(packed)
                assert targets is not None
                views[view, start : start + len(inputs)] = inputs.numpy()
                start += len(inputs)
                found.setdefault("outputs", []).append(targets["outputs"].numpy())
                for name, feature in targets["features"].items():
                    found.setdefault(f"feature {name}", []).append(feature.numpy().astype(np.float16))
        views.flush()
        joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in found.items()}
        np.savez(answers, **joined)
        beside.rename(pixels)  # only now: a killed process leaves no half of it

    def batches(
        self, form: str, subset: np.ndarray | None = None, *, batch_size: int, seed: int, skip: int = 0
    ) -> tf.data.Dataset:
        """Training data; every pass has another order and draws another view of each example.

        Args:
          form: "plain" for (image, label); "cached" for a Distiller or `compress` that holds the cache; "replayed" for
            ({"image", "teacher"}, label).
          subset: indices of the examples to use; None is all.
          batch_size: examples per step; a smaller last batch is left out.
          seed: of the order and the views.
          skip: passes that were taken before.
        """
        passes = Passes(len(self.x) if subset is None else subset, self.count, len(self.x), batch_size, seed)
        passes.done = skip
        flat = keras.tree.flatten(self._targets)

        def read(rows: np.ndarray) -> list[np.ndarray]:
            return [
                self._pixels[rows],
                self.y[rows % len(self.x)],
                *(part[rows].astype(np.float32) for part in flat),
            ]

        kinds = [tf.uint8, tf.int32, *([tf.float32] * len(flat))]
        shapes = [self.x.shape[1:], (), *(part.shape[1:] for part in flat)]

        def fetch(rows: tf.Tensor) -> tuple[Any, Any]:
            found = tf.numpy_function(read, [rows], kinds, stateful=False)
            for tensor, shape in zip(found, shapes):
                tensor.set_shape((batch_size, *shape))
            image, label, *rest = found
            if form == "plain":
                return image, label
            targets = keras.tree.pack_sequence_as(self._targets, rest)
            if form == "cached":
                return pack(image, targets), label
            return {"image": image, "teacher": targets["outputs"]}, label

        if form not in ("plain", "cached", "replayed"):
            raise ValueError(f"form must be 'plain', 'cached' or 'replayed', got {form!r}")
        rows = tf.data.Dataset.from_generator(
            passes, output_signature=tf.TensorSpec((batch_size,), tf.int64)
        ).apply(tf.data.experimental.assert_cardinality(passes.steps))
        return rows.map(fetch).prefetch(2)


class Passes:
    """The rows of each batch; after a whole pass the next has another order and other views.

    Keras's own shuffling of arrays repeats one order after `set_random_seed`; this does not.

    Args:
      examples: how many there are, or the indices of those to use.
      views: of each example; view v of example i is row `v * total + i`.
      total: examples in each view.
      batch_size: rows per batch.
      seed: of everything that is drawn.

    Example:
      >>> passes = Passes(4, views=2, total=4, batch_size=4, seed=0)
      >>> first, second = [sorted(int(row) % 4 for batch in passes() for row in batch) for _ in range(2)]
      >>> first == second == [0, 1, 2, 3]
      True
    """

    def __init__(self, examples: int | np.ndarray, views: int, total: int, batch_size: int, seed: int):
        self._examples = np.arange(examples) if isinstance(examples, int) else np.asarray(examples)
        self._views, self._total, self._batch_size, self._seed = views, total, batch_size, seed
        self.steps = len(self._examples) // batch_size
        self.done = 0

    def __call__(self) -> Iterator[np.ndarray]:
        this = self.done
        generator = np.random.default_rng([self._seed, this])
        order = generator.permutation(self._examples)
        rows = order + self._total * generator.integers(self._views, size=len(order))
        for step in range(self.steps):
            if step == self.steps - 1:
                # Not at the beginning: Keras and a Distiller may look at a first batch before they train, and every
                # method must go through the same passes.
                self.done = max(self.done, this + 1)
            yield rows[step * self._batch_size : (step + 1) * self._batch_size].astype(np.int64)
