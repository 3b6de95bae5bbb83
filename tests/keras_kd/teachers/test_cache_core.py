"""TeacherCache: what is stored is what the teacher said of the very pixels that the student sees."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd
from keras_kd.teachers import cache_build
from keras_kd.teachers.targets import unpack

EXAMPLES, SIZE, CLASSES = 300, 6, 4


def flip_and_shift(image, seed):
    flipped = tf.image.stateless_random_flip_left_right(image, seed)
    offset = tf.random.stateless_uniform([], seed, minval=0, maxval=3, dtype=tf.int32)
    return tf.roll(flipped, offset, axis=0)


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (EXAMPLES, SIZE, SIZE, 1)).astype("uint8")
    return x, generator.integers(0, CLASSES, EXAMPLES).astype("int32")


def network(width, seed, layer="conv"):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(width, 3, activation="relu", name=layer),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


@pytest.fixture(scope="module")
def teacher():
    return network(8, 1)


@pytest.fixture(scope="module")
def cache(teacher, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    return keras_kd.TeacherCache.build(
        teacher, data[0], path, views=3, augment=flip_and_shift, layers=("conv",), batch_size=64
    )


def batches_of(dataset):
    return [tf.nest.map_structure(lambda leaf: leaf.numpy(), batch) for batch in dataset]


def order_of(dataset, x):
    """Which example stands where, found by its pixels; only for data sets without augmentation."""
    index = {image.tobytes(): number for number, image in enumerate(x)}
    return [index[image.tobytes()] for batch in batches_of(dataset) for image in unpack(batch[0])[0]]


def test_every_view_is_what_the_teacher_says_of_those_pixels(cache, teacher, data):
    changed = []
    for view in range(3):
        indices = np.arange(EXAMPLES)
        pixels = cache.inputs(data[0], indices, view=view)
        stored = cache.targets(indices, view=view)
        # The oracle runs the teacher anew. float16 keeps 11 bits: 2**-11 of the largest value, 1e-3 with room.
        live = teacher.predict(pixels, verbose=0)
        np.testing.assert_allclose(stored["outputs"], live, atol=1e-3 * np.abs(live).max())
        features = keras.Model(teacher.inputs, teacher.get_layer("conv").output).predict(pixels, verbose=0)
        np.testing.assert_allclose(stored["features"]["conv"], features, atol=1e-3 * np.abs(features).max())
        changed.append(pixels)
    assert not np.array_equal(changed[0], changed[1])
    assert not np.array_equal(changed[1], changed[2])


def test_pixels_are_those_of_the_stateless_function(cache, data):
    for view in (0, 2):
        seeds = cache._views().seeds(view, np.arange(5))
        expected = [flip_and_shift(data[0][i], seeds[i]).numpy() for i in range(5)]
        np.testing.assert_array_equal(cache.inputs(data[0], np.arange(5), view=view), expected)


def test_training_batches_carry_matching_pixels_targets_and_labels(cache, teacher, data):
    x, y = data
    dataset = cache.dataset(x, y, batch_size=64)
    assert int(dataset.cardinality()) == 5
    for epoch in range(4):
        counted = 0
        for batch in batches_of(dataset):
            inputs, targets = unpack(batch[0])
            live = teacher(inputs, training=False).numpy()
            np.testing.assert_allclose(targets["outputs"], live, atol=1e-3 * np.abs(live).max())
            assert targets["features"]["conv"].shape == (len(inputs), SIZE - 2, SIZE - 2, 8)
            counted += len(inputs)
        assert counted == EXAMPLES, epoch


def test_labels_and_weights_belong_to_their_examples(teacher, data, tmp_path):
    x, y = data
    plain = keras_kd.TeacherCache.build(teacher, x, tmp_path)
    weights = np.linspace(0, 1, EXAMPLES).astype("float32")
    dataset = plain.dataset(x, y, batch_size=7, sample_weight=weights)
    index = {image.tobytes(): number for number, image in enumerate(x)}
    for packed, labels, weight in batches_of(dataset):
        numbers = [index[image.tobytes()] for image in unpack(packed)[0]]
        np.testing.assert_array_equal(labels, y[numbers])
        np.testing.assert_array_equal(weight, weights[numbers])


def test_order_differs_by_epoch_and_repeats_with_the_seed(teacher, data, tmp_path):
    x, _ = data
    plain = keras_kd.TeacherCache.build(teacher, x, tmp_path)
    first, again = (plain.dataset(x, batch_size=64, seed=5) for _ in range(2))
    epochs = [order_of(first, x) for _ in range(3)]
    assert all(sorted(epoch) == list(range(EXAMPLES)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [order_of(again, x) for _ in range(3)]
    assert order_of(plain.dataset(x, batch_size=64, seed=6), x) != epochs[0]
    assert order_of(plain.dataset(x, batch_size=64, shuffle=False), x) == list(range(EXAMPLES))


def test_views_follow_the_epochs_wrap_and_resume(cache, data):
    x, _ = data

    def pixels(dataset, epochs):
        passes = []
        for _ in range(epochs):
            passes.append(np.concatenate([unpack(batch[0])[0] for batch in batches_of(dataset)]))
        return passes

    ordered = cache.dataset(x, batch_size=50, shuffle=False)
    seen = pixels(ordered, 4)
    for epoch in range(4):
        np.testing.assert_array_equal(seen[epoch], cache.inputs(x, np.arange(EXAMPLES), view=epoch % 3))
    resumed = cache.dataset(x, batch_size=50, seed=3, initial_epoch=2)
    straight = cache.dataset(x, batch_size=50, seed=3)
    np.testing.assert_array_equal(pixels(resumed, 1)[0], pixels(straight, 3)[2])


def test_a_look_at_the_first_batch_is_no_epoch(cache, data):
    dataset = cache.dataset(data[0], batch_size=50, shuffle=False)
    for _ in range(3):
        next(iter(dataset))
    first = next(iter(dataset))
    np.testing.assert_array_equal(unpack(first[0])[0], cache.inputs(data[0], np.arange(50), view=0))


def student_of(cache, data, epochs, *, initial_epoch=0, student=None, **fit):
    x, y = data
    distiller = keras_kd.Distiller(
        cache, student or network(4, 2), keras_kd.losses.LogitsDistillation(), student_loss_weight=0.3
    )
    distiller.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    dataset = cache.dataset(x, y, batch_size=64, initial_epoch=initial_epoch, seed=1)
    history = distiller.fit(dataset, epochs=epochs, initial_epoch=initial_epoch, verbose=0, **fit)
    return distiller, history


def test_a_distiller_learns_from_the_cache_as_from_the_teacher(cache, teacher, data):
    """The same student on the same batches, once with the stored answers and once with the live teacher."""
    x, y = data
    cached, history = student_of(
        cache, data, 3, validation_data=(x, y), class_weight={0: 2.0, 1: 1.0, 2: 1.0, 3: 1.0}
    )
    assert {"accuracy", "val_accuracy", "distillation_loss", "student_loss"} <= set(history.history)
    dataset = cache.dataset(x, y, batch_size=64, seed=1).map(
        lambda packed, labels: (packed["keras_kd/inputs"], labels)
    )
    live = keras_kd.Distiller(
        teacher,
        network(4, 2),
        keras_kd.losses.LogitsDistillation(),
        student_loss_weight=0.3,
        save_teacher="none",
    )
    live.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    live.fit(dataset, epochs=3, verbose=0, class_weight={0: 2.0, 1: 1.0, 2: 1.0, 3: 1.0})
    for ours, theirs in zip(cached.student.get_weights(), live.student.get_weights()):
        # 15 steps on targets that were rounded to float16; another view or order would differ in the second digit.
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_a_resumed_fit_ends_where_an_uninterrupted_one_ends(cache, data):
    whole, _ = student_of(cache, data, 4)
    half, _ = student_of(cache, data, 2)
    resumed, _ = student_of(cache, data, 4, initial_epoch=2, student=half.student)
    # Plain SGD keeps no state, so that nothing but order and views can make a difference.
    for ours, theirs in zip(resumed.student.get_weights(), whole.student.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_training_without_labels(cache, data):
    distiller = keras_kd.Distiller(
        cache, network(4, 2), keras_kd.losses.LogitsDistillation(), student_loss_weight=0
    )
    distiller.compile("sgd")
    history = distiller.fit(cache.dataset(data[0], batch_size=64), epochs=2, verbose=0)
    assert history.history["distillation_loss"][1] < history.history["distillation_loss"][0]


def test_open_finds_everything_again(cache, data):
    opened = keras_kd.TeacherCache.open(cache.path)
    assert (opened.examples, opened.views, opened.layer_names) == (EXAMPLES, 3, ("conv",))
    assert opened.feature_shapes == {"conv": (None, SIZE - 2, SIZE - 2, 8)}
    assert opened.outputs_are_logits is True
    indices = np.array([5, 0, 299])
    np.testing.assert_array_equal(opened.targets(indices)["outputs"], cache.targets(indices)["outputs"])
    assert "300" in opened.summary() and "bytes per example" in opened.summary()


def test_a_finished_cache_is_not_built_again(cache, teacher, data):
    before = {file.name: file.stat().st_mtime_ns for file in cache.path.glob("shard-*")}
    keras_kd.TeacherCache.build(
        teacher, data[0], cache.path, views=3, augment=flip_and_shift, layers=("conv",), batch_size=64
    )
    assert before == {file.name: file.stat().st_mtime_ns for file in cache.path.glob("shard-*")}


def test_stored_bytes_are_hardly_more_than_the_payload(tmp_path):
    """10,000 examples of 1000 classes, the 20 largest: 20 * (2 + 2) + 4 bytes each."""
    x = np.random.default_rng(0).normal(size=(10_000, 8)).astype("float32")
    weights = np.random.default_rng(1).normal(size=(8, 1000)).astype("float32")
    built = keras_kd.TeacherCache.build(lambda batch: batch @ weights, x, tmp_path, top_k=20)
    stored = sum(file.stat().st_size for file in built.path.iterdir())
    payload = 10_000 * 84
    assert payload <= stored <= 1.02 * payload
    assert json.loads((tmp_path / "manifest.json").read_text())["record_bytes"] == 84


def test_the_manifest_says_what_the_cache_was_made_with(cache):
    manifest = json.loads((cache.path / "manifest.json").read_text())
    assert {"keras_kd", "keras", "tensorflow", "numpy", "python"} <= set(manifest["versions"])
    assert manifest["layout"]["output_shapes"] == [[CLASSES]] and manifest["layout"]["dtype"] == "float16"
    assert manifest["layout"]["features"] == [{"layer": "conv", "shape": [SIZE - 2, SIZE - 2, 8]}]
    for name in ("architecture", "weights"):  # SHA-256
        assert len(manifest["teacher"][name]) == 64
    assert len(manifest["data"]["digest"]) == 64 and manifest["data"]["examples"] == EXAMPLES
    assert manifest["augment"]["name"] == "flip_and_shift" and manifest["seed"] == 0
    assert [len(checksum) for checksum in manifest["shards"].values()] == [64] * 3


def test_a_build_says_how_fast_it_is_and_how_long_it_takes(teacher, data, tmp_path, monkeypatch, capsys):
    # A clock that stands 10 s later each time it is asked.
    monkeypatch.setattr(cache_build.time, "monotonic", itertools.count(0, 10).__next__)
    keras_kd.TeacherCache.build(teacher, data[0], tmp_path / "loud", batch_size=100)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "teacher cache: 100 of 300 (33%), 10 per second, about 20 s left",
        "teacher cache: 200 of 300 (67%), 10 per second, about 10 s left",
    ]
    assert lines[-1].startswith("teacher cache: 300 targets, 2,400 bytes, in ")
    keras_kd.TeacherCache.build(teacher, data[0], tmp_path / "quiet", batch_size=100, verbose=False)
    assert capsys.readouterr().out == ""


def test_sample_weights_reach_the_losses(cache, data):
    """Weights of 0 for all examples but a few: the student learns as from the few alone."""
    x, y = data

    def trained(weights):
        distiller = keras_kd.Distiller(
            cache, network(4, 2), keras_kd.losses.LogitsDistillation(), student_loss_weight=0.3
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.05), loss)
        distiller.fit(
            cache.dataset(x, y, batch_size=EXAMPLES, sample_weight=weights, shuffle=False), verbose=0
        )
        return distiller.student.get_weights()

    start = network(4, 2).get_weights()
    for before, after in zip(start, trained(np.zeros(EXAMPLES))):
        np.testing.assert_array_equal(before, after)
    single, double = (trained(weight * (np.arange(EXAMPLES) < 9)) for weight in (1.0, 2.0))
    for before, one, two in zip(start, single, double):
        # One step of SGD is linear in the weights; float32 sums over 300 examples.
        np.testing.assert_allclose(two - before, 2 * (one - before), atol=1e-6)
    assert any(not np.array_equal(before, one) for before, one in zip(start, single))
