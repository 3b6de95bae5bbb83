"""A build that is killed, refused or starved leaves whole files only, and goes on to the same bytes.

The processes that are killed run `LIGHT`, which loads the cache without TensorFlow: `import keras_kd` loads Keras,
and a package of the same name and place, without its `__init__`, leaves the modules that need neither as they are.
"""

import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
KILLS = 24

LIGHT = """
import pathlib
import sys
import types

ROOT = pathlib.Path(__ROOT__)
package = types.ModuleType("keras_kd")
package.__path__ = [str(ROOT / "keras_kd")]
sys.modules.setdefault("keras_kd", package)
sys.path.insert(0, str(ROOT))

import numpy as np

from keras_kd.teachers import cache_store
from keras_kd.teachers.cache import TeacherCache

cache_store._SHARD_EXAMPLES = 32
EXAMPLES, CLASSES = 2000, 50
WEIGHTS = np.random.default_rng(1).normal(size=(8, CLASSES)).astype("float32")


def data(examples=EXAMPLES):
    return np.random.default_rng(0).normal(size=(examples, 8)).astype("float32")


def teacher(batch):
    print("batch", flush=True)
    return batch @ WEIGHTS


def build(path, teacher=teacher, examples=EXAMPLES, **options):
    return TeacherCache.build(teacher, data(examples), path, batch_size=16, verbose=False, **options)


if __name__ == "__main__":
    assert "tensorflow" not in sys.modules
    build(sys.argv[1])
    assert "tensorflow" not in sys.modules
    print("finished")
"""


@pytest.fixture
def start(tmp_path):
    """Starts a Python process beside the module `light`."""
    home = tmp_path / "light"
    home.mkdir()
    (home / "light.py").write_text(LIGHT.replace("__ROOT__", repr(str(ROOT))))

    def run(*arguments, code=None, before=()):
        command = [*before, sys.executable, *(["-c", code] if code else ["light.py"]), *map(str, arguments)]
        return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def finish(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "build.lock"}


def check_what_is_there(folder):
    """Every shard that the manifest knows is whole; nothing but a temporary file is half there."""
    if not (folder / "manifest.json").exists():
        return 0
    manifest = json.loads((folder / "manifest.json").read_text())
    for number, checksum in manifest["shards"].items():
        content = (folder / f"shard-{int(number):06d}.bin").read_bytes()
        assert hashlib.sha256(content).hexdigest() == checksum
    return len(manifest["shards"])


def test_killed_at_random_moments_it_resumes_to_the_same_bytes(start, tmp_path):
    finish(start(tmp_path / "whole"))
    expected = bytes_of(tmp_path / "whole")
    assert len(expected) == 63 + 2  # 2000 examples in shards of 32, the manifest, the digests of the data

    chance = random.Random(0)
    folder, kills, progress = tmp_path / "killed", 0, []
    while kills < KILLS:
        process = start(folder)
        # Some batches on, and then at any moment: while computing, writing, renaming, or before the first batch.
        for _ in range(chance.randrange(12)):
            process.stdout.readline()
        time.sleep(chance.uniform(0, 0.01))
        process.kill()  # SIGKILL: nothing is cleaned up
        process.communicate()
        progress.append(check_what_is_there(folder) if folder.exists() else 0)
        if process.returncode == -9:
            kills += 1
        else:
            assert process.returncode == 0
            shutil.rmtree(folder)  # it was finished; begin again, so that the next kill interrupts something
    assert sum(0 < done < 63 for done in progress) > KILLS // 2, progress
    finish(start(folder))
    assert bytes_of(folder) == expected


def test_a_second_builder_is_refused_while_the_first_is_at_work(start, tmp_path):
    code = """
import sys, time
from light import *
def slow(batch):
    print("working", flush=True)
    time.sleep(30)
    return teacher(batch)
build(sys.argv[1], slow)
"""
    folder = tmp_path / "cache"
    first = start(folder, code=code)
    try:
        assert first.stdout.readline() == "working\n"
        second = start(folder)
        _, errors = second.communicate(timeout=60)
        assert second.returncode != 0
        assert "CacheLockedError" in errors and f"(pid {first.pid})" in errors
    finally:
        first.kill()
        first.communicate()
    assert finish(start(folder)).endswith("finished\n")  # the lock of the dead does not bind


STARVING = """
import os, pathlib, shutil, sys
from light import *
from keras_kd.teachers.cache_errors import CacheDiskFullError
disk = pathlib.Path(sys.argv[1])
(disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 50_000))
try:
    build(disk / "cache")
    raise SystemExit("a build on a full disk was not refused")
except CacheDiskFullError as error:
    assert "200,000 more bytes" in str(error), error
(disk / "other").unlink()
calls = 0
def greedy(batch):
    # Somebody else fills the disk while the cache is being built.
    global calls
    calls += 1
    if calls == 30:
        with (disk / "other").open("wb") as file:
            try:
                while True:
                    file.write(bytes(4096)); file.flush()
            except OSError:
                pass
    return teacher(batch)
try:
    build(disk / "cache", greedy)
    raise SystemExit("the disk was not full")
except CacheDiskFullError as error:
    print(error)
    assert "more bytes" in str(error)
(disk / "other").unlink()
before = len(list((disk / "cache").glob("shard-*.bin")))
assert 5 < before < 63, before
assert not list((disk / "cache").glob("*.tmp"))
cache = build(disk / "cache", greedy)
cache.verify()
shutil.copytree(disk / "cache", sys.argv[2])
"""


def test_a_full_disk_ends_in_a_clear_error_and_what_was_built_stays(start, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs `unshare -rm`, for a small file system of its own")
    # A file system of 700 kB that only this process and its children see.
    mount = 'mount -t tmpfs -o size=700k none "$1" && shift && exec "$@"'
    finish(
        start(
            disk,
            tmp_path / "copy",
            code=STARVING,
            before=("unshare", "-rm", "sh", "-c", mount, "sh", str(disk)),
        )
    )
    finish(start(tmp_path / "whole"))
    shards = [name for name in bytes_of(tmp_path / "whole") if name.startswith("shard")]
    for name in shards:
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
