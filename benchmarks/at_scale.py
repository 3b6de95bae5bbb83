"""A teacher cache for ImageNet on paper: bytes, worker hours, reading bandwidth, and where the design breaks first.

    python benchmarks/at_scale.py                  # measure what is not stored yet
    python benchmarks/at_scale.py --parts=rates    # of plan, manifest, shuffle, rates, reading
    python benchmarks/distributed_tables.py        # put the tables into docs/distributed.md

Rates are of one core of this machine. Nothing of ImageNet is read: the images are synthetic, of its usual size.
"reading" writes shards of real size, 4.4 GB for 10^8 examples, and reads them at random, with and without the page
cache.
"""

import functools
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from absl import app, flags

from benchmarks.stored import Results
from keras_kd.teachers import cache_store
from keras_kd.teachers.cache_layout import Layout
from keras_kd.teachers.cache_store import Manifest, ShardReader, ShardWriter

PARTS = ("plan", "manifest", "shuffle", "rates", "reading")
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure, where it is not stored.")
_ONE = flags.DEFINE_string(
    "one", None, "Used by the script itself: a part and a number, in a process of its own."
)

DATASETS = {"ImageNet-1k": (1_281_167, 1_000), "ImageNet-21k": (14_197_122, 21_841)}
VIEWS, KEPT, BATCH = (10, 100), (10, 100), 256
SIZES = (10**7, 10**8)
SHARD_COUNTS = (4_096, 65_536, 1_048_576)


def layout_of(classes: int, k: int) -> Layout:
    """Of logits, the k largest in float16."""
    return Layout.of(np.zeros((1, classes), np.float32), {}, top_k=k, dtype="float16")


def manifest_of(layout: Layout, examples: int, views: int) -> Manifest:
    """As a build would plan it."""
    size = cache_store.examples_per_shard(layout.record.itemsize, examples, views, BATCH)
    facts: dict[str, Any] = {"teacher": {}, "data": {}, "augment": None, "mix": None, "versions": {}}
    return Manifest(
        layout=layout,
        examples=examples,
        views=views,
        seed=0,
        batch_size=BATCH,
        examples_per_shard=size,
        **facts,
    )


def plan() -> list[dict[str, Any]]:
    """The caches, as a build would lay them out."""
    rows = []
    for name, (examples, classes) in DATASETS.items():
        for views in VIEWS:
            for k in KEPT:
                planned = manifest_of(layout_of(classes, k), examples, views)
                rows.append(
                    {
                        "data": name,
                        "examples": examples,
                        "classes": classes,
                        "views": views,
                        "top_k": k,
                        "record_bytes": planned.layout.record.itemsize,
                        "payload_bytes": planned.payload_bytes,
                        "shards": planned.num_shards,
                        "shard_bytes": planned.shard_bytes(0),
                    }
                )
    return rows


def rate_of(run: Callable[[], int], least_s: float = 3.0) -> float:
    """How many per second, after one round to warm up."""
    run()
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < least_s:
        done += run()
    return done / (time.perf_counter() - begin)


def encoded(layout: Layout, logits: np.ndarray) -> int:
    """Make records of a batch; returns how many."""
    return len(layout.encode(logits, {}))


def rates() -> dict[str, float]:
    """Of one core: the teacher, decoding, choosing the largest logits, writing."""
    import keras
    import tensorflow as tf

    teacher = keras.applications.ResNet50(weights=None, classifier_activation=None)
    forward = tf.function(
        lambda batch: teacher(batch, training=False),
        input_signature=[tf.TensorSpec((None, 224, 224, 3), tf.float32)],
    )
    images = tf.random.uniform((16, 224, 224, 3))
    found = {"teacher (ResNet50, 224x224)": rate_of(lambda: len(forward(images)), 10.0)}
    smooth = tf.image.resize(tf.random.uniform((24, 32, 3), maxval=255.0), (375, 500), method="bicubic")
    jpeg = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(smooth, 0, 255), tf.uint8))
    prepared = tf.function(lambda content: tf.image.resize(tf.io.decode_jpeg(content), (224, 224)))
    found["decode and resize a JPEG of 500x375"] = rate_of(lambda: len(prepared(jpeg)) // 224)
    for _, classes in DATASETS.values():
        logits = np.random.default_rng(0).normal(size=(BATCH, classes)).astype(np.float32)
        for k in KEPT:
            layout = layout_of(classes, k)
            found[f"keep {k} of {classes}"] = rate_of(functools.partial(encoded, layout, logits))
    rows = np.zeros(1 << 16, layout_of(1000, 100).record)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> int:
            writer = ShardWriter(pathlib.Path(folder), 0)
            writer.write(rows)
            writer.commit()
            return rows.nbytes

        found["checksum and write, bytes"] = rate_of(write)
    return found


def shuffle(examples: int) -> dict[str, float]:
    """The order of one epoch, in this process."""
    from keras_kd.teachers.cache_pipeline import Order

    order = Order(examples, 0, shuffle=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    order(0, 0, BATCH)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds per epoch": seconds, "peak MB": peak * 1024 / 1e6, "held MB": examples * 8 / 1e6}


def reading(examples: int) -> dict[str, float]:
    """Random batches from shards on the disk; the records are 44 bytes (10 of 1000 logits)."""
    layout = layout_of(1000, 10)
    planned = manifest_of(layout, examples, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = np.zeros(planned.examples_per_shard, layout.record)
        rows["output_0_values"] = 1.0
        for shard in range(planned.num_shards):
            cache_store.shard_path(folder, shard).write_bytes(
                rows[: planned.shard_bytes(shard) // 44].tobytes()
            )
        os.sync()
        batches = np.random.default_rng(0).integers(0, examples, (400, BATCH))

        def read(reader: ShardReader, part: np.ndarray) -> float:
            begin = time.perf_counter()
            for batch in part:
                layout.decode(reader.rows(0, batch))
            return part.size / (time.perf_counter() - begin)

        forget(folder)
        cold = read(ShardReader(folder, planned), batches[:100])
        for file in sorted(folder.iterdir()):
            file.read_bytes()
        reader = ShardReader(folder, planned)
        read(reader, batches[100:200])  # opens the files
        warm = read(reader, batches[200:])
        places = batches * 44 // 4096
        pages = float(np.mean([len(np.unique(row)) for row in places]))
    return {
        "shards": planned.num_shards,
        "shards a batch touches": float(
            np.mean([len(np.unique(row // planned.examples_per_shard)) for row in batches])
        ),
        "pages of 4 KiB a batch touches": pages,
        "bytes read per byte used, cold": pages * 4096 / (BATCH * 44),
        "examples per second, warm": warm,
        "examples per second, cold": cold,
    }


def forget(folder: pathlib.Path) -> None:
    """Take the files out of the page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def manifest(shards: int) -> dict[str, float]:
    """Writing a manifest once, as it is after every shard."""
    planned = manifest_of(layout_of(1000, 10), shards * BATCH, 1)
    planned.examples_per_shard = BATCH
    planned.shards = {number: f"{number:064x}" for number in range(shards)}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cache_store.write_manifest(pathlib.Path(folder), planned)
        seconds = time.perf_counter() - begin
        size = (pathlib.Path(folder) / cache_store.MANIFEST).stat().st_size
    return {
        "MB": size / 1e6,
        "seconds to write": seconds,
        "hours in a whole build": seconds * shards / 2 / 3600,
    }


def measure(results: Results) -> None:
    """What is asked for and not stored."""
    numbers = {"plan": (0,), "manifest": SHARD_COUNTS, "shuffle": SIZES, "rates": (0,), "reading": SIZES}
    for part in numbers:
        for number in numbers[part] if part in _PARTS.value else ():
            # The peak of a process can be read once only.
            run = in_process if part == "shuffle" else one
            results.get_or_run(f"{part}/{number}", functools.partial(run, part, number))
            print(f"{part}/{number}: {results.entries[f'{part}/{number}']}", flush=True)


def one(part: str, number: int) -> Any:
    """A measurement in this process."""
    if part in ("plan", "rates"):
        return {"plan": plan, "rates": rates}[part]()
    return {"shuffle": shuffle, "reading": reading, "manifest": manifest}[part](number)


def in_process(part: str, number: int) -> Any:
    """A measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, f"--one={part}/{number}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(_: list[str]) -> None:
    """Measure what is asked for, and print what is stored."""
    if _ONE.value:
        part, number = _ONE.value.split("/")
        print(json.dumps(one(part, int(number))))
        return
    unknown = [part for part in _PARTS.value if part not in PARTS]
    if unknown:
        raise app.UsageError(f"--parts: there is no {unknown[0]!r}; there are {', '.join(PARTS)}.")
    results = Results("at_scale", {"batch": BATCH})
    measure(results)


if __name__ == "__main__":
    app.run(main)
