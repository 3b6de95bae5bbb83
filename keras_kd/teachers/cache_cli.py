"""The command line of the cache: `python -m keras_kd.teachers.cache info|verify|build --path=...`.

Whatever is wrong ends in one line on standard error and exit status 2; damaged shards in exit status 1.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from keras_kd.errors import nearest
from keras_kd.teachers import cache_store
from keras_kd.teachers.cache import TeacherCache
from keras_kd.teachers.cache_errors import CorruptShardError
from keras_kd.teachers.cache_facts import CacheFacts

_PROGRAM = "python -m keras_kd.teachers.cache"
_COMMANDS = {
    "info": "Say what a cache holds.",
    "verify": "Read every shard and compare its checksum.",
    "build": "Run a teacher over data, or go on with a build that was interrupted.",
}


def _define_flags(values: flags.FlagValues, command: str) -> None:
    kept = {"flag_values": values}
    flags.DEFINE_string("path", None, "The folder of the cache.", **kept)
    if command == "info":
        flags.DEFINE_bool("json", False, "Print the manifest as JSON.", **kept)
    if command != "build":
        return
    flags.DEFINE_string("teacher", None, "The teacher: a .keras or .tflite file.", **kept)
    flags.DEFINE_string("data", None, "A .npz file that holds x, or a folder of images.", **kept)
    flags.DEFINE_integer("batch_size", 256, "Examples per forward pass of the teacher.", **kept)
    flags.DEFINE_integer("views", 1, "Views of each example.", **kept)
    flags.DEFINE_list(
        "augment", [], "Augmentations, one after the other, such as RandomFlip,RandomShift:2.", **kept
    )
    flags.DEFINE_string("mix", None, "Mixup or CutMix, perhaps with alpha: Mixup:0.2.", **kept)
    flags.DEFINE_list("layers", [], "Layers of a Keras teacher whose features to store.", **kept)
    flags.DEFINE_integer("top_k", None, "How many of the largest logits to keep; all if not given.", **kept)
    flags.DEFINE_string("dtype", "float16", "float16 or float32.", **kept)
    flags.DEFINE_integer("seed", 0, "Of the views.", **kept)
    flags.DEFINE_string("engine", "local", "local, or ray for the workers of a Ray cluster.", **kept)
    flags.DEFINE_string("address", None, "Of the Ray cluster: auto, local or ray://host:10001.", **kept)
    flags.DEFINE_integer("num_workers", None, "Ray workers; as many as fit if not given.", **kept)
    flags.DEFINE_float("num_cpus", 1, "Processors of each Ray worker.", **kept)
    flags.DEFINE_float("num_gpus", 0, "GPUs of each Ray worker.", **kept)
    flags.DEFINE_bool("resume", True, "--noresume deletes what is at --path and begins anew.", **kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in _COMMANDS:
        if words and not words[0].startswith("-"):
            print(
                f"{_PROGRAM}: there is no command {words[0]!r}.{nearest(words[0], _COMMANDS)}",
                file=sys.stderr,
            )
            return 2
        print(_help())
        return 0 if words else 2
    values = flags.FlagValues()
    _define_flags(values, words[0])
    if any(word in ("--help", "-h") for word in words[1:]):
        print(_help(words[0], values))
        return 0
    try:
        rest = values([_PROGRAM, *words[1:]])[1:]
        if len(rest) == 1 and values.path is None:
            values.path = rest.pop()
        if rest or not values.path:
            raise ValueError(
                f"unexpected argument {rest[0]!r}; arguments are written as --name=value."
                if rest
                else f"--path is missing. See {_PROGRAM} {words[0]} --help."
            )
        print({"info": _info, "verify": _verify, "build": _build}[words[0]](values))
    except CorruptShardError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError, ImportError, flags.Error) as error:
        print(f"{_PROGRAM}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _help(command: str | None = None, values: flags.FlagValues | None = None) -> str:
    if command is None or values is None:
        lines = [f"usage: {_PROGRAM} COMMAND --path=FOLDER ...", ""]
        return "\n".join(lines + [f"  {name:<8}{text}" for name, text in _COMMANDS.items()])
    lines = [f"usage: {_PROGRAM} {command} --name=value ...", _COMMANDS[command], ""]
    for flag in values.flags_by_module_dict()[__name__]:
        default = f" (default: {flag.default})" if flag.default not in (None, False, []) else ""
        lines.append(f"  --{flag.name}{'' if flag.boolean else '=...'}  {flag.help}{default}")
    return "\n".join(lines)


def _info(values: Any) -> str:
    folder = pathlib.Path(values.path)
    manifest = cache_store.read_manifest(folder)
    if values.json:
        return json.dumps(manifest.to_json(), indent=1)
    # Of an unfinished cache, too.
    return CacheFacts(folder, manifest).summary()


def _verify(values: Any) -> str:
    cache = TeacherCache.open(values.path)
    cache.verify()
    return f"{cache!r}: every shard is as it was written."


def _build(values: Any) -> str:
    missing = [f"--{name} is missing" for name in ("teacher", "data") if not values[name].value]
    if missing:
        raise ValueError(f"{'; '.join(missing)}. See {_PROGRAM} build --help.")
    from tflite_tools.cli import load_arrays

    x: Any = values.data
    names = ("address", "num_workers", "num_cpus", "num_gpus")
    options = {name: values[name].value for name in names if values[name].present}
    if options and values.engine != "ray":
        raise ValueError(f"--{next(iter(options))} was given without --engine=ray.")
    if not pathlib.Path(x).is_dir() and values.engine != "ray":
        (x,) = load_arrays(x, "x")
    cache = TeacherCache.build(
        _teacher(values.teacher),
        x,
        values.path,
        batch_size=values.batch_size,
        views=values.views,
        augment=_augmentation(values.augment),
        mix=_one(values.mix) if values.mix else None,
        layers=values.layers,
        top_k=values.top_k,
        dtype=values.dtype,
        seed=values.seed,
        resume=values.resume,
        engine=values.engine,
        ray_options=options or None,
    )
    return cache.summary()


def _teacher(path: str) -> Any:
    if not pathlib.Path(path).exists():
        raise ValueError(f"--teacher={path}: there is no such file.")
    if path.endswith(".tflite"):
        return path
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its readers raise, from KeyError to OSError
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"--teacher={path}: Keras cannot load it: {lines[0]}") from error


def _augmentation(words: Sequence[str]) -> Any:
    from keras_kd.teachers.augmentations import Sequence as Chain

    steps = tuple(_one(word) for word in words)
    return None if not steps else steps[0] if len(steps) == 1 else Chain(steps)


def _one(word: str) -> Any:
    """`RandomShift:2` as RandomShift(2)."""
    from keras_kd.teachers.augmentations import CLASSES

    name, *numbers = word.split(":")
    usable = [kind for kind in CLASSES if kind != "Sequence"]
    if name not in usable:
        raise ValueError(f"there is no augmentation {name!r}.{nearest(name, usable)}")
    try:
        return CLASSES[name](*(float(number) if "." in number else int(number) for number in numbers))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{word!r} is no augmentation: {error}") from error
