"""Throws damaged .tflite files at `inspect` and `load`: every one must inspect or end in InvalidModelError.

Byte flips, truncations, spliced and overwritten offsets, from a fixed seed. Checked for every file: no other
exception, at most 2 s of the processor, memory at most a few times the file's size.

  python tests/tflite_tools/fuzz_inspect.py --files=20000 [--models=folder,folder] [--seed=0]
"""

import pathlib
import random
import struct
import sys
import time
import tracemalloc
from collections import Counter

from absl import app, flags

from tflite_tools import inspect, load
from tflite_tools.errors import InvalidModelError

SECONDS = 2.0
# Objects of Python cost more than the bytes they describe; small files hold many small tables.
BYTES_PER_BYTE, BYTES_AT_LEAST = 12, 4 << 20


def mutate(data: bytes, rng: random.Random, other: bytes) -> tuple[str, bytes]:
    """One damaged copy of a file, and what was done to it."""
    kind = rng.choice(
        ("flip", "flip", "structure", "structure", "truncate", "splice", "offset", "offset", "repeat")
    )
    damaged = bytearray(data)
    # Most of a file is weights, where damage does nothing; the tables stand at the front and at the back.
    edge = min(len(data), 4096)
    place = lambda: rng.randrange(edge) if rng.random() < 0.5 else len(data) - 1 - rng.randrange(edge)  # noqa: E731
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "structure":
        for _ in range(rng.choice((1, 2, 4, 16))):
            damaged[place()] = rng.choice((0, 1, 2, 4, 127, 128, 255, rng.randrange(256)))
    elif kind == "truncate":
        damaged = damaged[: rng.randrange(len(data))]
    elif kind == "splice":
        start, length = rng.randrange(len(other)), rng.randrange(1, 256)
        at = place()
        damaged[at : at + length] = other[start : start + length]
    elif kind == "repeat":
        start, length, at = place() & ~3, 4 * rng.randrange(1, 64), place() & ~3
        damaged[at : at + length] = data[start : start + length]
    else:
        for _ in range(rng.choice((1, 1, 4))):
            at = min(place() & ~3, max(0, len(data) - 4))
            value = rng.choice((0, 1, 4, len(data), len(data) - at, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - at))
            if rng.random() < 0.5:
                value = rng.randrange(2 * len(data))
            damaged[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
    return kind, bytes(damaged)


def fuzz(
    models: list[bytes], files: int, seed: int, *, memory_every: int = 20, log=lambda text: None
) -> dict:
    """Runs the mutations; returns counts and the worst figures. Raises AssertionError with the seed's number."""
    rng = random.Random(seed)
    outcomes: Counter = Counter()
    slowest = largest = 0.0
    for number in range(files):
        data = rng.choice(models)
        kind, damaged = mutate(data, rng, rng.choice(models))
        watch = number % memory_every == 0
        for function in (inspect, load):
            if watch:
                tracemalloc.start()
            start, started = time.process_time(), time.monotonic()
            try:
                result = function(damaged)
                if function is inspect:
                    str(result)
                    result.to_json()
                outcome = "read"
            except InvalidModelError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, f"file {number}: {error}"
                outcome = "refused"
            except BaseException as error:
                raise AssertionError(
                    f"file {number} ({kind}, seed {seed}): {function.__name__} raised {error!r}"
                ) from error
            # Processor time: on a busy machine the clock on the wall says nothing about the file.
            seconds = time.process_time() - start
            assert time.monotonic() - started < 60, f"file {number} ({kind}): {function.__name__} hangs"
            slowest = max(slowest, seconds)
            assert seconds < SECONDS * (4 if watch else 1), (
                f"file {number} ({kind}): {function.__name__} took {seconds:.1f} s"
            )
            if watch:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                limit = BYTES_PER_BYTE * len(damaged) + BYTES_AT_LEAST
                assert peak < limit, (
                    f"file {number} ({kind}): {function.__name__} took {peak:,} bytes for {len(damaged):,}"
                )
                largest = max(largest, peak / (len(damaged) + BYTES_AT_LEAST))
            outcomes[f"{function.__name__}: {outcome}"] += 1
        if number and number % 1000 == 0:
            log(f"{number} files, slowest {slowest:.3f} s, {dict(outcomes)}")
    return {
        "files": files,
        "seed": seed,
        "outcomes": dict(outcomes),
        "slowest_s": slowest,
        "memory_ratio": largest,
    }


def main(argv):
    del argv
    models = [
        path.read_bytes()
        for folder in flags.FLAGS.models
        for path in sorted(pathlib.Path(folder).rglob("*.tflite"))
        if path.stat().st_size <= flags.FLAGS.largest
    ]
    if not models:
        sys.path.insert(0, str(pathlib.Path(__file__).parent))
        from tiny_models import conv_int8, dense_float

        models = [conv_int8(), dense_float()]
    print(f"{len(models)} files to damage")
    print(fuzz(models, flags.FLAGS.files, flags.FLAGS.seed, log=lambda text: print(text, flush=True)))


if __name__ == "__main__":
    flags.DEFINE_integer("files", 20_000, "How many damaged files.")
    flags.DEFINE_integer("seed", 0, "Of the mutations.")
    flags.DEFINE_integer("largest", 700_000, "Leave out larger files: they only add weights.")
    flags.DEFINE_list("models", [], "Folders with .tflite files; without any, two small ones are made.")
    app.run(main)
