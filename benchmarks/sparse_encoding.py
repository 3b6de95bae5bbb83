"""What the converter's sparse encoding of pruned weights buys: bytes of the file, gzipped, and whether it still runs.

    python benchmarks/sparse_encoding.py
    python benchmarks/sparse_encoding.py --sparsities=0.5,0.9 --output=/tmp/other

A convolutional network of about 40 thousand random weights, the smallest of each kernel set to zero: bytes depend on
where the zeros are and not on what was learned. Each kind of file is converted twice, as `tflite_tools.convert` does
and with `tf.lite.Optimize.EXPERIMENTAL_SPARSITY` beside it, and both are asked the same 32 inputs.
"""

import gzip
import os
import pathlib
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tflite_tools
from benchmarks import compression_tables, stored

_SPARSITIES = flags.DEFINE_list("sparsities", ["0.5", "0.75", "0.9"], "Fractions of zeros.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")

INPUTS = np.random.default_rng(0).normal(size=(32, 28, 28, 1)).astype("float32")


def pruned(sparsity: float) -> keras.Model:
    """A network with so many zeros in every kernel but the depthwise one."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 1, activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.Conv2D(128, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D | layers.Dense) and not isinstance(layer, layers.DepthwiseConv2D):
            kernel, bias = layer.get_weights()
            smallest = np.argsort(np.abs(kernel), axis=None)[: round(sparsity * kernel.size)]
            kernel.flat[smallest] = 0.0
            layer.set_weights([kernel, bias])
    return model


def converted(folder: str, kind: str, sparse: bool) -> bytes:
    """The file, straight from the converter: `tflite_tools.convert` has no such switch."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if kind != "float32" else []
    if sparse:
        converter.optimizations = [*converter.optimizations, tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: ([row[np.newaxis]] for row in INPUTS)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def outputs(content: bytes) -> tuple[np.ndarray | None, str]:
    """What a file answers, or the last line of why it does not."""
    try:
        return np.asarray(tflite_tools.predict(tflite_tools.load(content), INPUTS)), ""
    except Exception as error:  # what a file can do wrong has many names
        return None, str(error).strip().splitlines()[-1][:200]


def measure(sparsity: float, kind: str, folder: str) -> dict[str, Any]:
    """One row."""
    dense, sparse = (converted(folder, kind, sparse) for sparse in (False, True))
    (wanted, _), (found, why) = outputs(dense), outputs(sparse)
    return {
        "sparsity": sparsity,
        "kind": kind,
        "dense_bytes": len(dense),
        "dense_gzip_bytes": len(gzip.compress(dense, 9)),
        "sparse_bytes": len(sparse),
        "sparse_gzip_bytes": len(gzip.compress(sparse, 9)),
        "runs": found is not None,
        "why_not": why,
        "equal_outputs": None if wanted is None or found is None else bool(np.array_equal(wanted, found)),
    }


def main(argv: list[str]) -> None:
    """Converts, asks, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    results = stored.Results("sparse_encoding", {"inputs": len(INPUTS)}, folder)
    for text in _SPARSITIES.value:
        with tempfile.TemporaryDirectory() as place:
            pruned(float(text)).export(place, verbose=False)
            for kind in compression_tables.KINDS:
                results.put(f"{text}/{kind}", measure(float(text), kind, place))
    print(compression_tables.sparse_encoding(results.entries))
    for reason in sorted({row["why_not"] for row in results.entries.values() if row["why_not"]}):
        print(f"does not run: {reason}")


if __name__ == "__main__":
    app.run(main)
