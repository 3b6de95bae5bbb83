"""Train a student from a teacher cache, on one process or on several.

On each of two machines, with its own --index:

    python train.py --data=/shared/train.npz --cache=/shared/cache --output=/shared/student.keras \
        --workers=machine-a:12345,machine-b:12345 --index=0

Without --workers it trains alone. If a worker dies, the others end with an error; started again, all of them go on from
the last epoch in --backup.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

_DATA = flags.DEFINE_string("data", None, "An uncompressed .npz file with x and y.", required=True)
_CACHE = flags.DEFINE_string("cache", None, "The folder of the teacher cache.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The student's .keras file.", required=True)
_BACKUP = flags.DEFINE_string("backup", None, "A folder for the backup; beside the output if not given.")
_WORKERS = flags.DEFINE_list("workers", [], "host:port of every worker.")
_INDEX = flags.DEFINE_integer("index", 0, "Which of them this one is.")
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Passes over the data.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Examples per step, of all workers together.")


def main(_: list[str]) -> None:
    if len(_WORKERS.value) > 1:
        # TensorFlow reads who it is before anything else.
        task = {"type": "worker", "index": _INDEX.value}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": _WORKERS.value}, "task": task})

    import keras
    import numpy as np
    import tensorflow as tf

    import keras_kd
    from keras_kd.distributed import SharedBackup, WorkerLostError, is_chief, training_data

    several = len(_WORKERS.value) > 1
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
    keras.utils.set_random_seed(0)  # the same first weights everywhere
    cache = keras_kd.TeacherCache.open(_CACHE.value)
    with np.load(_DATA.value) as file:
        y = file["y"]
    train = training_data(cache, _DATA.value, y, batch_size=_BATCH.value, strategy=strategy)

    with strategy.scope():
        student = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(16, 3, 2, activation="relu"),
                keras.layers.Conv2D(32, 3, 2, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(10),
            ]
        )
        losses = keras_kd.losses.LogitsDistillation(temperature=2.0)
        distiller = keras_kd.Distiller(cache, student, losses, student_loss_weight=0.1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.Adam(3e-3), loss, metrics=["sparse_categorical_accuracy"])
    backup = SharedBackup(_BACKUP.value or f"{_OUTPUT.value}.backup", strategy)
    try:
        distiller.fit(train, epochs=_EPOCHS.value, callbacks=[backup], verbose=2 if is_chief(strategy) else 0)
    except WorkerLostError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # leaving in the ordinary way waits for the worker that is gone
    if is_chief(strategy):
        student.save(_OUTPUT.value)
        print(f"{_OUTPUT.value} written")


if __name__ == "__main__":
    app.run(main)
