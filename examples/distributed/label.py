"""Let a teacher answer a data set, on this machine or on a Ray cluster.

    python label.py --data=/shared/train.npz --teacher=/shared/teacher.keras --cache=/shared/cache --address=auto

Every machine has to see these files under the same paths, and to have the same versions installed. A run that was
interrupted goes on when it is started again with the same flags.
"""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import app, flags

import keras_kd
from keras_kd.teachers.augmentations import RandomFlip, RandomShift, Sequence

_DATA = flags.DEFINE_string("data", None, "An uncompressed .npz file with x and y.", required=True)
_TEACHER = flags.DEFINE_string("teacher", None, "A .keras file.", required=True)
_CACHE = flags.DEFINE_string("cache", None, "The folder to make.", required=True)
_ADDRESS = flags.DEFINE_string(
    "address", None, "Of the cluster: auto, ray://host:10001, local. None: no Ray."
)
_VIEWS = flags.DEFINE_integer("views", 8, "Views of each example.")
_TOP_K = flags.DEFINE_integer("top_k", None, "How many logits to keep; all if not given.")
_GPUS = flags.DEFINE_float("gpus", 0, "GPUs of each worker.")
_CPUS = flags.DEFINE_float("cpus", 1, "Processors of each worker.")


def main(_: list[str]) -> None:
    engine: dict[str, Any] = {}
    if _ADDRESS.value:
        options = {"address": _ADDRESS.value, "num_cpus": _CPUS.value, "num_gpus": _GPUS.value}
        engine = {"engine": "ray", "ray_options": options}
    cache = keras_kd.TeacherCache.build(
        keras.models.load_model(_TEACHER.value, compile=False),
        _DATA.value,
        _CACHE.value,
        views=_VIEWS.value,
        augment=Sequence((RandomFlip(), RandomShift(2))),
        top_k=_TOP_K.value,
        **engine,
    )
    print(cache.summary())


if __name__ == "__main__":
    app.run(main)
