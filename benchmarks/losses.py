"""Every distillation loss of the catalogue on one pair of networks: no method is left out because it lost.

    KERAS_HOME=... python benchmarks/losses.py              # 3 seeds, resumable
    KERAS_HOME=... python benchmarks/losses.py --seeds=1    # quick

Fashion-MNIST, a subset of the training images, flipped or not, a short training that is the same for all.
The objective is labels + weight * loss; the weights are those that MDistiller's CIFAR-100 experiments use, where it has
the method, and were not tuned here. A loss of outputs sees the logits, a loss of features the last 7x7 map of both
networks, and a loss of relations between examples what the last pooling puts out. The ranking is that of this pair and
this short protocol; another pair can order the methods differently.
"""

import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
from absl import app, flags

import keras_kd
from benchmarks import common, common_fashion, common_methods, stored, tables
from keras_kd import losses

_SEEDS = flags.DEFINE_integer("seeds", 3, "Students for each loss.", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 8000, "Training images.")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Passes over them.")
_VIEWS = flags.DEFINE_integer("views", 2, "Augmented views of each image.")
_MINUTES = flags.DEFINE_float("minutes", 0, "Begin no run after so many minutes; 0 is without end.")
_TEACHER = flags.DEFINE_string("teacher", None, "A .keras file of 28x28x1 bytes to 10 logits.")
_CACHE = flags.DEFINE_string("cache_dir", None, "Where the teacher's answers are kept between calls.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")

BATCH_SIZE, LEARNING_RATE = 128, 1e-2
# Losses of vectors: their papers use what the last pooling puts out.
OF_POOLED = ("RelationalDistillation", "ProbabilisticTransfer")


def student() -> keras.Model:
    """Widths 32 and 48, which the teacher has too: the flow between two layers needs equal widths."""
    return common_methods.convnet((32, 48), (2, 2), momentum=0.9)


def relu_names(network: keras.Model) -> list[str]:
    """Names of the activations in order."""
    return [layer.name for layer in network.layers if isinstance(layer, keras.layers.ReLU)]


def last_map(network: keras.Model, size: int = 7) -> str:
    """The last activation whose feature map has so many rows."""
    fitting = [name for name in relu_names(network) if network.get_layer(name).output.shape[1] == size]
    return fitting[-1]


def pooled(network: keras.Model) -> str:
    """The global pooling before the logits."""
    return [layer.name for layer in network.layers if isinstance(layer, keras.layers.GlobalAveragePooling2D)][
        -1
    ]


def of_width(network: keras.Model, width: int) -> str:
    """The last activation of so many channels."""
    fitting = [name for name in relu_names(network) if network.get_layer(name).output.shape[-1] == width]
    if not fitting:
        raise ValueError(f"the network has no activation of {width} channels")
    return fitting[-1]


NAMES = ("labels alone", *common_methods.CATALOGUE)


def train(name: str, network: keras.Model, views: common_fashion.Views, seed: int) -> keras.Model:
    """A student trained with one loss of the catalogue."""
    keras.utils.set_random_seed(seed)
    small = student()
    # The flow needs the teacher's first block, too large to store: this one teacher runs live on the same pixels.
    live = name == "FlowDistillation"
    form = "plain" if live or name == "labels alone" else "cached"
    data = views.batches(form, batch_size=BATCH_SIZE, seed=seed)
    trained: Any = small
    if name != "labels alone":
        make, weight = common_methods.CATALOGUE[name]
        if live:
            pair = [(of_width(model, 32), of_width(model, 48)) for model in (network, small)]
            loss = losses.FlowDistillation(*pair)
        else:
            tap = pooled if name in OF_POOLED else last_map
            loss = make(tap(network), tap(small))
        # Half of both: the sum is the labels' loss + weight * loss, halved.
        trained = keras_kd.Distiller(
            network if live else views.cache,
            small,
            loss,
            weight,
            student_loss_weight=0.5,
            save_teacher="none",
        )
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, _EPOCHS.value * len(data))
    trained.compile(keras.optimizers.Adam(rate), common_fashion.LOSS)
    trained.fit(data, epochs=_EPOCHS.value, verbose=0)
    return small


def main(argv: list[str]) -> None:
    """Runs what is not there yet, then prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    clock = common.Clock(_MINUTES.value)
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    settings = {
        "data": "Fashion-MNIST",
        "examples": _EXAMPLES.value,
        "epochs": _EPOCHS.value,
        "views": _VIEWS.value,
        "augmentation": "flips",
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "student_parameters": student().count_params(),
        "weights": {name: weight for name, (_, weight) in common_methods.CATALOGUE.items()},
    }
    results = stored.Results("losses", settings, folder)
    x, y, x_test, y_test = common_fashion.images()
    chosen = np.sort(np.random.default_rng(0).permutation(len(x))[: _EXAMPLES.value])
    work = common.cache_dir(_CACHE.value)
    network = common_fashion.teacher(_TEACHER.value, work)
    views = common_fashion.Views(
        network,
        x[chosen],
        y[chosen],
        _VIEWS.value,
        work / f"losses_{len(chosen)}x{_VIEWS.value}_flips",
        augment=common_fashion.FLIPS,
        layers_=(last_map(network), pooled(network)),
        dtype="float16",
        verbose=True,
    )
    for seed in range(_SEEDS.value):
        for name in NAMES:
            key = f"{name}/{seed}"
            if key in results.entries or clock.is_over():
                continue
            found = common_fashion.accuracy(train(name, network, views, seed), x_test, y_test)
            results.put(key, {"accuracy": found})
            print(f"{name}, seed {seed}: {100 * found:.2f} %", flush=True)
    print(tables.every_loss(tables.read("losses", folder)))


if __name__ == "__main__":
    app.run(main)
