"""Caches built by a real Ray cluster of two nodes on this machine hold the bytes of a local build, whatever happens."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

import keras_kd
from keras_kd.teachers import cache_build, cache_store
from keras_kd.teachers.augmentations import Jitter
from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.cache_errors import CacheError, CorruptShardError
from keras_kd.teachers.file_sources import Loader
from keras_kd.teachers.ray_options import RayOptions

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'keras-kd[ray]')")
pytest.importorskip("ray.data", reason="Ray Data is not installed (pip install 'keras-kd[ray]')")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster

ROOT = pathlib.Path(__file__).resolve().parents[3]
# The workers see no test module: its functions and classes travel by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
HEAD = {**NODE, "include_dashboard": False}
EXAMPLES, SHARD = 640, 32


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={**HEAD, "ray_client_server_port": 23790})
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def head():
    """A cluster of one node, to which a test adds others, and from which it takes them away."""
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    yield cluster
    cluster.shutdown()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cache_store, "_SHARD_EXAMPLES", SHARD)


@pytest.fixture
def x(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(EXAMPLES, 8)).astype("float32"))
    return tmp_path / "x.npy"


class Teacher:
    """A matrix; says on which node and in which process it was loaded, and can be slow, or deadly."""

    def __init__(self, log, seconds=0.0, slow_seconds=0.0, deadly=None):
        self.log, self.seconds, self.slow_seconds, self.deadly = str(log), seconds, slow_seconds, deadly
        self.weights = np.random.default_rng(1).normal(size=(8, 12)).astype("float32")

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.note("loaded")

    def note(self, what):
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "driver"
        with pathlib.Path(self.log).open("a") as log:
            log.write(f"{what} {os.getpid()} {node}\n")

    def __call__(self, batch):
        if len(batch) == 16:  # not the few examples that a teacher is recognised by
            self.note("batch")
            first = pathlib.Path(self.log).read_text().split()[1]
            time.sleep(self.slow_seconds if str(os.getpid()) == first else self.seconds)
        if self.deadly is not None and len(batch) == 16 and self.deadly in batch:
            os._exit(1)
        return batch @ self.weights


def notes(log, what):
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(int(pid), node) for kind, pid, node in lines if kind == what]


def build(teacher, x, path, cluster=None, **options):
    arguments = {"batch_size": 16, "views": 2, "augment": Jitter(0.1), "top_k": 5, "verbose": False}
    arguments.update(
        {name: options.pop(name) for name in list(options) if name in ("verbose", "views", "augment")}
    )
    if cluster is not None:
        address = cluster if isinstance(cluster, str) else cluster.address
        arguments.update(engine="ray", ray_options={"address": address, **options})
    return TeacherCache.build(teacher, x, path, **arguments)


def same_bytes(first, second, shards=2 * EXAMPLES // SHARD):
    names = {file.name for file in first.glob("shard-*")}
    assert names == {file.name for file in second.glob("shard-*")}  # nothing half-written is left either
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first, second)]
    assert manifests[0] == manifests[1]
    assert len(names) == shards


def wait_for_shards(folder, count, timeout_s=120):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (folder / "manifest.json").exists():
            done = len(cache_store.read_manifest(folder).shards)
            if done >= count:
                return done
        time.sleep(0.05)
    raise TimeoutError(f"{folder} has not {count} shards after {timeout_s} s")


def in_background(function):
    """Runs a function beside the test; .join() hands on what it raised."""
    failed = []

    def run():
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join():
        thread.join(120)
        if failed:
            raise failed[0]

    return join


def test_two_nodes_store_the_bytes_of_a_local_build(two_nodes, x, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cache_build, "LINE_EVERY_S", 0.0)  # a line for every shard
    log = tmp_path / "log"
    build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
    cache = build(Teacher(log, seconds=0.05), x, tmp_path / "ray", two_nodes, verbose=True)
    same_bytes(tmp_path / "local", tmp_path / "ray")
    # Loaded once by each of two workers, which did all the batches.
    assert len(notes(log, "loaded")) == 2
    assert {node for _, node in notes(log, "loaded")} == {node["NodeID"] for node in alive(two_nodes)}
    assert set(notes(log, "batch")) == set(notes(log, "loaded"))
    assert cache.examples == EXAMPLES
    printed = capfd.readouterr().out
    assert "40 shards by 2 workers" in printed
    # Once both have begun: shards, workers, rate, what remains.
    assert re.search(r"\d+ of 40 shards, 2 workers, [\d,]+ examples per second, about \d+ s left", printed)


def alive(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        return [node for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@keras.saving.register_keras_serializable(package="somebody")
class Doubling(keras.layers.Layer):
    """A layer that no worker has ever heard of."""

    def call(self, inputs):
        return 2.0 * inputs


@pytest.mark.slow
def test_keras_teachers_ensembles_and_features_come_over_whole(two_nodes, x, tmp_path):
    keras.utils.set_random_seed(0)

    def model():
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(9, activation="tanh", name="hidden")(inputs)
        return keras.Model(inputs, keras.layers.Dense(12)(Doubling()(hidden)))

    ensemble = keras_kd.TeacherEnsemble(
        [model(), model()], [3, 1], preprocessing=[None, lambda batch: -batch]
    )
    for name, teacher, layers in (("model", model(), ("hidden",)), ("ensemble", ensemble, ())):
        common = {"batch_size": 16, "layers": layers, "verbose": False}
        local = TeacherCache.build(teacher, x, tmp_path / f"{name}-local", **common)
        options = {"address": two_nodes.address}
        TeacherCache.build(teacher, x, tmp_path / f"{name}-ray", engine="ray", ray_options=options, **common)
        for shard in sorted(local.path.glob("shard-*")):
            other = np.frombuffer((tmp_path / f"{name}-ray" / shard.name).read_bytes(), "float16")
            # One thread instead of two may add in another order: one step of float16 at values of about 4.
            np.testing.assert_allclose(np.frombuffer(shard.read_bytes(), "float16"), other, atol=2**-8)


@pytest.mark.slow
def test_a_node_that_is_killed_in_the_middle_changes_nothing(head, x, tmp_path):
    other = head.add_node(**NODE)
    build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
    log = tmp_path / "log"

    def kill():
        wait_for_shards(tmp_path / "ray", 6)
        head.remove_node(other, allow_graceful=False)

    join = in_background(kill)
    build(Teacher(log, seconds=0.3), x, tmp_path / "ray", head)
    join()
    same_bytes(tmp_path / "local", tmp_path / "ray")
    assert len({node for _, node in notes(log, "batch")}) == 2  # both had worked


@pytest.mark.slow
def test_a_node_that_joins_works_too(head, x, tmp_path):
    build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
    log = tmp_path / "log"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = start_driver(script, x, tmp_path / "ray", head, log, seconds=0.5, num_workers=2)
    wait_for_shards(tmp_path / "ray", 3)
    head.add_node(**NODE)
    assert driver.wait(timeout=300) == 0, driver.stderr.read()
    same_bytes(tmp_path / "local", tmp_path / "ray")
    assert len({node for _, node in notes(log, "batch")}) == 2


DRIVER = f"""
import pathlib, sys
sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
import test_ray_build as tests
from keras_kd.teachers import cache_store
cache_store._SHARD_EXAMPLES = tests.SHARD
x, path, address, log, seconds, workers = sys.argv[1:]
teacher = tests.Teacher(log, seconds=float(seconds))
tests.build(teacher, pathlib.Path(x), pathlib.Path(path), address, num_workers=int(workers))
"""


def start_driver(script, x, path, cluster, log, *, seconds, num_workers):
    command = [sys.executable, script, x, path, cluster.address, log, seconds, num_workers]
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(two_nodes, x, tmp_path):
    build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
    log, path, script = tmp_path / "log", tmp_path / "ray", tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = start_driver(script, x, path, two_nodes, log, seconds=0.2, num_workers=2)
    wait_for_shards(path, 8)
    driver.send_signal(signal.SIGKILL)
    driver.wait(timeout=30)
    finished = cache_store.read_manifest(path).shards
    made = {shard: cache_store.shard_path(path, shard).stat().st_mtime_ns for shard in finished}
    assert 8 <= len(made) < 40
    driver = start_driver(script, x, path, two_nodes, log, seconds=0.0, num_workers=2)
    assert driver.wait(timeout=300) == 0, driver.stderr.read()
    same_bytes(tmp_path / "local", path)
    assert made == {shard: cache_store.shard_path(path, shard).stat().st_mtime_ns for shard in finished}


@pytest.mark.slow
def test_a_straggler_holds_up_one_shard_only(two_nodes, x, tmp_path):
    log = tmp_path / "log"
    build(Teacher(log, slow_seconds=3.0, seconds=0.01), x, tmp_path / "ray", two_nodes)
    slow = notes(log, "loaded")[0]
    # Two batches a shard: while the slow one makes its first shards in 6 s each, the other makes the rest.
    assert 1 <= notes(log, "batch").count(slow) <= 8
    assert len(notes(log, "batch")) >= 80


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_is_named(two_nodes, x, tmp_path):
    deadly = np.load(x)[5 * SHARD + 3, 0]
    with pytest.raises(CacheError, match=r"2 workers died, one after the other, while they made shard 5"):
        build(
            Teacher(tmp_path / "log", deadly=deadly),
            x,
            tmp_path / "ray",
            two_nodes,
            views=1,
            augment=None,
            max_attempts=2,
        )
    assert not list((tmp_path / "ray").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_shard_that_differs_on_the_disk_is_made_again_once(two_nodes, x, tmp_path, times):
    path = tmp_path / "ray"

    def spoil():
        seen = set()
        end = time.monotonic() + 100
        while len(seen) < times and time.monotonic() < end:
            shard = path / "shard-000003.bin"
            if shard.exists() and (stamp := shard.stat().st_ino) not in seen:
                seen.add(stamp)
                with shard.open("r+b") as file:
                    file.write(b"\xff")
            time.sleep(0.002)

    join = in_background(spoil)
    # Slow enough for the other thread to come between the last shard and the comparison.
    arguments = (Teacher(tmp_path / "log", seconds=0.1), x, path, two_nodes)
    if times == 2:
        with pytest.raises(CorruptShardError, match=r"shard 3 differ.* twice") as caught:
            build(*arguments)
        assert caught.value.shards == (3,)
    else:
        build(*arguments)
        build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
        same_bytes(tmp_path / "local", path)
    join()


@pytest.mark.slow
def test_other_versions_are_found_before_the_work(two_nodes, x, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    for package in ("keras_kd", "tflite_tools"):
        shutil.copytree(ROOT / package, elsewhere / package)
    (elsewhere / "tflite_tools" / "version.py").write_text('__version__ = "0.0.1"\n')
    # Ray puts the driver's current folder before PYTHONPATH, and the folder of this project holds the packages.
    monkeypatch.chdir(tmp_path)
    environment = {"env_vars": {"PYTHONPATH": str(elsewhere)}}
    log = tmp_path / "log"
    with pytest.raises(CacheError, match=r"keras_kd 0\.0\.1 instead of"):
        build(Teacher(log), x, tmp_path / "ray", two_nodes, runtime_env=environment)
    assert not notes(log, "loaded")
    assert not list((tmp_path / "ray").glob("shard-*"))


@pytest.mark.slow
def test_a_cluster_is_reached_from_outside(two_nodes, x, tmp_path, monkeypatch):
    monkeypatch.undo()  # the driver, which runs in the cluster, does not know of small shards: each view is one
    build(Teacher(tmp_path / "local_log"), x, tmp_path / "local")
    build(Teacher(tmp_path / "log"), x, tmp_path / "ray", "ray://127.0.0.1:23790")
    same_bytes(tmp_path / "local", tmp_path / "ray", shards=2)


@pytest.mark.slow
def test_a_cluster_of_its_own_and_the_command_line(x, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_object_store_memory", str(80 << 20))
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(12)]).save(tmp_path / "teacher.keras")
    command = [
        sys.executable,
        "-m",
        "keras_kd.teachers.cache",
        "build",
        f"--teacher={tmp_path / 'teacher.keras'}",
    ]
    command += [
        f"--data={x}",
        f"--path={tmp_path / 'ray'}",
        "--engine=ray",
        "--address=local",
        "--num_workers=1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "shards                      1 of 1" in done.stdout


@pytest.mark.slow
def test_the_teachers_own_error_is_what_one_sees(two_nodes, x, tmp_path):
    def teacher(batch):
        return batch * (np.nan if len(batch) == 16 else 1.0)

    with pytest.raises(CacheError, match="not finite"):
        build(teacher, x, tmp_path / "ray", two_nodes)


def test_examples_in_memory_are_refused_before_a_cluster_is_looked_for(x, tmp_path):
    with pytest.raises(CacheError, match="the workers read the examples themselves"):
        build(lambda batch: batch, np.load(x), tmp_path / "ray", "ray://127.0.0.1:1")
    with pytest.raises(CacheError, match="without engine='ray'"):
        TeacherCache.build(lambda batch: batch, x, tmp_path / "c", ray_options={"num_cpus": 1})
    with pytest.raises(CacheError, match="engine must be 'local' or 'ray'"):
        TeacherCache.build(lambda batch: batch, x, tmp_path / "c", engine="beam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_worker": 2}, "no entry 'num_worker'. Did you mean 'num_workers'"),
        ({"num_workers": 0}, "whole number of at least 1, got 0"),
        ({"num_cpus": -1}, "at least 0, got -1"),
        ({"num_cpus": 0}, "a processor or a GPU"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(CacheError, match=message):
        RayOptions.of(options)


def test_the_cluster_has_no_room(two_nodes, x, tmp_path):
    with pytest.raises(CacheError, match=r"No node of the cluster has room .* the cluster has 2 CPU, 0 GPU"):
        build(lambda batch: batch, x, tmp_path / "ray", two_nodes, num_gpus=1)


@pytest.mark.slow
def test_a_loader_needs_no_file(two_nodes, tmp_path):
    def load(indices):
        return np.sin(np.arange(6) + indices[:, None]).astype("float32")

    def run(**engine):
        path = tmp_path / ("ray" if engine else "local")
        TeacherCache.build(
            lambda batch: batch, Loader(load, 100), path, batch_size=16, verbose=False, **engine
        )
        return [file.read_bytes() for file in sorted(path.glob("shard-*"))]

    assert run(engine="ray", ray_options={"address": two_nodes.address}) == run()
