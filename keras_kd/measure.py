"""One row of the final table: what a model is worth, how large it is, and how long it takes."""

import gzip
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

import tflite_tools
from tflite_tools.metrics import confusion_matrix
from tflite_tools.report import Stage


def kernel_sparsity(model: Any) -> float | None:
    """Fraction of exact zeros among the weights of a model that have two or more dimensions.

    Biases and BatchNormalization's vectors are left out: nobody prunes them, and they start as zeros.

    Args:
      model: a `keras.Model` or a `tf_keras.Model`.

    Returns:
      A fraction in [0, 1], or None for a model without such weights.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
      >>> model.set_weights([np.array([[0.0, 1.0], [0.0, 2.0]]), np.zeros(2)])
      >>> kernel_sparsity(model)
      0.5
    """
    kernels = [weight for weight in model.get_weights() if weight.ndim >= 2]
    total = sum(kernel.size for kernel in kernels)
    if not total:
        return None
    return sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels) / total


def keras_file_bytes(model: keras.Model) -> bytes:
    """The bytes of the model's `.keras` file, without the state of its optimizer.

    An optimizer such as Adam triples the file; a comparison of sizes with it would flatter whatever
    comes after.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        try:
            # Not `clone_model`: in Keras 3.15 the clone of a compiled model is compiled too.
            bare = type(model).from_config(model.get_config())
            bare.set_weights(model.get_weights())
        except (ValueError, TypeError, NotImplementedError):
            # A subclassed model cannot always be cloned; its file as it is is then the best there is.
            bare = model
        bare.save(path)
        return path.read_bytes()


def classification_accuracy(outputs: np.ndarray, labels: np.ndarray) -> float | None:
    """Top-1 accuracy in [0, 1], for logits or probabilities [examples, classes].

    Args:
      outputs: float [examples, classes], two classes or more.
      labels: int [examples] or [examples, 1], or one-hot [examples, classes].

    Returns:
      The accuracy, or None where the shapes are not those of a classification.

    Example:
      >>> classification_accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
      0.5
    """
    classes = _classes(outputs, labels)
    return None if classes is None else float(np.mean(outputs.argmax(-1) == classes))


def confusion(outputs: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Counts [true class][predicted class] for the arguments of `classification_accuracy`.

    Example:
      >>> confusion(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
      [[0, 0], [1, 1]]
    """
    classes = _classes(outputs, labels)
    if classes is None:
        raise ValueError(
            f"outputs {outputs.shape} and labels {np.shape(labels)} are not those of a classification."
        )
    return confusion_matrix(outputs.argmax(-1), classes, outputs.shape[1]).tolist()


def _classes(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """Labels as integers [examples], or None where this is no classification of one class an example."""
    labels = np.asarray(labels)
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    if labels.shape == outputs.shape:
        return labels.argmax(-1)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.all(labels == np.round(labels)):
        return None
    return labels.astype(np.int64)


def median_latency_us(artifact: Any) -> float | None:
    """Median microseconds of one inference of a `.tflite` on this host, one thread."""
    latency = tflite_tools.benchmark(artifact).latency_us
    return None if latency is None else latency.median


def _outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    # Not `predict`: one compiled function for each of several models that are seen once makes TensorFlow
    # warn about retracing.
    batches = np.array_split(x, max(1, -(-len(x) // 256)))
    return np.concatenate([keras.ops.convert_to_numpy(model(batch, training=False)) for batch in batches])


def keras_stage(
    name: str,
    model: Any,
    x: Any,
    y: Any,
    *,
    latency: bool = True,
) -> tuple[Stage, np.ndarray]:
    """Measure a Keras model: its answers, its `.keras` file, and the latency of its float32 `.tflite`.

    Args:
      name: the row's name.
      model: the model.
      x: inputs, [examples, ...].
      y: labels.
      latency: whether to measure the latency on this host.

    Returns:
      The row, and the model's outputs [examples, ...] for `x`.
    """
    outputs = _outputs(model, x)
    file_bytes = keras_file_bytes(model)
    latency_us = macs = None
    notes = []
    if latency:
        try:
            artifact = tflite_tools.convert(model)
            latency_us = median_latency_us(artifact)
            macs = tflite_tools.inspect(artifact).macs
        except (RuntimeError, ValueError) as error:
            # A teacher that TFLite cannot express is still a good teacher.
            first_line = str(error).strip().splitlines()[0]
            notes.append(f"no latency: the model does not convert to .tflite ({first_line})")
    stage = Stage(
        name=name,
        accuracy=classification_accuracy(outputs, y),
        parameters=int(model.count_params()),
        sparsity=kernel_sparsity(model),
        size_bytes=len(file_bytes),
        gzip_bytes=len(gzip.compress(file_bytes, compresslevel=9, mtime=0)),
        latency_us=latency_us,
        macs=macs,
        notes=tuple(notes),
    )
    return stage, outputs
