"""A cache of more shards than a process may have files open."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]

# Without TensorFlow, which opens files of its own; see test_cache_crashes.py.
SCRIPT = """
import pathlib, resource, sys, types
package = types.ModuleType("keras_kd")
package.__path__ = [sys.argv[1] + "/keras_kd"]
sys.modules["keras_kd"] = package
sys.path.insert(0, sys.argv[1])
import numpy as np
from keras_kd.teachers import cache_store
from keras_kd.teachers.cache import TeacherCache

cache_store._SHARD_EXAMPLES = 2
x = np.arange(1400, dtype="float32")[:, None]
cache = TeacherCache.build(lambda batch: batch, x, sys.argv[2], batch_size=2, dtype="float32", verbose=False)
assert len(list(pathlib.Path(sys.argv[2]).glob("shard-*"))) == 700
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
for order in (np.arange(1400), np.random.default_rng(0).permutation(1400)):
    for indices in order.reshape(-1, 20):
        assert (cache.targets(indices)["outputs"][:, 0] == indices).all()
print("read")
"""


def test_every_record_is_read(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "read", done.stderr[-2000:]
