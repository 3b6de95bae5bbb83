"""Wrong use of a cache is refused before training, and damage is named and repaired."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import Distiller, TeacherCache, losses
from keras_kd.teachers import cache_store
from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError, CorruptShardError

WEIGHTS = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")


def teacher(batch):
    return np.asarray(batch) @ WEIGHTS


def other_teacher(batch):
    return np.asarray(batch) @ (WEIGHTS + 0.1)


def noise(example, seed, scale=0.1):
    return example + scale * tf.random.stateless_normal([4], seed)


def restless(example, seed):
    return example + tf.random.normal([4])


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3000, 4)).astype("float32")


@pytest.fixture
def cache(x, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_store, "_SHARD_EXAMPLES", 512)  # six shards
    return TeacherCache.build(teacher, x, tmp_path / "cache", batch_size=256)


def shard(cache, number):
    return cache.path / f"shard-{number:06d}.bin"


def test_other_data_are_refused_and_the_place_is_named(cache, x):
    with pytest.raises(CacheMismatchError, match="3,000 examples, x has 2,999"):
        cache.dataset(x[:-1], batch_size=8)
    swapped = x.copy()
    swapped[[2050, 2051]] = swapped[[2051, 2050]]
    with pytest.raises(CacheMismatchError, match="among the examples 2,048 to 2,999"):
        cache.dataset(swapped, batch_size=8)
    changed = x.copy()
    changed[5, 0] = np.nextafter(changed[5, 0], 9)
    with pytest.raises(CacheMismatchError, match="among the examples 0 to 1,023"):
        cache.dataset(changed, batch_size=8)
    with pytest.raises(CacheMismatchError, match=r"<f4\[4\], x has <f8\[4\]"):
        cache.dataset(x.astype("float64"), batch_size=8)


def test_another_teacher_is_refused(cache, x):
    with pytest.raises(CacheMismatchError, match="answers the first examples differently"):
        TeacherCache.build(other_teacher, x, cache.path, batch_size=256)
    with pytest.raises(CacheMismatchError, match="answers the first examples differently"):
        cache.repair(other_teacher, x)
    with pytest.raises(CacheMismatchError, match="other examples than the cache was made from"):
        cache.repair(teacher, x[::-1].copy())
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(CacheMismatchError, match=r"another kind \(callable and keras\)"):
        cache.repair(model, x)


def test_a_keras_teacher_with_other_weights_or_layers_is_refused(x, tmp_path):
    def network(width):
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense
        return keras.Sequential([keras.Input((4,)), dense(width, "relu", name="hidden"), dense(3)])

    model = network(8)
    cache = TeacherCache.build(model, x, tmp_path)
    assert cache.repair(network(8), x) == ()  # the same network made again is the same teacher
    with pytest.raises(CacheMismatchError, match="another architecture"):
        cache.repair(network(9), x)
    kernel = model.layers[0].kernel
    kernel.assign(kernel + 1e-6)
    with pytest.raises(CacheMismatchError, match="other weights"):
        cache.repair(model, x)


def test_another_augmentation_is_refused(x, tmp_path):
    cache = TeacherCache.build(teacher, x, tmp_path, views=2, augment=noise)
    with pytest.raises(CacheMismatchError, match=r"augment=noise, and this is partial\(noise, scale=0.2\)"):
        TeacherCache.build(teacher, x, tmp_path, views=2, augment=functools.partial(noise, scale=0.2))
    with pytest.raises(CacheMismatchError, match="augment=noise, and this is restless"):
        TeacherCache.open(tmp_path, augment=restless)
    with pytest.raises(CacheMismatchError, match="views=2, and views=3"):
        TeacherCache.build(teacher, x, tmp_path, views=3, augment=noise)
    with pytest.raises(CacheMismatchError, match="seed=0, and seed=1"):
        TeacherCache.build(teacher, x, tmp_path, views=2, augment=noise, seed=1)

    def changed(example, seed):
        return example + 0.11 * tf.random.stateless_normal([4], seed)

    changed.__qualname__ = changed.__name__ = "noise"
    opened = TeacherCache.open(tmp_path, augment=changed)
    with pytest.raises(CacheMismatchError, match="its code or settings changed"):
        opened.dataset(x, batch_size=8)
    assert cache.dataset(x, batch_size=8) is not None


def test_an_augmentation_that_is_not_at_hand_is_asked_for(x, tmp_path):
    def local(example, seed):
        return noise(example, seed)

    TeacherCache.build(teacher, x, tmp_path, views=2, augment=local)
    opened = TeacherCache.open(tmp_path)
    with pytest.raises(CacheMismatchError, match=r"TeacherCache.open\(path, augment=...\)"):
        opened.dataset(x, batch_size=8)
    assert TeacherCache.open(tmp_path, augment=local).dataset(x, batch_size=8) is not None


def test_an_augmentation_that_is_not_stateless_is_refused(x, tmp_path):
    with pytest.raises(CacheError, match="augment is not stateless"):
        TeacherCache.build(teacher, x, tmp_path, views=2, augment=restless)


def test_missing_classes_are_refused(cache, x):
    with pytest.raises(CacheMismatchError, match="classes from 0 to 3, and the teacher knows 3"):
        cache.dataset(x, np.arange(3000) % 4, batch_size=8)
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match=r"\(None, 3\).*\(None, 5\)"):
        Distiller(cache, student, losses.LogitsDistillation())


def test_arguments_are_refused_together(x, tmp_path):
    with pytest.raises(CacheError) as error:
        TeacherCache.build(teacher, x, tmp_path, views=0, batch_size=-1, seed=1.5, augment="flip")
    for name in ("views", "batch_size", "seed", "augment"):
        assert f"- {name} must be" in str(error.value)
    with pytest.raises(CacheError, match="would store the same answers 4 times"):
        TeacherCache.build(teacher, x, tmp_path, views=4)
    with pytest.raises(CacheError, match="top_k must be at least 1 and less"):
        TeacherCache.build(teacher, x, tmp_path, top_k=3)
    with pytest.raises(CacheError, match="can be tapped in a Keras model only"):
        TeacherCache.build(teacher, x, tmp_path, layers=("conv",))
    with pytest.raises(CacheError, match="dtype='float32'"):
        TeacherCache.build(lambda batch: 1e6 * teacher(batch), x, tmp_path / "large")
    with pytest.raises(CacheError, match="not finite"):
        TeacherCache.build(lambda batch: np.nan * teacher(batch), x, tmp_path / "nan")
    with pytest.raises(CacheError, match="one row per example"):
        TeacherCache.build(lambda batch: teacher(batch)[0], x, tmp_path / "row")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(CacheError, match="holds other files"):
        TeacherCache.build(teacher, x, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").exists()


def test_dataset_arguments_are_refused_together(cache, x):
    with pytest.raises(CacheError) as error:
        cache.dataset(x, np.zeros(5), batch_size=0, initial_epoch=-1, sample_weight=np.ones(4))
    for text in ("batch_size must", "initial_epoch must", "y has 5 entries", "sample_weight has 4 entries"):
        assert text in str(error.value)


def test_plain_arrays_under_a_cache_are_refused(cache, x):
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    distiller = Distiller(cache, student, losses.LogitsDistillation(), student_loss_weight=0)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=r"cache\.dataset\("):
        distiller.fit(x, verbose=0)


def test_a_truncated_shard_is_named_when_opened(cache):
    content = shard(cache, 2).read_bytes()
    shard(cache, 2).write_bytes(content[:-1])
    shard(cache, 4).unlink()
    with pytest.raises(
        CorruptShardError, match=r"shard 2: shard-000002\.bin has 3,071 bytes instead of 3,072"
    ) as error:
        TeacherCache.open(cache.path)
    assert error.value.shards == (2, 4)


@pytest.mark.parametrize("where", [0, 1500, 3071])
def test_one_altered_byte_is_found_before_training_and_repaired(cache, x, where):
    before = {number: shard(cache, number).read_bytes() for number in range(6)}
    content = bytearray(before[3])
    content[where] ^= 1
    shard(cache, 3).write_bytes(bytes(content))
    opened = TeacherCache.open(cache.path)  # the size is right
    with pytest.raises(CorruptShardError, match=r"shard 3: shard-000003\.bin was altered") as error:
        opened.dataset(x, batch_size=8)
    assert error.value.shards == (3,)
    with pytest.raises(CorruptShardError):
        opened.verify()
    untouched = shard(cache, 2).stat().st_mtime_ns
    assert opened.repair(teacher, x) == (3,)
    opened.verify()
    assert {number: shard(cache, number).read_bytes() for number in range(6)} == before
    assert shard(cache, 2).stat().st_mtime_ns == untouched
    assert opened.dataset(x, batch_size=8) is not None


def test_an_unfinished_cache_cannot_be_opened(cache):
    path = cache.path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["shards"]["5"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="1 of 6 shards are missing"):
        TeacherCache.open(cache.path)


def test_a_manifest_of_the_future_and_no_manifest_are_refused(cache, tmp_path):
    with pytest.raises(CacheError, match="is not a folder"):
        TeacherCache.open(tmp_path / "nowhere")
    path = cache.path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(CacheError, match="format 99"):
        TeacherCache.open(cache.path)
    path.write_text('{"format": "something else"}')
    with pytest.raises(CacheError, match="not the manifest of a teacher cache"):
        TeacherCache.open(cache.path)


def test_resume_false_begins_anew(cache, x):
    again = TeacherCache.build(other_teacher, x, cache.path, batch_size=256, resume=False)
    np.testing.assert_allclose(again.targets([7])["outputs"], other_teacher(x[7:8]), atol=5e-3)
