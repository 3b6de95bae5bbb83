"""Every kind of data, of teacher and of consumer, and mixing, with the cache."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
import tflite_tools
from keras_kd.losses import LogitsDistillation
from keras_kd.teachers.augmentations import (
    CutMix,
    Jitter,
    Mixup,
    RandomColor,
    RandomCrop,
    RandomFlip,
    RandomScale,
    RandomShift,
    RandomTimeShift,
    Sequence,
)
from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError
from keras_kd.teachers.targets import unpack

EXAMPLES, CLASSES = 130, 3
TeacherCache = keras_kd.TeacherCache


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).integers(0, 256, (EXAMPLES, 8, 8, 3)).astype("uint8")


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(1).integers(0, CLASSES, EXAMPLES).astype("int32")


def network(seed, *, softmax=False, width=4):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax" if softmax else None),
        ]
    )


@pytest.fixture(scope="module")
def teacher():
    return network(0)


def assert_consistent(dataset, teacher, count=EXAMPLES):
    """Every batch carries what the live teacher says of the very inputs in it."""
    seen = 0
    for batch in dataset:
        inputs, targets = unpack(batch[0])
        # float16 keeps 11 bits of values below 8: 4e-3.
        np.testing.assert_allclose(targets["outputs"], teacher(inputs, training=False), atol=4e-3)
        seen += len(inputs)
    assert seen == count


def distill(cache, dataset, *, loss="sparse_categorical_crossentropy", student=None, epochs=2):
    student = student or network(5)
    distiller = keras_kd.Distiller(cache, student, LogitsDistillation(), student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.01), loss=loss_from_logits(loss))
    return distiller.fit(dataset, epochs=epochs, verbose=0).history


def loss_from_logits(name):
    sparse = name.startswith("sparse")
    kind = keras.losses.SparseCategoricalCrossentropy if sparse else keras.losses.CategoricalCrossentropy
    return kind(from_logits=True)


# Data.


def test_a_tf_data_set_in_any_batches(teacher, x, y, tmp_path):
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(17)
    cache = TeacherCache.build(teacher, stream, tmp_path, views=2, augment=RandomFlip(), batch_size=32)
    dataset = cache.dataset(stream, batch_size=25, seed=1)
    assert int(dataset.cardinality()) == 6
    orders = []
    for _ in range(2):
        assert_consistent(dataset, teacher)
    for _ in range(2):
        orders.append(np.concatenate([batch[1].numpy() for batch in dataset]))
    assert sorted(orders[0]) == sorted(y)
    assert not np.array_equal(orders[0], orders[1])
    # The same examples as an array are the same data.
    assert_consistent(cache.dataset(x, y, batch_size=25), teacher)
    with pytest.raises(CacheMismatchError, match="another order"):
        shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(200).batch(17)
        TeacherCache.build(teacher, shuffled, tmp_path / "shuffled")


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.data = x, y

    def __len__(self):
        return -(-len(self.data[0]) // 20)

    def __getitem__(self, index):
        return tuple(part[20 * index : 20 * index + 20] for part in self.data)


def test_a_pydataset(teacher, x, y, tmp_path):
    cache = TeacherCache.build(teacher, Batches(x, y), tmp_path)
    dataset = cache.dataset(Batches(x, y), batch_size=32)
    assert_consistent(dataset, teacher)
    labels = np.concatenate([batch[1].numpy() for batch in dataset])
    assert sorted(labels) == sorted(y)


def test_a_folder_of_images(teacher, x, y, tmp_path):
    for number, (image, label) in enumerate(zip(x, y)):
        folder = tmp_path / "images" / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(tf.io.encode_png(image).numpy())
    cache = TeacherCache.build(
        teacher, tmp_path / "images", tmp_path / "cache", views=2, augment=RandomShift(1)
    )
    dataset = cache.dataset(tmp_path / "images", batch_size=32)
    assert_consistent(dataset, teacher)
    assert sorted(np.concatenate([batch[1].numpy() for batch in dataset])) == sorted(y)
    first = next((tmp_path / "images").rglob("*.png"))
    first.write_bytes(tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy())
    with pytest.raises(CacheMismatchError, match="other examples"):
        cache.dataset(tmp_path / "images", batch_size=32)
    first.unlink()
    with pytest.raises(CacheMismatchError, match="130 examples, x has 129"):
        cache.dataset(tmp_path / "images", batch_size=32)


def test_a_folder_of_images_can_be_mixed(teacher, x, y, tmp_path):
    for number, (image, label) in enumerate(zip(x[:40], y)):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.png").write_bytes(tf.io.encode_png(image).numpy())
    cache = TeacherCache.build(teacher, tmp_path / "images", tmp_path / "cache", views=2, mix=CutMix())
    dataset = cache.dataset(tmp_path / "images", batch_size=16)
    assert_consistent(dataset, teacher, 40)
    labels = np.concatenate([batch[1].numpy() for batch in dataset])
    assert labels.shape == (40, CLASSES)
    assert np.any((labels > 0.05) & (labels < 0.95))


def test_inputs_and_outputs_in_a_nest(x, tmp_path):
    data = {"image": x.astype("float32"), "hour": np.arange(EXAMPLES, dtype="float32")[:, None]}

    def teacher(batch):
        return {"sum": batch["image"].sum(axis=(1, 2, 3)) / 1e5, "hour": batch["hour"]}

    cache = TeacherCache.build(teacher, data, tmp_path, dtype="float32")
    (inputs, targets), *_ = [unpack(batch[0]) for batch in cache.dataset(data, batch_size=50)]
    np.testing.assert_allclose(targets["outputs"]["hour"], inputs["hour"])
    np.testing.assert_allclose(targets["outputs"]["sum"], teacher(inputs_of(inputs))["sum"], rtol=1e-6)


def inputs_of(inputs):
    return {name: part.numpy() for name, part in inputs.items()}


# Teachers.


def test_a_tflite_teacher(teacher, x, y, tmp_path):
    path = tmp_path / "teacher.tflite"
    tflite_tools.convert(teacher).save(path)
    cache = TeacherCache.build(str(path), x.astype("float32"), tmp_path / "cache")
    assert_consistent(cache.dataset(x.astype("float32"), y, batch_size=50), teacher)
    assert cache.repair(tflite_tools.load(path), x.astype("float32")) == ()


def test_a_teacher_of_other_inputs(teacher, x, y, tmp_path):
    """The teacher sees the view through a function of the caller's; the student sees the view itself."""

    def inverted(batch):
        return 255 - batch

    cache = TeacherCache.build(
        teacher, x, tmp_path, views=2, augment=RandomFlip(), teacher_preprocessing=inverted
    )
    assert_consistent(
        cache.dataset(x, y, batch_size=50),
        lambda batch, training: teacher(inverted(batch), training=training),
    )
    assert cache.repair(teacher, x, teacher_preprocessing=inverted) == ()
    with pytest.raises(CacheMismatchError, match="another teacher_preprocessing"):
        cache.repair(teacher, x)


def test_an_ensemble_is_combined_at_the_temperature_of_the_loss(x, y, tmp_path):
    """Members are stored apart: the cached loss equals the loss under the live ensemble, logits beside softmax."""
    ensemble = keras_kd.TeacherEnsemble([network(1), network(2, softmax=True)], weights=[3, 1])
    cache = TeacherCache.build(ensemble, x, tmp_path, dtype="float32")
    assert cache.member_weights == (0.75, 0.25)

    def loss_under(teacher, dataset):
        distiller = keras_kd.Distiller(
            teacher,
            network(5),
            LogitsDistillation(temperature=4.0),
            student_loss_weight=0.0,
            save_teacher="none",
        )
        distiller.compile(keras.optimizers.SGD(0.0), evaluate_distillation=True)
        return distiller.evaluate(dataset, verbose=0, return_dict=True)["distillation_loss"]

    cached = loss_under(cache, cache.dataset(x, batch_size=EXAMPLES))
    live = loss_under(ensemble, tf.data.Dataset.from_tensor_slices(x).batch(EXAMPLES))
    # float32 sums over 130 examples in another order.
    assert cached == pytest.approx(live, rel=1e-4)


def test_a_softmax_teacher_is_known_as_one(x, tmp_path):
    teacher = network(1, softmax=True)
    assert TeacherCache.build(teacher, x, tmp_path / "full").outputs_are_logits is False
    top = TeacherCache.build(teacher, x, tmp_path / "top", top_k=1)
    assert top.outputs_are_logits is True  # kept as logarithms
    p = keras.ops.softmax(top.targets(np.arange(EXAMPLES))["outputs"]).numpy()
    expected = teacher.predict(x, verbose=0)
    np.testing.assert_allclose(p.max(axis=-1), expected.max(axis=-1), atol=1e-3)


# Views.

IMAGES = [
    RandomFlip(vertical=True),
    RandomShift(2),
    RandomCrop(),
    RandomColor(),
    Sequence((RandomFlip(), RandomShift(1))),
]
SERIES = [Jitter(0.1), RandomScale(0.2), RandomTimeShift(3)]


@pytest.mark.parametrize("augment", IMAGES + SERIES, ids=lambda augment: type(augment).__name__)
def test_ready_made_augmentations_are_stateless_and_found_again(augment, x, tmp_path):
    data = x if augment in IMAGES else x[:, :, 0, :].astype("float32")
    cache = TeacherCache.build(
        lambda batch: batch.reshape(len(batch), -1)[:, :5], data, tmp_path, views=2, augment=augment
    )
    opened = TeacherCache.open(tmp_path)  # makes the augmentation again from the manifest
    first, second = (opened.inputs(data, np.arange(40), view=view) for view in (0, 1))
    assert first.dtype == data.dtype and first.shape == data[:40].shape
    assert not np.array_equal(first, second) and not np.array_equal(first, data[:40])
    np.testing.assert_array_equal(first, cache.inputs(data, np.arange(40), view=0))
    np.testing.assert_array_equal(
        first[7:9], cache.inputs(data, np.array([7, 8]), view=0)
    )  # whoever else is asked for


@pytest.mark.parametrize("mix", [Mixup(0.8), CutMix()], ids=["mixup", "cutmix"])
def test_mixed_inputs_labels_and_targets_belong_together(mix, x, tmp_path):
    """Each example is one color that says its number, so that a mixed one says who is in it and by how much."""
    colors = np.broadcast_to(
        np.arange(EXAMPLES, dtype="float32")[:, None, None, None], (EXAMPLES, 8, 8, 3)
    ).copy()
    labels = np.arange(EXAMPLES) % CLASSES

    def teacher(batch):
        return np.stack(
            [batch.mean(axis=(1, 2, 3)), batch.min(axis=(1, 2, 3)), batch.max(axis=(1, 2, 3))], axis=-1
        )

    cache = TeacherCache.build(teacher, colors, tmp_path, views=2, mix=mix, dtype="float32")
    mixed = 0
    for packed, soft in cache.dataset(colors, labels, batch_size=EXAMPLES, shuffle=False):
        inputs, targets = unpack(packed)
        np.testing.assert_allclose(targets["outputs"], teacher(inputs.numpy()), rtol=1e-5)
        np.testing.assert_allclose(soft.numpy().sum(axis=-1), 1.0, atol=1e-6)
        partners = cache._views().partners(0, np.arange(EXAMPLES))
        for number, partner in enumerate(partners):
            if number == partner:
                continue
            # The mean color is share * number + (1 - share) * partner in both ways of mixing.
            share = (inputs[number].numpy().mean() - partner) / (number - partner)
            expected = (
                share * np.eye(CLASSES)[labels[number]] + (1 - share) * np.eye(CLASSES)[labels[partner]]
            )
            # A color up to 130 in float32, divided by a difference of 1: 130 * 2**-23 and the sums' rounding.
            np.testing.assert_allclose(soft[number], expected, atol=1e-3)
            mixed += 0.01 < share < 0.99
    assert mixed > EXAMPLES // 2
    student = network(5)
    history = distill(
        cache, cache.dataset(colors, labels, batch_size=64), loss="categorical_crossentropy", student=student
    )
    assert np.isfinite(history["loss"]).all()


def test_mixing_needs_examples_at_random(teacher, x, tmp_path):
    with pytest.raises(CacheError, match="mix needs examples at random"):
        TeacherCache.build(teacher, tf.data.Dataset.from_tensor_slices(x).batch(10), tmp_path, mix=Mixup())


# Consumers.


def test_compress_learns_from_a_cache(teacher, x, y, tmp_path):
    cache = TeacherCache.build(teacher, x, tmp_path)
    keras.utils.set_random_seed(5)
    dense = keras.layers.Dense
    student = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), dense(8), dense(16, name="middle"), dense(CLASSES)]
    )
    compressed = keras_kd.compress(
        student,
        "prune50",
        x,
        y,
        teacher=cache,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        epochs=2,
        verbose=0,
    )
    assert compressed.report.layer_sparsity["middle"] == 0.5


def test_the_path_may_be_a_string(teacher, x, tmp_path):
    cache = TeacherCache.build(teacher, x, str(tmp_path))
    assert cache.path == pathlib.Path(tmp_path)
