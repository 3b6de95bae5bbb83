"""How long a training step takes: alone, under keras.distillation, and under keras_kd, in one interleaved run.

    python benchmarks/step_time.py                     # both pairs of networks
    python benchmarks/step_time.py --pair=digits --repeats=30

The ratios are what counts: seconds on a shared machine are not. Every repeat times a few steps of each variant
in turn, and medians are taken over the repeats. The figures go to benchmarks/results/step_time.json.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_kd
from benchmarks.stored import Results
from keras_kd.losses import LogitsDistillation

_PAIR = flags.DEFINE_enum("pair", "all", ["all", "digits", "mobilenet"], "Which pair of networks to time.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 15, "Interleaved repeats; medians are taken over them.", lower_bound=3
)
_STEPS = flags.DEFINE_integer("steps", 4, "Steps per repeat and variant.", lower_bound=1)

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def block(x: Any, width: int, stride: int = 1) -> Any:
    """Two convolutions with their normalization, and a shortcut."""
    y = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
    if stride > 1:
        x = layers.BatchNormalization()(layers.Conv2D(width, 1, stride, use_bias=False)(x))
    return layers.Add()([x, y])


def digits_teacher() -> keras.Model:
    """About 280 thousand parameters on 28x28x1."""
    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same", use_bias=False)(inputs))
    )
    x = layers.ReLU()(block(x, 32))
    x = layers.ReLU()(block(x, 64, 2))
    x = layers.ReLU(name="feature")(block(x, 112, 2))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def digits_student() -> keras.Model:
    """About 18 thousand parameters on 28x28x1."""
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for width, stride in ((16, 1), (24, 2), (32, 2)):
        x = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(24, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU(name="feature")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet(alpha: float) -> keras.Model:
    """MobileNetV2 on 96x96x3."""
    return keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=alpha, weights=None, classes=10, classifier_activation=None
    )


PAIRS: dict[str, dict[str, Any]] = {
    "digits": {
        "title": "28x28x1, batch 128",
        "shape": (28, 28, 1),
        "batch": 128,
        "teacher": digits_teacher,
        "student": digits_student,
        "tap": -1,  # keras.distillation needs equal widths, which only the last layers have here
    },
    "mobilenet": {
        "title": "MobileNetV2 1.0 teaches 0.35, 96x96x3, batch 32",
        "shape": (96, 96, 3),
        "batch": 32,
        "teacher": lambda: mobilenet(1.0),
        "student": lambda: mobilenet(0.35),
        "tap": "out_relu",  # 3x3x1280 in both
    },
}


def compiled(model: keras.Model) -> keras.Model:
    model.compile(keras.optimizers.Adam(1e-4), LOSS)
    return model


def variants(pair: dict[str, Any]) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """{name: a function that runs one step}, and the networks' parameters."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.uniform(size=(pair["batch"], *pair["shape"])).astype("float32"))
    y = tf.constant(rng.integers(0, 10, pair["batch"]))
    teacher = pair["teacher"]()
    teacher.trainable = False
    parameters = {"teacher": teacher.count_params(), "student": pair["student"]().count_params()}

    def step_of(model: keras.Model) -> Callable[[], Any]:
        # Keras's own compiled step, on a batch that is already there: no input pipeline in the figure.
        if isinstance(model, keras_kd.Distiller):
            model._prepare_teacher()
            model._look_at(x)
        model.make_train_function()

        def run() -> Any:
            return model.train_function(iter([(x, y)]))

        return run

    student = compiled(pair["student"]())
    labels_alone = compiled(
        keras_kd.Distiller(teacher, pair["student"](), LogitsDistillation(), student_loss_weight=1)
    )
    forward = tf.function(lambda images: teacher(images, training=False), autograph=False)
    runner = keras_kd.Distiller(teacher, pair["student"](), LogitsDistillation())._runner
    runner.prepare()
    folded = tf.function(lambda images: runner(images)[0], autograph=False)
    divergence = keras.losses.KLDivergence()
    theirs = keras.distillation

    def tapped_layer(model: keras.Model) -> str:
        return model.layers[pair["tap"]].name if isinstance(pair["tap"], int) else pair["tap"]

    def named(package: Any, model: keras.Model) -> Any:
        return package.FeatureDistillation(
            "mse", teacher_layer_name=tapped_layer(teacher), student_layer_name=tapped_layer(model)
        )

    def distillers(package: Any, cls: Any, logits: Any) -> tuple[keras.Model, keras.Model]:
        plain, tapped = pair["student"](), pair["student"]()
        return (
            compiled(cls(teacher, plain, logits)),
            compiled(cls(teacher, tapped, [logits, named(package, tapped)])),
        )

    keras_logits, keras_named = distillers(
        theirs, theirs.Distiller, theirs.LogitsDistillation(temperature=4.0, loss=divergence)
    )
    our_logits, our_named = distillers(
        keras_kd.losses, keras_kd.Distiller, LogitsDistillation(temperature=4.0)
    )
    steps = {
        "student alone, step": step_of(student),
        "student alone in a keras_kd.Distiller, step": step_of(labels_alone),
        "teacher alone, forward": lambda: forward(x),
        "teacher folded, forward": lambda: folded(x),
        "keras.distillation, logits": step_of(keras_logits),
        "keras_kd, logits": step_of(our_logits),
        "keras.distillation, logits and a named layer": step_of(keras_named),
        "keras_kd, logits and a named layer": step_of(our_named),
    }
    return steps, parameters


def medians(steps: dict[str, Callable[[], Any]], repeats: int, per_repeat: int) -> dict[str, float]:
    """Median milliseconds of one call of each, in interleaved repeats, after two calls to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        for _ in range(2):
            _wait(run())
    for repeat in range(repeats):
        print(f"\rrepeat {repeat + 1} of {repeats}", end="", file=sys.stderr, flush=True)
        for name, run in steps.items():
            start = time.perf_counter()
            for _ in range(per_repeat):
                result = run()
            _wait(result)
            times[name].append(1000 * (time.perf_counter() - start) / per_repeat)
    print(file=sys.stderr)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(result: Any) -> None:
    for tensor in keras.tree.flatten(result):
        np.asarray(tensor)


def ratios(ms: dict[str, float]) -> dict[str, tuple[float, float]]:
    """{what: (measured ratio, the ratio aimed at)}."""
    ours, theirs = ms["keras_kd, logits"], ms["keras.distillation, logits"]
    ours_named = ms["keras_kd, logits and a named layer"]
    theirs_named = ms["keras.distillation, logits and a named layer"]
    parts = ms["student alone, step"] + ms["teacher folded, forward"]
    return {
        "logits: keras_kd / keras.distillation": (ours / theirs, 0.8),
        "named layer: keras_kd / keras.distillation": (ours_named / theirs_named, 0.55),
        "student: in a keras_kd.Distiller / as it is": (
            ms["student alone in a keras_kd.Distiller, step"] / ms["student alone, step"],
            1.0,
        ),
        "teacher: folded / as given": (ms["teacher folded, forward"] / ms["teacher alone, forward"], 1.0),
        "overhead: keras_kd logits / (student step + folded teacher)": (ours / parts, 1.05),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    keras.utils.set_random_seed(0)
    results = Results("step_time", {"repeats": _REPEATS.value, "steps": _STEPS.value})
    for name, pair in PAIRS.items():
        if _PAIR.value not in ("all", name):
            continue
        steps, parameters = variants(pair)
        ms = medians(steps, _REPEATS.value, _STEPS.value)
        results.put(name, {"parameters": parameters, "milliseconds": ms, "ratios": ratios(ms)})
        print(
            f"\n{pair['title']}; teacher {parameters['teacher']:,}, student {parameters['student']:,} parameters"
        )
        for variant, value in ms.items():
            print(f"  {variant:<62}{value:9.1f} ms")
        for what, (ratio, goal) in ratios(ms).items():
            print(f"  {what:<62}{ratio:9.2f}    (goal: at most {goal})")


if __name__ == "__main__":
    app.run(main)
