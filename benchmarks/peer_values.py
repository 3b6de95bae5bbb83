"""Do our losses say what the peers' say? Values and gradients on the same arrays, side by side.

    python benchmarks/peer_values.py --peer_python=FOLDER/bin/python    # with torchdistill on CPU PyTorch
    python benchmarks/peer_values.py                                    # keras.distillation only

torchdistill runs in a process of an interpreter that has it, so that PyTorch need not be installed beside TensorFlow:

    python -m venv FOLDER && FOLDER/bin/pip install torchdistill

Where a peer defines a method otherwise, the row says so, and what is compared is the part that both define alike. Each
figure is the largest difference, divided by the peer's largest number; both sides compute in float32.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Not this folder, whose tflite_tools.py would hide the package.
sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import common, stored, tables
from keras_kd import losses

_PYTHON = flags.DEFINE_string("peer_python", None, "An interpreter that has torchdistill.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the JSON file; by default benchmarks/results.")

BATCH, CLASSES = 16, 10
Answer = tuple[np.ndarray, np.ndarray]


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """What both sides get: logits, vectors of features, feature maps (channels last), labels."""
    random = np.random.default_rng(seed)
    shapes = {"logits": (BATCH, CLASSES), "vectors": (BATCH, 24), "maps": (BATCH, 6, 6, 8)}
    found = {
        f"{side}_{kind}": random.normal(0, 2, shape).astype(np.float32)
        for side in ("teacher", "student")
        for kind, shape in shapes.items()
    }
    found["second_maps"] = random.normal(0, 1, (BATCH, 6, 6, 12)).astype(np.float32)
    return {**found, "labels": random.integers(0, CLASSES, BATCH)}


def ours(given: dict[str, np.ndarray]) -> dict[str, Answer]:
    """Our value and gradient for every row of either peer."""
    labels = given["labels"]

    def both(soft: Any, student: Any) -> Any:
        hard = keras.losses.sparse_categorical_crossentropy(labels, student, from_logits=True)
        return 0.1 * tf.reduce_mean(hard) + 0.9 * tf.reduce_mean(soft)

    kinds: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
        "soft targets, T = 4, 0.9 / 0.1": (
            "logits",
            lambda t, s: both(losses.soft_target_kl(t, s, temperature=4.0), s),
        ),
        "standardized logits, T = 2, 0.9 / 0.1": (
            "logits",
            lambda t, s: both(losses.soft_target_kl(t, s, temperature=2.0, standardize=True), s),
        ),
        "correlation, beta = gamma = 2, T = 4": (
            "logits",
            lambda t, s: losses.correlation_distance(t, s, beta=2.0, gamma=2.0, temperature=4.0),
        ),
        "relations, 25 / 50": ("vectors", losses.relational_distance),
        "probabilistic transfer": ("vectors", losses.cosine_kernel_kl),
        "similarity preserving, as it comes": ("vectors", losses.similarity_distance),
        "similarity preserving, rows of L2 norm 1": ("vectors", losses.similarity_distance),
        "attention transfer": ("maps", lambda t, s: tf.reduce_mean(losses.attention_distance(t, s))),
        "flow matrix, its mean": (
            "maps",
            lambda t, s: tf.reduce_mean(losses.flow_matrix(s, given["second_maps"])),
        ),
        "soft targets, T = 4": (
            "logits",
            lambda t, s: tf.reduce_mean(losses.soft_target_kl(t, s, temperature=4.0)),
        ),
        "soft targets, T = 1": ("logits", lambda t, s: tf.reduce_mean(losses.soft_target_kl(t, s))),
        "hint, mean squared error": ("maps", lambda t, s: tf.reduce_mean(losses.hint_distance(t, s))),
    }
    return {name: _answer(function, given, kind) for name, (kind, function) in kinds.items()}


def keras_distillation(given: dict[str, np.ndarray]) -> dict[str, Answer]:
    """What Keras's own losses say."""
    peer = keras.distillation
    divergence = keras.losses.KLDivergence()
    kinds: dict[str, tuple[str, Any]] = {
        "soft targets, T = 4": ("logits", peer.LogitsDistillation(temperature=4.0, loss=divergence)),
        "soft targets, T = 1": ("logits", peer.LogitsDistillation(temperature=1.0, loss=divergence)),
        "hint, mean squared error": ("maps", peer.FeatureDistillation(loss="mse")),
    }
    return {name: _answer(loss.compute_loss, given, kind) for name, (kind, loss) in kinds.items()}


def keras_default(given: dict[str, np.ndarray]) -> Answer:
    """`keras.distillation.LogitsDistillation(temperature=4)` as it comes."""
    return _answer(keras.distillation.LogitsDistillation(temperature=4.0).compute_loss, given, "logits")


def _answer(function: Callable[[Any, Any], Any], given: dict[str, np.ndarray], kind: str) -> Answer:
    teacher, student = tf.constant(given[f"teacher_{kind}"]), tf.constant(given[f"student_{kind}"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = function(teacher, student)
    return np.asarray(value), np.asarray(tape.gradient(value, student))


def torchdistill(python: str, given: dict[str, np.ndarray]) -> tuple[dict[str, Answer], list[str]]:
    """What torchdistill's losses say, computed by another interpreter, and its versions."""
    script = pathlib.Path(__file__).with_name("peer_torchdistill.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "arrays.npz"), pathlib.Path(folder, "answers.npz")
        np.savez(source, **given)  # type: ignore[arg-type]
        done = subprocess.run(
            [python, str(script), str(source), str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"--peer_python: {python} could not run torchdistill:\n{done.stderr.strip()}")
        with np.load(target) as stored_answers:
            versions = [str(version) for version in stored_answers["versions"]]
            names = [key.removeprefix("value ") for key in stored_answers if key.startswith("value ")]
            answers = {
                name: (stored_answers[f"value {name}"], stored_answers[f"gradient {name}"]) for name in names
            }
    return answers, versions


def compared(mine: Answer, theirs: Answer) -> dict[str, float]:
    """Both values, and the largest differences relative to the peer's largest number."""
    value, gradient = (
        float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(mine, theirs, strict=True)
    )
    return {
        "ours": float(mine[0]),
        "theirs": float(theirs[0]),
        "value_difference": value,
        "gradient_difference": gradient,
    }


def main(argv: list[str]) -> None:
    """Compares, stores, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else stored.RESULTS
    given = arrays()
    mine = ours(given)
    results = stored.Results("peer_values", {"batch": BATCH, "classes": CLASSES, "seed": 0}, folder)
    results.put("environment", common.environment())
    results.put("keras.distillation", {n: compared(mine[n], a) for n, a in keras_distillation(given).items()})
    results.put("keras_default", compared(mine["soft targets, T = 4"], keras_default(given)))
    if _PYTHON.value:
        answers, versions = torchdistill(_PYTHON.value, given)
        results.put("torchdistill", {name: compared(mine[name], answer) for name, answer in answers.items()})
        results.put("torchdistill_versions", versions)
    else:
        print("torchdistill's rows are not run: --peer_python names no interpreter that has it.")
    print(tables.peer_values(tables.read("peer_values", folder)))


if __name__ == "__main__":
    app.run(main)
