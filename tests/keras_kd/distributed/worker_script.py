"""What one of the workers in test_multi_worker.py runs; its arguments are in a JSON file."""

import json
import os
import pathlib
import signal
import sys
import time

settings = json.loads(pathlib.Path(sys.argv[1]).read_text())
index = int(sys.argv[2])
if settings["ports"]:
    workers = [f"127.0.0.1:{port}" for port in settings["ports"]]
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
sys.path.insert(0, settings["root"])

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_kd  # noqa: E402
from keras_kd.distributed import MultiWorkerFit, SharedBackup, WorkerLostError, training_data  # noqa: E402

strategy = tf.distribute.MultiWorkerMirroredStrategy() if settings["ports"] else tf.distribute.get_strategy()


class Watch(keras.callbacks.Callback):
    """Dies in the middle of an epoch, where it is told to; says how far it came."""

    def on_train_batch_end(self, batch, logs=None):
        self.batch = batch

    def on_epoch_begin(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if settings.get("dies") == [index, self.epoch] and batch == 2:
            os.kill(os.getpid(), signal.SIGKILL)


class FirstFaultMended(MultiWorkerFit, keras.Sequential):
    """Only one of the two ways around: the steps are Keras's own again."""

    _make_function = keras.Model._make_function


class Mended(MultiWorkerFit, keras.Sequential):
    """A model of one's own."""


PLAIN = {"plain keras": keras.Sequential, "first fault mended": FirstFaultMended, "mended": Mended}


def make(kind):
    keras.utils.set_random_seed(1)
    layers = [keras.Input((6,)), keras.layers.Dense(16, "tanh"), keras.layers.Dense(3)]
    student = PLAIN.get(kind, keras.Sequential)(layers)
    if kind in PLAIN:
        model = student
    else:
        model = keras_kd.Distiller(
            keras_kd.TeacherCache.open(settings["cache"]),
            student,
            keras_kd.losses.LogitsDistillation(temperature=2.0),
            student_loss_weight=keras_kd.schedules.Linear(0.2, 0.6),
        )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["sparse_categorical_accuracy"],
    )
    return model, student


def plain_data(x, y):
    def part(context):
        share = slice(context.input_pipeline_id, None, context.num_input_pipelines)
        return tf.data.Dataset.from_tensor_slices((x[share], y[share])).batch(10)

    return strategy.distribute_datasets_from_function(part)


def main():
    x, y = np.load(settings["x"], mmap_mode="r"), np.load(settings["y"])
    with strategy.scope():
        model, student = make(settings["kind"])
    if settings["kind"] in PLAIN:
        data = plain_data(x, y)
    else:
        data = training_data(model.teacher, settings["x"], y, batch_size=20, strategy=strategy, seed=3)
    callbacks = [Watch()]
    if settings.get("backup"):
        callbacks.append(SharedBackup(settings["backup"], strategy))
    try:
        history = model.fit(data, epochs=settings["epochs"], verbose=0, callbacks=callbacks)
    except WorkerLostError as error:
        print("WorkerLostError:", error, flush=True)
        os._exit(7)  # TensorFlow's own leaving waits for the worker that is gone
    result = {name: [float(value) for value in values] for name, values in history.history.items()}
    np.savez(f"{settings['out']}-{index}.npz", *student.get_weights())
    pathlib.Path(f"{settings['out']}-{index}.json").write_text(json.dumps(result))
    print("finished", time.monotonic(), flush=True)


main()
