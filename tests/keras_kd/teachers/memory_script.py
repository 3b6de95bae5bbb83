"""Run by test_cache_memory.py: prints what a process of its own holds while a cache is made and read.

python memory_script.py FOLDER EXAMPLES EXAMPLE_BYTES BATCH [augmented]
"""

import functools
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.file_sources import Loader


def load(example_bytes, indices):
    return np.broadcast_to((indices % 251)[:, None], (len(indices), example_bytes)).astype("uint8")


def brighter(example, seed):
    return example + tf.cast(tf.random.stateless_uniform([], seed, 0, 5, tf.int32), tf.uint8)


def own_memory():
    """Bytes that belong to this process alone, without the files that it has mapped."""
    status = pathlib.Path("/proc/self/status").read_text().split()
    return int(status[status.index("RssAnon:") + 1]) * 1024


def main(folder, examples, example_bytes, batch_size, *augmented):
    built = []

    def teacher(batch):
        built.append(own_memory())
        return np.asarray(batch[:, :3], "float32")

    source = Loader(functools.partial(load, int(example_bytes)), int(examples))
    begin = own_memory()
    digests = len(source.fingerprint()[1])
    checked = own_memory() - begin
    augment, batch_size = brighter if augmented else None, int(batch_size)
    cache = TeacherCache.build(teacher, source, folder, augment=augment, batch_size=batch_size, verbose=False)
    trained = [own_memory() for _ in cache.dataset(source, batch_size=batch_size)]
    print(json.dumps({"digest_bytes": digests, "checked": checked, "built": built, "trained": trained}))


if __name__ == "__main__":
    main(*sys.argv[1:])
