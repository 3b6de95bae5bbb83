"""Data that workers read by themselves: the same examples as from memory, and a pickle without examples."""

import pickle

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_sources import BLOCK_EXAMPLES, ArraySource, DirectorySource, as_source
from keras_kd.teachers.file_sources import (
    ArrayFiles,
    Loader,
    TFRecords,
    record_offsets,
    without_examples,
)
from keras_kd.teachers.nests import leaves

COUNT = 2500  # more than two blocks of digests


def examples(count=COUNT):
    return np.random.default_rng(0).normal(size=(count, 6)).astype("float32")


def parse(record):
    return tf.reshape(tf.io.decode_raw(record, tf.float32), [6])


def load(indices):
    return examples()[indices]


def npy(folder):
    np.save(folder / "x.npy", examples())
    return as_source(folder / "x.npy")


def npz(folder):
    np.savez(folder / "two.npz", y=np.arange(3), x=examples())
    return as_source(str(folder / "two.npz"))


def fortran(folder):
    np.save(folder / "f.npy", np.asfortranarray(examples()))
    return ArrayFiles(folder / "f.npy")


def memory_map(folder):
    np.save(folder / "m.npy", examples())
    return without_examples(as_source(np.load(folder / "m.npy", mmap_mode="r")))


def tfrecords(folder):
    for part, rows in enumerate(np.array_split(examples(), 3)):
        with tf.io.TFRecordWriter(str(folder / f"part-{part}.tfrecord")) as writer:
            for row in rows:
                writer.write(row.tobytes())
    return TFRecords(folder / "part-*.tfrecord", parse)


def loader(folder):
    return Loader(load, COUNT)


KINDS = (npy, npz, fortran, memory_map, tfrecords, loader)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_examples_in_their_order(kind, tmp_path):
    source = pickle.loads(pickle.dumps(kind(tmp_path)))
    assert len(pickle.dumps(source)) < 2000
    assert source.count == COUNT
    parts = list(source.batches([(0, 5), (1020, 1030), (COUNT - 3, COUNT)], batch_size=4))
    indices = np.concatenate([part[0] for part in parts])
    assert indices.tolist() == [*range(5), *range(1020, 1030), *range(COUNT - 3, COUNT)]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), examples()[indices])
    wanted = np.array([2499, 0, 833, 834, 2499])
    np.testing.assert_array_equal(source.gather(wanted), examples()[wanted])


@pytest.mark.parametrize("kind", KINDS)
def test_digests_of_ranges_are_those_of_the_whole(kind, tmp_path):
    source = kind(tmp_path)
    limits = [(0, BLOCK_EXAMPLES), (BLOCK_EXAMPLES, COUNT)]
    parts = b"".join(source.digests(*range_)[1] for range_ in limits)
    assert parts == source.fingerprint()[1]


def test_array_files_are_the_same_data_as_arrays(tmp_path):
    assert npy(tmp_path).fingerprint() == ArraySource(examples()).fingerprint()


def test_a_cache_can_be_built_from_files_and_trained_on_from_memory(tmp_path):
    teacher = lambda batch: batch[:, :3]  # noqa: E731
    cache = TeacherCache.build(teacher, tfrecords(tmp_path), tmp_path / "records", verbose=False)
    (x, _), *_ = cache.dataset(tfrecords(tmp_path), np.arange(COUNT) % 3, batch_size=7, shuffle=False)
    np.testing.assert_array_equal(
        x["keras_kd/teacher"]["outputs"].numpy(), examples()[:7, :3].astype("float16")
    )
    cache = TeacherCache.build(
        teacher, tmp_path / "two.npz" if npz(tmp_path) else None, tmp_path / "zip", verbose=False
    )
    assert int(cache.dataset(examples(), batch_size=500).cardinality()) == 5


def test_several_inputs_come_from_several_files(tmp_path):
    np.save(tmp_path / "a.npy", examples())
    np.save(tmp_path / "b.npy", np.arange(COUNT))
    source = ArrayFiles({"a": tmp_path / "a.npy", "b": tmp_path / "b.npy"})
    assert {name: part.shape for name, part in source.gather(np.arange(2)).items()} == {
        "a": (2, 6),
        "b": (2,),
    }
    assert len(leaves(source.files)) == 2


def test_a_folder_of_images_is_digested_in_ranges(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3)).astype("uint8")
    for number, image in enumerate(pixels):
        (tmp_path / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    source = without_examples(as_source(tmp_path))
    assert isinstance(source, DirectorySource)
    assert source.digests(0, 3)[1] == source.fingerprint()[1]


def refused(function, *words):
    with pytest.raises(CacheError) as caught:
        function()
    for word in words:
        assert word in str(caught.value)


def test_wrong_files_are_refused_by_name(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", x=examples(10))
    refused(lambda: as_source(tmp_path / "c.npz"), "c.npz", "np.savez")
    np.savez(tmp_path / "z.npz", images=examples(10))
    refused(lambda: as_source(tmp_path / "z.npz"), "no array 'x'", "images")
    refused(lambda: as_source(tmp_path / "none.npy"), "none.npy")
    (tmp_path / "text.npy").write_text("no array")
    refused(lambda: as_source(tmp_path / "text.npy"), "text.npy")
    refused(lambda: TFRecords(tmp_path / "*.none", parse), "no TFRecord files")
    (tmp_path / "broken.tfrecord").write_bytes(b"\x05" + b"\0" * 40)
    refused(lambda: record_offsets(str(tmp_path / "broken.tfrecord")), "broken.tfrecord", "whole TFRecord")
    refused(lambda: Loader(load, 0), "count")
    refused(lambda: Loader(None, 3), "load")
    refused(lambda: Loader(lambda indices: np.zeros((1, 2)), 5).gather(np.arange(3)), "lengths", "3 examples")


def test_what_lies_in_memory_cannot_be_sent(tmp_path):
    refused(lambda: without_examples(as_source(examples())), "memory", "mmap_mode='r'")
    batches = tf.data.Dataset.from_tensor_slices(examples()).batch(5)
    refused(lambda: without_examples(as_source(batches)), "data set of batches")
    np.save(tmp_path / "m.npy", examples())
    part = np.load(tmp_path / "m.npy", mmap_mode="r")[100:]
    refused(lambda: without_examples(as_source(part)), "a part of the file")
