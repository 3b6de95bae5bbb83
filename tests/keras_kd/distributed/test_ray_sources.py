"""What the workers of a Ray cluster read by themselves, how they find the cluster, and how much memory they take."""

import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from keras_kd.teachers import cache_store
from keras_kd.teachers.augmentations import CutMix, RandomShift
from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.file_sources import Loader, TFRecords

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'keras-kd[ray]')")
pytest.importorskip("ray.data", reason="Ray Data is not installed (pip install 'keras-kd[ray]')")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
COUNT = 60


@pytest.fixture(scope="module")
def address():
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3)).astype("uint8")


def teacher(batch):
    flat = np.asarray(batch, "float32").reshape(len(batch), -1)
    return flat @ np.sin(np.arange(5 * 108, dtype="float32")).reshape(108, 5)


def folder(path, images):
    for number, image in enumerate(images):
        place = path / "images" / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(tf.io.encode_png(image).numpy())
    return path / "images"


def parse(record):
    return tf.reshape(tf.io.decode_raw(record, tf.uint8), [6, 6, 3])


def records(path, images):
    for part in range(2):
        with tf.io.TFRecordWriter(str(path / f"part-{part}.tfrecord")) as writer:
            for image in images[30 * part : 30 * part + 30]:
                writer.write(image.tobytes())
    return TFRecords(path / "part-*.tfrecord", parse)


def mapped(path, images):
    np.save(path / "x.npy", images)
    return np.load(path / "x.npy", mmap_mode="r")


def zipped(path, images):
    np.savez(path / "x.npz", x=images, y=np.arange(COUNT))
    return path / "x.npz"


@pytest.mark.parametrize("make", [folder, records, mapped, zipped])
def test_mixed_views_of_files_are_those_of_a_local_build(make, address, images, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_store, "_SHARD_EXAMPLES", 16)
    data = make(tmp_path, images)

    def build(name, **engine):
        path = tmp_path / name
        TeacherCache.build(
            teacher,
            data,
            path,
            batch_size=8,
            views=2,
            augment=RandomShift(1),
            mix=CutMix(),
            dtype="float32",
            verbose=False,
            **engine,
        )
        return {shard.name: shard.read_bytes() for shard in path.glob("shard-*")}

    local = build("local")
    assert len(local) == 8
    assert build("ray", engine="ray", ray_options={"address": address}) == local


def test_a_tflite_teacher_goes_to_the_workers_as_it_is(address, images, tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    tflite_tools.convert(keras.Sequential(layers)).save(tmp_path / "teacher.tflite")
    np.save(tmp_path / "x.npy", images.astype("float32"))
    for name, engine in (("local", {}), ("ray", {"engine": "ray", "ray_options": {"address": address}})):
        arguments = {"dtype": "float32", "verbose": False, **engine}
        TeacherCache.build(str(tmp_path / "teacher.tflite"), tmp_path / "x.npy", tmp_path / name, **arguments)
    answers = [TeacherCache.open(tmp_path / name).targets(np.arange(COUNT)) for name in ("local", "ray")]
    # One thread or two may add in another order; logits of some hundreds in float32.
    np.testing.assert_allclose(answers[0]["outputs"], answers[1]["outputs"], rtol=1e-5, atol=1e-3)


def test_the_cluster_of_this_machine_is_found(address, images, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)  # other tests may have left a cluster behind
    np.save(tmp_path / "x.npy", images)
    built = []

    def build(name, options):
        TeacherCache.build(
            teacher, tmp_path / "x.npy", tmp_path / name, verbose=False, engine="ray", ray_options=options
        )
        built.append(name)

    build("auto", {"address": "auto"})
    build("variable", None)
    ray.init(address=address, log_to_driver=False)
    try:
        build("open", {"address": "auto"})
        assert ray.is_initialized()  # the caller's own connection stays
    finally:
        ray.shutdown()
    shards = [(tmp_path / name / "shard-000000.bin").read_bytes() for name in built]
    assert shards[0] == shards[1] == shards[2]


EXAMPLE_BYTES = 200_000


class Watching:
    """A teacher that writes down how much memory of its own the process that it is in holds."""

    def __init__(self, log):
        self.log = str(log)

    def __call__(self, batch):
        if len(batch) == 16:  # not the few examples that a teacher is recognised by
            with pathlib.Path(self.log).open("a") as log:
                log.write(f"{own_memory()}\n")
        return batch[:, :3].astype("float32")


def own_memory():
    """Bytes that belong to this process alone, without the files that it has mapped."""
    status = pathlib.Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


def load(indices):
    return np.broadcast_to((indices % 251)[:, None], (len(indices), EXAMPLE_BYTES)).astype("uint8")


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_data(address, tmp_path, monkeypatch):
    """820 MB of examples: a batch has 3 MB, a shard 100 MB, and a block that is digested at a time 205 MB."""
    monkeypatch.setattr(cache_store, "_SHARD_EXAMPLES", 512)
    before = own_memory()
    TeacherCache.build(
        Watching(tmp_path / "log"),
        Loader(load, 4096),
        tmp_path / "cache",
        batch_size=16,
        verbose=False,
        engine="ray",
        ray_options={"address": address},
    )
    # The driver reads eight examples; Ray's own threads and buffers take the rest.
    assert own_memory() - before < 150e6
    held = np.array([int(line) for line in (tmp_path / "log").read_text().split()])
    assert len(held) == 256
    # No worker holds as much as one shard of examples more than at its first batches.
    assert held.max() - held.min() < 80e6
