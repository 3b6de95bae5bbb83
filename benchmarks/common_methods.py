"""Ways to train one student on one pipeline: on labels alone, with keras.distillation, with keras_kd."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_kd
from benchmarks.common_fashion import LOSS, Views
from keras_kd import losses


def convnet(widths: tuple[int, ...], strides: tuple[int, ...], momentum: float = 0.99) -> keras.Model:
    """Pixels 0..255 to 10 logits: plain convolutions, which every runtime and microcontroller kernel has.

    The first convolution halves the resolution, as in mobile networks: most of the work would be there. A training of
    a few hundred steps needs a smaller momentum of the batch statistics, or they stay near their start.
    """
    layers = keras.layers
    blocks: list[Any] = [keras.Input((28, 28, 1), name="image"), layers.Rescaling(1 / 255.0)]
    for width, stride in zip(widths, strides, strict=True):
        blocks += [
            layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=momentum),
            layers.ReLU(),
        ]
    blocks += [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return keras.Sequential(blocks)


# About 2, 12 and 60 thousand parameters.
STUDENTS: dict[str, Callable[[], keras.Model]] = {
    "2k": lambda: convnet((6, 10, 14), (2, 2, 1)),
    "12k": lambda: convnet((12, 24, 40), (2, 2, 1)),
    "60k": lambda: convnet((24, 56, 92), (2, 2, 1)),
}


def _replayed(student: keras.Model | None) -> keras.Model:
    """A network of {"image", "teacher"}: a student that sees the image, or (None) the teacher's stored answer."""
    inputs = {
        "image": keras.Input((28, 28, 1), name="image"),
        "teacher": keras.Input((10,), name="teacher"),
    }
    if student is None:
        return keras.Model(inputs, keras.layers.Identity()(inputs["teacher"]))
    return keras.Model(inputs, student(inputs["image"]))


def adam(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """With a cosine decay to 0."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))


def _keras_loss(kind: str, temperature: float) -> tuple[Any, float]:
    """(a loss of keras.distillation, the share of the labels)."""
    theirs = keras.distillation.LogitsDistillation
    if kind == "keras":
        return theirs(), 0.5  # its own defaults
    return theirs(temperature=temperature, loss=keras.losses.KLDivergence()), 0.1


def _our_loss(kind: str, temperature: float) -> tuple[Any, float]:
    """(losses of keras_kd, the share of the labels)."""
    choices: dict[str, tuple[Any, float]] = {
        "soft": (losses.LogitsDistillation(temperature), 0.1),
        "soft_T1_half": (losses.LogitsDistillation(1.0), 0.5),
        "soft_T2_no_labels": (losses.LogitsDistillation(2.0), 0.0),
        "standardized": (losses.LogitsDistillation(2.0, standardize=True), 0.1),
        "correlation": (losses.CorrelationDistillation(2.0, 2.0, temperature=4.0), 0.5),
        "correlation_soft": (
            [losses.CorrelationDistillation(2.0, 2.0, temperature=4.0), losses.LogitsDistillation(2.0)],
            1 / 3,
        ),
    }
    return choices[kind]


def train(
    method: str,
    student: keras.Model,
    views: Views,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    temperature: float,
    seed: int,
    subset: np.ndarray | None = None,
) -> None:
    """Trains a student in place.

    Args:
      method: "alone", "keras" (keras.distillation as it comes), "keras_kld" (with its `KLDivergence()`), or one of
        keras_kd: "soft", "soft_T1_half", "soft_T2_no_labels", "standardized", "correlation", "correlation_soft" (both).
      student: pixels to logits.
      views: pixels and the teacher's answers.
      epochs: passes over the training images.
      batch_size: examples per step.
      learning_rate: of Adam at the start; it falls to 0 along a cosine. The same for all methods.
      temperature: of the soft targets. "keras" keeps its own default.
      seed: of the order and the views.
      subset: indices of the training images to use.
    """
    keras.utils.set_random_seed(seed)
    form = "plain" if method == "alone" else "replayed" if method.startswith("keras") else "cached"
    data = views.batches(form, subset, batch_size=batch_size, seed=seed)
    trained: Any
    if method == "alone":
        trained = student
    elif form == "replayed":
        loss, share = _keras_loss(method, temperature)
        trained = keras.distillation.Distiller(
            _replayed(None), _replayed(student), loss, student_loss_weight=share
        )
    else:
        loss, share = _our_loss(method, temperature)
        trained = keras_kd.Distiller(views.cache, student, loss, student_loss_weight=share)
    trained.compile(adam(learning_rate, epochs * len(data)), LOSS)
    trained.fit(data, epochs=epochs, verbose=0)


def compression_loss() -> tuple[Any, float]:
    """(the loss of the teacher in a compression, the share of the labels beside it)."""
    return losses.CorrelationDistillation(2.0, 2.0), 0.5


def replay_difference(
    network: keras.Model, make_student: Callable[[], keras.Model], views: Views, steps: int
) -> float:
    """Largest difference between the weights of two students of keras.distillation after some steps.

    One learns from the live teacher, the other from its stored answers to the same pixels, from the same start
    with the same batches. What is left is the rounding of float32 sums of two ways to run the teacher.
    """
    found = []
    for live in (True, False):
        keras.utils.set_random_seed(0)
        student = make_student()
        form = "plain" if live else "replayed"
        data = views.batches(form, batch_size=128, seed=0).take(steps)
        loss, share = _keras_loss("keras_kld", 4.0)
        pair = (network, student) if live else (_replayed(None), _replayed(student))
        distiller = keras.distillation.Distiller(*pair, loss, student_loss_weight=share)
        # Plain gradient descent: Adam divides by tiny numbers in its first steps and magnifies rounding.
        distiller.compile(keras.optimizers.SGD(0.05), LOSS)
        distiller.fit(data, verbose=0)
        found.append(np.concatenate([np.ravel(weight) for weight in student.get_weights()]))
    return float(np.max(np.abs(found[0] - found[1])))


def answers_difference(network: keras.Model, views: Views) -> float:
    """Largest difference between a stored logit and what the teacher says of those pixels now, over one batch."""
    batch, _ = next(iter(views.batches("replayed", batch_size=128, seed=0)))
    live = np.asarray(network(batch["image"], training=False))
    return float(np.max(np.abs(live - batch["teacher"].numpy())))


# Class -> (how to make it from the names of the teacher's and the student's layer, its weight beside the labels).
CATALOGUE: dict[str, tuple[Callable[[str, str], Any], float]] = {
    "LogitsDistillation": (lambda t, s: losses.LogitsDistillation(4.0), 9.0),
    "LogitsDistillation, standardize": (
        lambda t, s: losses.LogitsDistillation(2.0, standardize=True),
        9.0,
    ),
    "DecoupledDistillation": (lambda t, s: losses.DecoupledDistillation(), 1.0),
    "NormalizedDistillation": (lambda t, s: losses.NormalizedDistillation(), 1.0),
    "CorrelationDistillation": (lambda t, s: losses.CorrelationDistillation(2.0, 2.0), 1.0),
    "BinaryLogitsDistillation": (lambda t, s: losses.BinaryLogitsDistillation(), 1.0),
    "RegressionDistillation": (lambda t, s: losses.RegressionDistillation(), 1.0),
    "FeatureDistillation": (lambda t, s: losses.FeatureDistillation("mse", t, s), 100.0),
    "AttentionTransfer": (losses.AttentionTransfer, 1000.0),
    "FlowDistillation": (losses.FlowDistillation, 50.0),
    "NeuronSelectivityTransfer": (losses.NeuronSelectivityTransfer, 50.0),
    "SimilarityPreserving": (losses.SimilarityPreserving, 3000.0),
    "RelationalDistillation": (losses.RelationalDistillation, 1.0),
    "ProbabilisticTransfer": (losses.ProbabilisticTransfer, 30000.0),
    "VariationalInformation": (losses.VariationalInformation, 1.0),
}
