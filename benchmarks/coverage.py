"""Which architectures go all the way: bridge, prune, quantization-aware training, int8 .tflite, and does it run.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --families=MobileNetV2,EfficientNetB0 --again

Every row is stored under benchmarks/results/ as soon as it is there; a second run shows what is stored and runs what
is missing or stopped half-way. `--again` runs the named families anew.

Sixteen families of keras.applications with random weights, 96x96x3 (NASNetMobile: 224), 10 logits. Every
BatchNormalization first gets a scale that fits the data (see `settle`). Beside it stands what TF-MOT
itself manages with the tf_keras.applications model of the same name.

A family counts as "int8" when its file takes and gives int8 and no operator in it computes in float, but for islands:
layers that the compression report says stay float. They are named below the row, with what they cost in bytes. SQNR
compares the logits of the QAT model in Keras with those of the file, islands included. Each family runs in a process
of its own.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if not __package__:  # run as a file: not this folder, whose tflite_tools.py would hide the package
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app, flags

from benchmarks.coverage_table import FAMILIES, SPARSITY, page, table
from benchmarks.stored import Results

# Keras 3 has no constructor for these two; the tf_keras model itself is the student.
TF_KERAS_ONLY = ("RegNetX002", "ResNetRS50")
PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "coverage.md"

FLAGS = flags.FLAGS
flags.DEFINE_list("families", list(FAMILIES), "Which to run.")
flags.DEFINE_integer("images", 32, "Random images to train and calibrate on.", lower_bound=8)
flags.DEFINE_integer("batch_size", 8, "Images per training step.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of weights, images and training.")
flags.DEFINE_bool("tfmot", True, "Also try TF-MOT by itself.")
flags.DEFINE_bool("again", False, "Run the families anew, also those whose row is stored.")
flags.DEFINE_bool("run", True, "Run what is missing; --norun only prints what is stored.")
flags.DEFINE_bool("page", False, "Also put the table of all families into docs/coverage.md.")
flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
flags.DEFINE_string("one", None, "Used by the script itself: run this family here and print one JSON line.")


def build(family: str) -> Any:
    """The family's model: Keras 3 where keras.applications has it, tf_keras otherwise."""
    import keras

    side = image_side(family)
    arguments = {
        "weights": None,
        "input_shape": (side, side, 3),
        "classes": 10,
        "classifier_activation": None,
    }
    if family in TF_KERAS_ONLY:
        import tf_keras

        return getattr(tf_keras.applications, "regnet" if "RegNet" in family else "resnet_rs").__dict__[
            family
        ](**arguments)
    return getattr(keras.applications, family)(**arguments)


def image_side(family: str) -> int:
    """Pixels per side."""
    return 224 if family == "NASNetMobile" else 96


def images(family: str, count: int, seed: int) -> Any:
    """Smooth random images in the range that the family expects, [count, side, side, 3]."""
    import keras
    import numpy as np
    import tensorflow as tf

    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, (count, 8, 8, 3)).astype("float32")
    side = image_side(family)
    pixels = np.clip(
        tf.image.resize(coarse, (side, side)).numpy() + generator.normal(0, 10, (count, side, side, 3)),
        0,
        255,
    ).astype("float32")
    home = {
        "MobileNet": "mobilenet",
        "MobileNetV2": "mobilenet_v2",
        "ResNet50": "resnet",
        "ResNet50V2": "resnet_v2",
        "DenseNet121": "densenet",
        "NASNetMobile": "nasnet",
        "Xception": "xception",
        "InceptionV3": "inception_v3",
        "VGG16": "vgg16",
    }.get(family)
    # The others scale inside the model.
    return getattr(keras.applications, home).preprocess_input(pixels) if home else pixels


def settle(model: Any, x: Any) -> None:
    """Makes every BatchNormalization divide by its whole input's root mean square, and freezes it.

    Left as they are initialized, deep networks fade or explode. Normalizing channel by channel, a network of
    random weights amplifies any difference from block to block, whatever its cause, and the comparison of two
    correct programs would measure that.
    """
    import numpy as np
    import tensorflow as tf

    from keras_kd.compression.bridge_graph import run_graph

    def visit(layer: Any, path: str, args: Any, kwargs: Any) -> Any:
        if type(layer).__name__ == "BatchNormalization":
            square = float(np.mean(np.square(np.asarray(args[0]))))
            layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
            layer.moving_variance.assign(np.full(layer.moving_variance.shape, square))
            layer.trainable = False
        return layer(*args, **kwargs)

    run_graph(model, [tf.constant(x)], visit)


def run_family(family: str) -> dict[str, Any]:
    """Every step for one family; a step that fails ends the row with its reason."""
    import keras
    import numpy as np

    import keras_kd
    import tflite_tools

    row: dict[str, Any] = {"family": family, "failed_at": None, "reason": None}
    started = time.monotonic()
    step = "bridge"
    try:
        keras.utils.set_random_seed(FLAGS.seed)
        model = build(family)
        x = images(family, FLAGS.images, FLAGS.seed)
        y = np.random.default_rng(FLAGS.seed).integers(0, 10, FLAGS.images)
        settle(model, x)
        row["parameters"] = int(model.count_params())
        bridged = keras_kd.to_tf_keras(model)
        row["parity"] = keras_kd.bridge_report(bridged).largest_relative_difference
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        arguments = {"loss": loss, "optimizer": keras.optimizers.SGD(1e-4), "epochs": 1, "verbose": 0}
        arguments.update(batch_size=FLAGS.batch_size, seed=FLAGS.seed)
        step = "prune"
        pruned = keras_kd.compress(model, f"prune{round(100 * SPARSITY)}", x, y, **arguments)
        reached = [value for value in pruned.report.layer_sparsity.values() if value]
        row["sparsity"] = min(reached) if reached else None
        del pruned
        step = "QAT"
        compressed = keras_kd.compress(model, "int8_qat", x, y, **arguments)
        row["qat"] = True
        step = "convert"
        artifact = compressed.to_tflite()
        row["bytes"] = artifact.size_bytes
        row["islands"] = islands(compressed.report)
        row.update(float_part(artifact, row["islands"]))
        step = "run"
        comparison = tflite_tools.compare(compressed.model, artifact, x)
        row["runs"] = True
        row["sqnr_db"] = comparison.sqnr_db
    except Exception as error:  # the table is about what fails, so nothing may end it
        row["failed_at"] = step
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        # TensorFlow puts a traceback first and what went wrong last.
        text = lines[-1] if lines[0] == "in user code:" else lines[0]
        row["reason"] = f"{type(error).__name__}: {text[:300]}"
    row["seconds"] = round(time.monotonic() - started, 1)
    if FLAGS.tfmot:
        row.update(tfmot_alone(family))
    return row


def islands(report: Any) -> dict[str, str]:
    """The layers that the report says stay float, each with the reason and the cost that it names."""
    return {
        layer.name: reason for layer in report.layers for reason in layer.reasons if "stays float" in reason
    }


def float_part(artifact: Any, named: dict[str, str]) -> dict[str, Any]:
    """Operators of the file that compute in float, counted by kind, those outside named layers, and float bytes."""
    import tflite_tools

    found = tflite_tools.inspect(artifact)
    counts: collections.Counter[str] = collections.Counter()
    outside: collections.Counter[str] = collections.Counter()
    for operator in found.operators:
        tensors = [found.tensors[number] for number in (*operator.inputs, *operator.outputs) if number >= 0]
        if not any("FLOAT" in str(tensor.dtype).upper() for tensor in tensors):
            continue
        counts[operator.name] += 1
        # The ways into and out of an island belong to it.
        door = bool(named) and operator.name in ("QUANTIZE", "DEQUANTIZE")
        if not door and not any(name in tensor.name for name in named for tensor in tensors):
            outside[operator.name] += 1
    float_bytes = sum(size for dtype, size in found.bytes_by_dtype.items() if "FLOAT" in str(dtype).upper())
    ends = {
        found.tensors[number].dtype
        for graph in found.subgraphs[:1]
        for number in (*graph.inputs, *graph.outputs)
    }
    return {
        "int8": not outside,
        "int8_ends": all(str(dtype).upper() == "INT8" for dtype in ends),
        "float_operators": dict(counts),
        "float_outside_islands": dict(outside),
        "float_bytes": float_bytes,
    }


def tfmot_alone(family: str) -> dict[str, Any]:
    """Does TF-MOT prune and quantize the tf_keras model of the same name?"""
    import keras  # noqa: F401
    import tensorflow as tf

    _ = tf.keras.__version__
    import tf_keras

    from keras_kd.compression.tfmot import tfmot

    side = image_side(family)
    arguments = {
        "weights": None,
        "input_shape": (side, side, 3),
        "classes": 10,
        "classifier_activation": None,
    }
    home = tf_keras.applications
    if family in TF_KERAS_ONLY:
        home = home.regnet if "RegNet" in family else home.resnet_rs
    outcome: dict[str, Any] = {}
    for name, act in (
        ("tfmot_prunes", tfmot.sparsity.keras.prune_low_magnitude),
        ("tfmot_quantizes", tfmot.quantization.keras.quantize_model),
    ):
        try:
            act(getattr(home, family)(**arguments))
            outcome[name] = True
        except Exception:  # any refusal counts
            outcome[name] = False
    return outcome


def in_own_process(family: str) -> dict[str, Any]:
    """Runs one family in a fresh process, so that memory is returned and a crash ends one row only."""
    # As a module from the root: run as a file, the scripts beside this one would hide packages of their name.
    command = [sys.executable, "-m", "benchmarks.coverage", f"--one={family}"]
    for name in ("images", "batch_size", "seed"):
        command.append(f"--{name}={getattr(FLAGS, name)}")
    command.append(f"--tfmot={str(FLAGS.tfmot).lower()}")
    root = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"family": family, "failed_at": "process", "reason": tail[0]}
    return dict(json.loads(lines[-1]))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    unknown = sorted(set(FLAGS.families) - set(FAMILIES))
    if unknown:
        raise app.UsageError(f"unknown families: {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    if FLAGS.one:
        print(json.dumps(run_family(FLAGS.one)))
        return
    settings = {name: getattr(FLAGS, name) for name in ("images", "batch_size", "seed", "tfmot")}
    results = Results("coverage", settings)
    rows = []
    for number, family in enumerate(FLAGS.families, 1):
        row = results.entries.get(family)
        if FLAGS.run and (FLAGS.again or row is None or row["failed_at"]):
            print(f"[{number}/{len(FLAGS.families)}] {family} ...", file=sys.stderr, flush=True)
            row = in_own_process(family)
            results.put(family, row)
        if row is not None:
            rows.append(row)
    print(json.dumps(rows, indent=2) if FLAGS.json else table(rows))
    if FLAGS.page:
        stored = [results.entries[family] for family in FAMILIES if family in results.entries]
        PAGE.write_text(page(PAGE.read_text(), stored))


if __name__ == "__main__":
    app.run(main)
