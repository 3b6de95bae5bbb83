"""Wrong use of a cache, found before anything is built or trained."""

from typing import Any

import numpy as np

from keras_kd.teachers import cache_build, cache_sources, cache_teachers, cache_views
from keras_kd.teachers.cache_errors import CacheError, CacheMismatchError
from keras_kd.teachers.cache_sources import Source, StreamSource
from keras_kd.teachers.cache_store import Manifest
from keras_kd.teachers.cache_teachers import CachedTeacher
from keras_kd.teachers.cache_views import Views
from keras_kd.teachers.nests import leaves


def check_build_arguments(
    *, batch_size: Any, views: Any, augment: Any, mix: Any, top_k: Any, seed: Any
) -> None:
    """Arguments of `TeacherCache.build`.

    Raises:
      CacheError: with every problem found.
    """
    problems = _whole_numbers(batch_size=(batch_size, 1), views=(views, 1), seed=(seed, 0))
    if top_k is not None:
        problems += _whole_numbers(top_k=(top_k, 1))
    for name, function in (("augment", augment), ("mix", mix)):
        if function is not None and not callable(function):
            problems.append(f"{name} must be a callable or None, got {function!r}.")
    if augment is None and mix is None and isinstance(views, int) and views > 1:
        problems.append(f"views={views} without augment or mix would store the same answers {views} times.")
    if problems:
        raise CacheError("This cache cannot be built: " + _listed(problems))


def check_engine(engine: Any, ray_options: Any) -> None:
    """`engine` and `ray_options` of `TeacherCache.build`.

    Raises:
      CacheError: there is no such engine, or options for another one.
    """
    if engine not in ("local", "ray"):
        raise CacheError(f"engine must be 'local' or 'ray', got {engine!r}.")
    if ray_options is not None and engine != "ray":
        raise CacheError("ray_options was given without engine='ray'.")


def check_training_arguments(
    manifest: Manifest,
    source: Source,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: Any,
    initial_epoch: Any,
    seed: Any,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Arguments of `TeacherCache.dataset`.

    Raises:
      CacheError: with every problem found.
    """
    problems = _whole_numbers(batch_size=(batch_size, 1), initial_epoch=(initial_epoch, 0), seed=(seed, 0))
    if isinstance(source, StreamSource) and (y is not None or sample_weight is not None):
        problems.append(
            "x is a data set that brings its labels and weights; y and sample_weight must be None."
        )
    elif isinstance(source, StreamSource) and part != (0, 1):
        problems.append("a data set of batches cannot be read in parts: give x as arrays or files.")
    elif sample_weight is not None and y is None and not source.has_labels:
        problems.append("sample_weight was given without y; Keras takes weights beside labels only.")
    if not 0 <= part[0] < part[1]:
        problems.append(f"part must be (which, of how many) with 0 <= which < of how many, got {part!r}.")
    for name, values in (("y", y), ("sample_weight", sample_weight)):
        if values is not None and len(leaves(values)[0]) != manifest.examples:
            problems.append(
                f"{name} has {len(leaves(values)[0]):,} entries for {manifest.examples:,} examples."
            )
    if problems:
        raise CacheError("This data set cannot be made: " + _listed(problems))


def use_problems(
    manifest: Manifest,
    blocks: bytes,
    source: Source | None,
    views: Views,
    teacher: CachedTeacher | None = None,
) -> list[str]:
    """How data, augmentation and teacher differ from those that a cache was made with, as sentences."""
    problems = [
        f"the {what} that the cache was made with, {record['name']}, is not at hand: give it, "
        f"TeacherCache.open(path, {what}=...)."
        for what in ("augment", "mix")
        if (record := getattr(manifest, what)) is not None and getattr(views, what) is None
    ]
    if source is None:
        return problems
    other_data = cache_sources.compare_data(source, manifest.data, blocks)
    if problems or other_data:
        return [*other_data, *problems]
    if not views.plain:
        augment, mix = views.probe(source)
        problems += cache_views.differences("augment", manifest.augment, augment)
        problems += cache_views.differences("mix", manifest.mix, mix)
    if teacher is not None:
        identity = teacher.probe(cache_build.first_examples(source))[2]
        problems += cache_teachers.differences(manifest.teacher, identity)
    return problems


def number_of_classes(manifest: Manifest) -> int | None:
    """Classes that every output of the teacher has; None where they differ, or outputs are single numbers."""
    sizes = {shape[-1] if shape else 1 for shape in manifest.layout.output_shapes}
    size = sizes.pop() if len(sizes) == 1 else 1
    return size if size > 1 else None


def check_labels(manifest: Manifest, y: Any) -> None:
    """Class numbers must be classes that the teacher knows.

    Raises:
      CacheMismatchError: they are not.
    """
    classes = number_of_classes(manifest)
    if y is None or len(leaves(y)) != 1 or classes is None:
        return
    labels = np.asarray(leaves(y)[0])
    if labels.dtype.kind in "iu" and labels.size and (labels.ndim == 1 or labels.shape[1:] == (1,)):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise CacheMismatchError(
                f"y holds classes from {low} to {high}, and the teacher knows {classes} classes (0 to {classes - 1})."
            )


def _whole_numbers(**arguments: tuple[Any, int]) -> list[str]:
    return [
        f"{name} must be a whole number of at least {least}, got {value!r}."
        for name, (value, least) in arguments.items()
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least
    ]


def _listed(problems: list[str]) -> str:
    return problems[0] if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
