"""Speed of tflite_tools, each row a ratio of two figures taken in turns in one run.

    python benchmarks/tflite_tools.py [--rows=import,inspect,...] [--json] [--store]

Ratios are asked for and seconds are not: seconds belong to the machine. On a machine where others work at the same
time the rows that use several cores come out too low.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

# This file is named as the package is. Run as a script it would find itself instead, so its folder leaves the path.
_FOLDER = pathlib.Path(__file__).resolve().parent
sys.path[:] = [str(_FOLDER.parent), *(p for p in sys.path if pathlib.Path(p or ".").resolve() != _FOLDER)]

import tflite_tools
from benchmarks.stored import Results
from tflite_tools.benchmarking.host import device_name
from tflite_tools.text_table import text_table

ROWS = flags.DEFINE_list("rows", None, "Which rows to measure; default: all.")
JSON = flags.DEFINE_boolean("json", False, "Print JSON instead of a table.")
STORE = flags.DEFINE_boolean("store", False, "Also store the rows under benchmarks/results.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each side, taken in turns.", lower_bound=1)
EXAMPLES = flags.DEFINE_integer("examples", 8000, "Examples for `evaluate`.", lower_bound=100)


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `ratio` is ours over theirs; `target` says which ratio is good, in words."""

    name: str
    ours_s: float
    theirs_s: float
    ratio: float
    target: str
    reached: bool


def _in_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both sides, measured alternately so that a busy moment hits both."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run in zip(times, (ours, theirs)):
            start = time.perf_counter()
            run()
            side.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def _python(code: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def measure_import() -> Row:
    """A new process with `import tflite_tools` against one with `import tensorflow`."""
    check = "import sys, tflite_tools; assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    _python(check)()
    ours, theirs = _in_turns(_python(check), _python("import tensorflow"), REPEATS.value)
    return Row(
        "import", ours, theirs, ours / theirs, "below 0.3 of importing TensorFlow", ours / theirs < 0.3
    )


def _small_resnet() -> tflite_tools.TFLiteArtifact:
    """A network of ResNet8's shape, twice as wide: 32x32x3, about 50 million multiplications, int8."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
    for width, stride in ((32, 1), (64, 2), (128, 2)):
        y = layers.Conv2D(width, 3, strides=stride, padding="same", activation="relu")(x)
        y = layers.Conv2D(width, 3, padding="same")(y)
        if stride > 1:
            x = layers.Conv2D(width, 1, strides=stride)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    calibration = np.random.default_rng(0).random((50, 32, 32, 3), dtype=np.float32)
    return tflite_tools.convert(keras.Model(inputs, outputs), quantization="int8", calibration=calibration)


def _bare_loop(content: bytes, x: np.ndarray) -> np.ndarray:
    """What a user would write: one interpreter, one example after the other."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = source["quantization"]
    predicted = []
    for example in x:
        raw = np.clip(np.round(example / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], raw[None])
        interpreter.invoke()
        predicted.append(interpreter.get_tensor(target["index"])[0].argmax())
    return np.array(predicted)


def measure_evaluate() -> Row:
    """`evaluate` on all cores against one bare interpreter loop that only counts right answers."""
    artifact = _small_resnet()
    rng = np.random.default_rng(1)
    x = rng.random((EXAMPLES.value, 32, 32, 3), dtype=np.float32)
    y = rng.integers(0, 10, len(x))
    accuracy = float(np.mean(_bare_loop(artifact.content, x[:200]) == y[:200]))
    # Ties between quantized scores aside, both must find the same answers before their speed is compared.
    ours_accuracy = tflite_tools.evaluate(artifact, x[:200], y[:200]).accuracy
    if ours_accuracy is None or abs(ours_accuracy - accuracy) > 0.01:
        raise RuntimeError("evaluate and the bare loop disagree; their speeds cannot be compared.")
    ours, theirs = _in_turns(
        lambda: tflite_tools.evaluate(artifact, x, y),
        lambda: np.mean(_bare_loop(artifact.content, x) == y),
        min(3, REPEATS.value),
    )
    return Row(
        "evaluate", ours, theirs, theirs / ours, "at least 1.8 times one bare loop", theirs / ours >= 1.8
    )


def measure_convert() -> Row:
    """`convert` of a small model with the converter in its child process, once that runs, against in this process.

    The first conversion also starts the child; `first_convert` times that.
    """
    import keras

    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(16, 3), keras.layers.Dense(10)])
    apart, here = tflite_tools.convert(model), tflite_tools.convert(model, isolate=False)
    if apart.content != here.content:
        raise RuntimeError("The child process and this one gave different files.")
    if apart.notes != here.notes:
        print(f"Notes differ: {apart.notes} in the child, {here.notes} here.", file=sys.stderr)
    ours, theirs = _in_turns(
        lambda: tflite_tools.convert(model),
        lambda: tflite_tools.convert(model, isolate=False),
        2 * REPEATS.value,
    )
    ratio = ours / theirs
    return Row("convert", ours, theirs, ratio, "at most 1.25 times the same in-process", ratio <= 1.25)


_CONVERT_ONCE = """
import keras, tflite_tools
model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(16, 3), keras.layers.Dense(10)])
tflite_tools.convert(model, isolate={})
"""


def measure_first_convert() -> Row:
    """A new Python that imports Keras and converts one small model, with the converter in a child and without."""
    ours, theirs = _in_turns(
        _python(_CONVERT_ONCE.format(True)), _python(_CONVERT_ONCE.format(False)), REPEATS.value
    )
    ratio = ours / theirs
    return Row(
        "first_convert", ours, theirs, ratio, "at most one more import of TensorFlow: 2 times", ratio <= 2
    )


@functools.cache
def _mobilenet() -> pathlib.Path:
    """MobileNet v1 1.0 at 224 in float32, 17 MB and more than 5 ms an inference; random weights cost the same."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(weights=None, input_shape=(224, 224, 3))
    return tflite_tools.convert(model).save(pathlib.Path(tempfile.mkdtemp()) / "mobilenet.tflite")


def measure_inspect() -> Row:
    """`inspect` of a file of 17 MB against reading it and unpacking it with the wheel's own classes, no more."""
    from ai_edge_litert import schema_py_generated

    path = _mobilenet()
    bare = schema_py_generated.ModelT.InitFromPackedBuf
    ours, theirs = _in_turns(
        lambda: tflite_tools.inspect(path), lambda: bare(path.read_bytes()), 4 * REPEATS.value
    )
    return Row(
        "inspect",
        ours,
        theirs,
        ours / theirs,
        "at most 2 times reading and parsing it bare",
        ours / theirs <= 2,
    )


def _litert_benchmark(path: pathlib.Path, num_runs: int, warmup_runs: int) -> dict[str, float]:
    """What LiteRT's own command line measures, in milliseconds."""
    result = path.with_name("litert.json")
    command = [
        *(sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model"),
        *(
            f"--model={path}",
            f"--num_runs={num_runs}",
            f"--warmup_runs={warmup_runs}",
            f"--result_json={result}",
        ),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(result.read_text())["latency"]


def measure_latency() -> Row:
    """The host benchmark's latency against that of litert-benchmark, in turns; the fastest run of each counts.

    Other work on the machine only ever adds time, so that the smallest figure of many turns is the one that the two
    must agree on, on a quiet machine and on a busy one. Fifteen turns were too few on a virtual machine: once they
    differed by 2.6 %, where 36 turns gave 0.3 %.
    """
    path = _mobilenet()
    ours, theirs = [], []
    for _ in range(8 * REPEATS.value):
        latency = tflite_tools.benchmark(path, num_runs=60, warmup_runs=20, interval=None).latency_us
        assert latency is not None and latency.min is not None
        ours.append(latency.min / 1e6)
        theirs.append(_litert_benchmark(path, 60, 20)["min_ms"] / 1e3)
    ratio = min(ours) / min(theirs)
    return Row(
        "latency",
        min(ours),
        min(theirs),
        ratio,
        "within 2 % of litert-benchmark (fastest run)",
        abs(ratio - 1) <= 0.02,
    )


def measure_resolution() -> Row:
    """How exactly the median of a model of some microseconds is known, against litert-benchmark's steps of 0.01 ms."""
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    path = tflite_tools.convert(model).save(pathlib.Path(tempfile.mkdtemp()) / "small.tflite")
    latency = tflite_tools.benchmark(path, num_runs=2000).latency_us
    assert latency is not None and latency.median_low is not None and latency.median_high is not None
    step_ms = 0.01
    theirs = _litert_benchmark(path, 2000, 20)
    if any(abs(value / step_ms - round(value / step_ms)) > 1e-6 for value in theirs.values()):
        raise RuntimeError(f"litert-benchmark no longer rounds to {step_ms} ms: {theirs}")
    ours_s, theirs_s = (latency.median_high - latency.median_low) / 2e6, step_ms / 1e3
    return Row(
        "resolution",
        ours_s,
        theirs_s,
        ours_s / theirs_s,
        "finer than litert-benchmark's 0.01 ms",
        ours_s < theirs_s,
    )


MEASUREMENTS: dict[str, Callable[[], Row]] = {
    "import": measure_import,
    "inspect": measure_inspect,
    "evaluate": measure_evaluate,
    "convert": measure_convert,
    "first_convert": measure_first_convert,
    "latency": measure_latency,
    "resolution": measure_resolution,
}


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    wanted = ROWS.value or list(MEASUREMENTS)
    unknown = [name for name in wanted if name not in MEASUREMENTS]
    if unknown:
        raise app.UsageError(f"--rows: unknown {unknown}; there are {list(MEASUREMENTS)}.")
    rows = []
    stored = Results("tflite_tools", {"device": device_name()}) if STORE.value else None
    for name in wanted:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows.append(MEASUREMENTS[name]())
        if stored is not None:
            stored.put(name, dataclasses.asdict(rows[-1]))
    if JSON.value:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    table = [
        [
            r.name,
            f"{r.ours_s:.4g}",
            f"{r.theirs_s:.4g}",
            f"{r.ratio:.2f}",
            r.target,
            "yes" if r.reached else "no",
        ]
        for r in rows
    ]
    print(text_table(["row", "ours s", "theirs s", "ratio", "target", "reached"], table))


if __name__ == "__main__":
    app.run(main)
