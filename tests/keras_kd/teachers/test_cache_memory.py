"""Building and training hold a few batches in memory, whatever the size of the data."""

import gc
import json
import pathlib
import subprocess
import sys
import weakref

import numpy as np
import pytest

from keras_kd.teachers.nests import map_leaves

HERE = pathlib.Path(__file__).parent
EXAMPLES, EXAMPLE_BYTES, BATCH = 1024, 200_000, 16


def test_nests_keep_nothing_alive():
    array = np.zeros(3)
    alive = weakref.ref(array)
    gc.disable()  # nothing but the count of references
    try:
        map_leaves(lambda leaf: leaf, {"a": [array, (array,)]})
        del array
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("augment", [(), ("augmented",)], ids=["plain", "augmented"])
def test_memory_does_not_grow_with_the_data(augment, tmp_path):
    # A process of its own: what the tests before left behind moves by more than what is looked for.
    sizes = map(str, (EXAMPLES, EXAMPLE_BYTES, BATCH))
    command = [sys.executable, HERE / "memory_script.py", tmp_path, *sizes, *augment]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    held = json.loads(done.stdout.splitlines()[-1])
    # 205 MB of examples in batches of 3.2 MB. A pipeline holds up to about ten of them: two in the making by each of
    # two processors, their parts before and behind the augmentation, two fetched ahead.
    assert held["digest_bytes"] == 16
    assert held["checked"] < 60e6
    assert len(held["built"]) > EXAMPLES // BATCH and max(held["built"]) - min(held["built"]) < 60e6
    trained = held["trained"]
    assert len(trained) == EXAMPLES // BATCH and max(trained[8:]) - min(trained[8:]) < 60e6
