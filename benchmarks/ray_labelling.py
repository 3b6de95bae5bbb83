"""Labelling on a Ray cluster: two one-core nodes against one, and Ray against the local engine.

    python benchmarks/ray_labelling.py
    python benchmarks/ray_labelling.py --repeats=1 --views=8

Each run is a process of its own. A node is a real Ray node on this machine whose processes are pinned to one core,
and so is the local build; the driver and Ray's own services may use all cores. "rate" is examples per second over the
second half of the shards, by the times of their files: by then all workers are at work. "whole" is the call of
TeacherCache.build, with the start of the workers, reading the data, and comparing checksums, but without the start
of the cluster.

Goals: two nodes at least 1.7 times the rate of one; one Ray worker at most 10 % slower than the local engine.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from absl import app, flags

from benchmarks.stored import Results

_EXAMPLES = flags.DEFINE_integer("examples", 1024, "Examples, which are one shard of each view.")
_VIEWS = flags.DEFINE_integer("views", 24, "Views, which is the number of shards.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each kind, taken in turn.")
_ONE = flags.DEFINE_string("one", None, "Used by the script itself: local, ray1 or ray2.")
KINDS = ("local", "ray1", "ray2")
OBJECT_STORE_BYTES = 80 << 20


def pinned_node(cluster: Any, core: int, **arguments: Any) -> None:
    """Add a node whose processes, and all that they start, run on one core."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES, **arguments)
    os.sched_setaffinity(0, everywhere)


def teacher() -> Any:
    """A plain convolutional network on 28x28x1 bytes, about 56 million multiplications an example."""
    import keras
    from keras import layers

    x = inputs = keras.Input((28, 28, 1))
    x = layers.Rescaling(1 / 255)(x)
    for width, stride in ((48, 1), (48, 1), (96, 2), (96, 1), (144, 2), (144, 1)):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def one(kind: str) -> dict[str, Any]:
    """One build in this process."""
    cores = sorted(os.sched_getaffinity(0))
    if kind == "local":
        os.sched_setaffinity(0, {cores[0]})
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = "1"
    import numpy as np

    import keras_kd
    from keras_kd.teachers.augmentations import RandomFlip, RandomShift, Sequence

    x = np.random.default_rng(0).integers(0, 256, (_EXAMPLES.value, 28, 28, 1)).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        augment = Sequence((RandomFlip(), RandomShift(2)))
        arguments: dict[str, Any] = {"views": _VIEWS.value, "augment": augment, "verbose": False}
        cluster = None
        if kind != "local":
            from ray.cluster_utils import Cluster

            cluster = Cluster()
            for number in range(int(kind[-1])):
                head = {"include_dashboard": False} if number == 0 else {}
                pinned_node(cluster, cores[number % len(cores)], **head)
            arguments.update(engine="ray", ray_options={"address": cluster.address})
        model = teacher()
        begin = time.perf_counter()
        keras_kd.TeacherCache.build(model, f"{folder}/x.npy", f"{folder}/cache", **arguments)
        whole_s = time.perf_counter() - begin
        finished = sorted(file.stat().st_mtime for file in pathlib.Path(folder, "cache").glob("shard-*"))
        if cluster is not None:
            cluster.shutdown()
    # The second half: workers begin seconds apart, and in a short build that would count for much.
    half = len(finished) // 2
    rate = _EXAMPLES.value * (len(finished) - half) / (finished[-1] - finished[half - 1])
    after = [round(time_s - finished[0], 2) for time_s in finished]
    return {"examples per second": rate, "whole seconds": whole_s, "finished after s": after}


def run(kind: str) -> dict[str, Any]:
    """One build in a process of its own."""
    command = [
        sys.executable,
        __file__,
        f"--one={kind}",
        f"--examples={_EXAMPLES.value}",
        f"--views={_VIEWS.value}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(_: list[str]) -> None:
    """All kinds in turn, and the ratios of the medians."""
    if _ONE.value:
        print(json.dumps(one(_ONE.value)))
        return
    results = Results("ray_labelling", {"examples": _EXAMPLES.value, "views": _VIEWS.value})
    for repeat in range(_REPEATS.value):
        for kind in KINDS:
            found = results.get_or_run(f"{kind}/{repeat}", lambda kind=kind: run(kind))  # type: ignore[misc]
            print(f"{kind}/{repeat}: {found}", flush=True)

    def median(kind: str, name: str) -> float:
        keys = [f"{kind}/{repeat}" for repeat in range(_REPEATS.value)]
        return statistics.median(results.entries[key][name] for key in keys)

    rates = {kind: median(kind, "examples per second") for kind in KINDS}
    whole = {kind: median(kind, "whole seconds") for kind in KINDS}
    ratios = {
        "two nodes / one node, rate": rates["ray2"] / rates["ray1"],
        "two nodes / one node, whole": whole["ray1"] / whole["ray2"],
        "one Ray worker / local engine, rate": rates["ray1"] / rates["local"],
        "one Ray worker / local engine, whole": whole["local"] / whole["ray1"],
    }
    results.put("ratios", ratios)
    for name, value in ratios.items():
        print(f"{name:<40}{value:6.2f}")


if __name__ == "__main__":
    app.run(main)
