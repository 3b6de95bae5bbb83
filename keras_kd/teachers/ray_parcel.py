"""Parcels: what Ray's workers need, as a file beside the shards.

A worker that was lost is replaced by one that reads the same file, and neither the driver's memory nor Ray's object
store holds the teacher or an example.
"""

import contextlib
import pathlib
import pickle
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from keras_kd.teachers import cache_store
from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_sources import Source
from keras_kd.teachers.cache_store import Manifest
from keras_kd.teachers.cache_views import Views


@dataclass
class Parcel:
    """What a worker is given.

    Attributes:
      source: the data, as paths.
      teacher: pickled, to be opened with `own_classes` at hand; None where the data are only read.
      own_classes: {name: class} of the layers that are not Keras's.
      layers, preprocessing: as in `TeacherCache.build`.
      views: how the examples look.
      manifest: of the cache, without its shards.
      batch_size: as in `TeacherCache.build`.
      max_attempts: how many workers may die at one shard.
    """

    source: Source
    teacher: bytes | None = None
    own_classes: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    preprocessing: Any = None
    views: Views | None = None
    manifest: Manifest | None = None
    batch_size: int = 0
    max_attempts: int = 1


def own_classes(models: Iterable[Any]) -> dict[str, Any]:
    """Classes of layers, by their registered names, that a process with Keras alone does not know."""
    import keras

    found: dict[str, Any] = {}
    for model in models:
        for layer in (model, *getattr(model, "layers", ())):
            kind = type(layer)
            if kind.__module__.split(".")[0] not in ("keras", "keras_kd"):
                found[keras.saving.get_registered_name(kind)] = kind
                found[kind.__name__] = kind
            if layer is not model and getattr(layer, "layers", None):
                found.update(own_classes([layer]))
    return found


@contextlib.contextmanager
def parcel_file(folder: pathlib.Path, parcel: Parcel) -> Iterator[str]:
    """The name of a file with the parcel, which is there as long as it is needed."""
    path = folder / f"parcel-{uuid.uuid4().hex[:12]}{cache_store.TEMPORARY}"
    path.write_bytes(dumps(parcel))
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def dumps(value: Any) -> bytes:
    """Pickled by Ray's own cloudpickle, functions of the caller's script too."""
    import ray.cloudpickle

    try:
        return ray.cloudpickle.dumps(value)
    except Exception as error:  # whatever an object's own pickling raises
        raise CacheError(
            f"The teacher, the data or a function cannot be sent to the workers: {type(error).__name__}: {error}. A "
            "callable teacher can load what cannot be pickled when it is first called."
        ) from error


def pickled_teacher(teacher: Any) -> bytes:
    """A teacher of any kind; to be opened with `classes_of(teacher)` at hand."""
    from keras_kd.teachers.ensemble import TeacherEnsemble

    if isinstance(teacher, TeacherEnsemble):
        # The lists that a Keras model makes of its attributes cannot be unpickled (Keras 3.15).
        parts = (list(teacher.models), teacher.weights_of_members, tuple(teacher.preprocessing))
        return dumps(_Members(*parts))
    if isinstance(teacher, (str, pathlib.Path)):
        import tflite_tools

        return dumps(tflite_tools.load(teacher))
    return dumps(teacher)


@dataclass
class _Members:
    """An ensemble in its parts: its members' preprocessing may be functions that Keras cannot save."""

    models: Any
    weights: Any
    preprocessing: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return _ensemble, (self.models, self.weights, self.preprocessing)


def _ensemble(models: Any, weights: Any, preprocessing: Any) -> Any:
    from keras_kd.teachers.ensemble import TeacherEnsemble

    return TeacherEnsemble(models, weights, preprocessing=preprocessing)


def classes_of(teacher: Any) -> dict[str, Any]:
    """`own_classes` of a teacher of any kind."""
    import keras

    from keras_kd.teachers.ensemble import TeacherEnsemble

    members = teacher.models if isinstance(teacher, TeacherEnsemble) else teacher
    found = members if isinstance(members, (list, tuple)) else [members]
    return own_classes(model for model in found if isinstance(model, keras.Model))


def read_parcel(folder: str, parcel: str) -> Parcel:
    """The parcel that the driver has put beside the shards.

    Raises:
      CacheError: this machine does not see the folder, or the data.
    """
    path = pathlib.Path(folder, parcel)
    if not path.is_file():
        raise CacheError(
            f"The worker on {socket.gethostname()} does not see the cache at {folder!r}: it has to lie on a file "
            "system that all machines share, under the same path."
        )
    with path.open("rb") as file:
        return pickle.load(file)
