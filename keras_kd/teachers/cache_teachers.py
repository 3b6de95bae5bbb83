"""Anything that answers a batch, as one kind of object: a Keras model, an ensemble, a .tflite file, a callable."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_identity import PROBE_EXAMPLES, name_of, same_values, sample_values
from keras_kd.teachers.nests import leaves, map_leaves

# Two machines, or two batch sizes, round a forward pass differently; another teacher differs by far more.
_PROBE_TOLERANCE = 1e-2


class CachedTeacher:
    """A teacher as the build sees it.

    Args:
      run: from a batch of inputs (after preprocessing) to (outputs, {layer name: feature}).
      identity: what tells it from other teachers, for the manifest.
      preprocessing: from the student's input batch to the teacher's, or None.
      kinds: for each output "logits", "softmax", "sigmoid", or None where it has to be looked at.
      member_weights: of an ensemble, whose outputs are the tuple of its members' outputs.
      output_names: of the outputs, where they have names.
      rows_per_call: how many examples to give it at once; None is the caller's batch size.
    """

    def __init__(
        self,
        run: Callable[[Any], tuple[Any, dict[str, Any]]],
        identity: dict[str, Any],
        *,
        preprocessing: Callable[[Any], Any] | None = None,
        kinds: Sequence[str | None] = (),
        member_weights: Sequence[float] | None = None,
        output_names: Sequence[str] = (),
        rows_per_call: int | None = None,
    ):
        self._run = run
        self._preprocessing = preprocessing
        self.kinds = list(kinds)
        self.member_weights = member_weights
        self.output_names = list(output_names)
        self.rows_per_call = rows_per_call
        self.identity = {
            **identity,
            "preprocessing": None if preprocessing is None else name_of(preprocessing),
        }

    def __call__(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """NumPy outputs and features of one batch.

        Raises:
          CacheError: the outputs are not arrays with one row per example.
        """
        count = len(leaves(x)[0])
        outputs, features = self._run(x if self._preprocessing is None else self._preprocessing(x))
        outputs = map_leaves(_as_numpy, outputs)
        features = {name: _as_numpy(feature) for name, feature in features.items()}
        for leaf in [*leaves(outputs), *features.values()]:
            if leaf.ndim == 0 or len(leaf) != count:
                raise CacheError(
                    f"The teacher must return one row per example: for {count} examples it returned an array of shape "
                    f"{leaf.shape}."
                )
        return outputs, features

    def look_at(self, outputs: Any) -> None:
        """Find out whether outputs are probabilities, where it is not known."""
        flat = leaves(outputs)
        kinds = self.kinds if len(self.kinds) == len(flat) else [None] * len(flat)
        self.kinds = [
            kind or ("softmax" if look_like_probabilities(leaf) else "logits")
            for kind, leaf in zip(kinds, flat)
        ]

    def probe(self, x: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """(outputs, features, identity with a few numbers of what it says) for the first examples of the data."""
        outputs, features = self(map_leaves(lambda leaf: leaf[:PROBE_EXAMPLES], x))
        self.look_at(outputs)
        said = sample_values([*leaves(outputs), *features.values()])
        return outputs, features, {**self.identity, "says": said}


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Sentences that say how a teacher differs from the one that a cache was made with."""
    for key, what in (
        ("kind", "a teacher of another kind"),
        ("architecture", "a teacher of another architecture"),
        ("weights", "a teacher with other weights"),
        ("file", "another .tflite file"),
        ("preprocessing", "another teacher_preprocessing"),
    ):
        if recorded.get(key) != found.get(key):
            values = f" ({recorded.get(key)!s:.40} and {found.get(key)!s:.40})"
            return [f"the cache was made with {what}{values if key in ('kind', 'preprocessing') else ''}."]
    if not same_values(recorded["says"], found["says"], tolerance=_PROBE_TOLERANCE):
        return ["the cache was made with a teacher that answers the first examples differently."]
    return []


def as_cached_teacher(
    teacher: Any, layers: Sequence[str] = (), preprocessing: Callable[[Any], Any] | None = None
) -> CachedTeacher:
    """The teacher, ready for a build.

    Raises:
      CacheError: nothing that could be a teacher, or layers of something that has none to tap.
    """
    if preprocessing is not None and not callable(preprocessing):
        raise CacheError(f"teacher_preprocessing must be a callable or None, got {preprocessing!r}.")
    if isinstance(teacher, CachedTeacher):
        return teacher
    if isinstance(teacher, (list, tuple)):
        from keras_kd.teachers.ensemble import TeacherEnsemble

        teacher = TeacherEnsemble(teacher)
    if "keras" in sys.modules:
        import keras

        if isinstance(teacher, keras.Model):
            return _keras_teacher(teacher, layers, preprocessing)
    if layers:
        raise CacheError(
            f"layers={tuple(layers)!r} can be tapped in a Keras model only, and the teacher is {_kind(teacher)}."
        )
    if isinstance(teacher, (str, pathlib.Path)) or hasattr(teacher, "provenance"):
        return _tflite_teacher(teacher, preprocessing)
    if not callable(teacher):
        raise CacheError(
            "teacher must be a Keras model, a TeacherEnsemble, a .tflite file or artifact, or a callable from a batch "
            f"to its outputs; got {_kind(teacher)}."
        )
    return CachedTeacher(
        lambda x: (teacher(x), {}),
        {"kind": "callable", "name": name_of(teacher)},
        preprocessing=preprocessing,
    )


def _keras_teacher(model: Any, layers: Sequence[str], preprocessing: Any) -> CachedTeacher:
    import tensorflow as tf

    from keras_kd.output_kinds import seen_kinds
    from keras_kd.taps import TappedModel
    from keras_kd.teachers.ensemble import TeacherEnsemble
    from keras_kd.teachers.moving_average import MovingAverageTeacher
    from keras_kd.teachers.runner import fingerprint

    if isinstance(model, MovingAverageTeacher):
        raise CacheError(
            "A MovingAverageTeacher changes while the student learns; its targets cannot be computed beforehand."
        )
    members = model.models if isinstance(model, TeacherEnsemble) else [model]
    weights = None
    if isinstance(model, TeacherEnsemble):
        if layers:
            raise CacheError(
                f"layers={tuple(layers)!r} cannot be tapped in an ensemble, whose layers differ."
            )
        weights = list(model.weights_of_members)

        def forward(x: Any) -> tuple[Any, dict[str, Any]]:
            return tuple(model.member_outputs(x).outputs), {}

    else:
        tapped = TappedModel(model, layers)

        def forward(x: Any) -> tuple[Any, dict[str, Any]]:
            return tapped(x, training=False)

    compiled: dict[str, Any] = {}

    def run(x: Any) -> tuple[Any, dict[str, Any]]:
        x = map_leaves(tf.convert_to_tensor, x)
        specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), x)
        # Traced once for any number of examples; tf.function by itself would trace once for each number.
        if str(specs) not in compiled:
            compiled[str(specs)] = tf.function(forward, input_signature=[specs])
        return compiled[str(specs)](x)

    kinds = [kind for member in members for kind in seen_kinds(member) or [None]]
    return CachedTeacher(
        run,
        {
            "kind": "ensemble" if weights else "keras",
            "name": model.name,
            "architecture": _digest([_architecture(member) for member in members] + [weights]),
            "weights": _digest([fingerprint(member) for member in members]),
        },
        preprocessing=preprocessing,
        kinds=kinds,
        member_weights=weights,
        output_names=list(getattr(model, "output_names", None) or []) if weights is None else [],
    )


def _tflite_teacher(teacher: Any, preprocessing: Any) -> CachedTeacher:
    import tflite_tools

    artifact = tflite_tools.load(teacher) if isinstance(teacher, (str, pathlib.Path)) else teacher
    return CachedTeacher(
        lambda x: (tflite_tools.predict(artifact, x), {}),
        {"kind": "tflite", "name": str(artifact.path or "artifact"), "file": artifact.sha256},
        preprocessing=preprocessing,
        # A call starts an interpreter, for a foreign file in a process of its own: 0.4 s, to be shared by many.
        rows_per_call=4096,
    )


def _architecture(model: Any) -> Any:
    """A model's structure without names, which differ from run to run (`dense_1`, `dense_2`)."""
    try:
        config = model.get_config()
    except Exception:  # a subclassed model need not have a config; its weights still tell
        return type(model).__name__
    return [type(model).__name__, _without_names(config)]


def _without_names(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = {"name", "trainable", "inbound_nodes", "input_layers", "output_layers", "registered_name"}
        return {key: _without_names(part) for key, part in sorted(value.items()) if key not in dropped}
    if isinstance(value, (list, tuple)):
        return [_without_names(part) for part in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else type(value).__name__


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def look_like_probabilities(values: np.ndarray) -> bool:
    """Whether rows are non-negative and sum to one.

    Example:
      >>> look_like_probabilities(np.array([[0.2, 0.8]])), look_like_probabilities(np.array([[2.0, 8.0]]))
      (True, False)
    """
    if values.ndim < 2 or values.shape[-1] < 2 or not np.all(np.isfinite(values)) or values.min() < 0.0:
        return False
    # Rows of a softmax sum to 1 up to rounding: 1e-2 holds for a thousand classes in float16.
    return bool(np.all(np.abs(values.astype(np.float64).sum(axis=-1) - 1.0) < 1e-2))


def _as_numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise CacheError(f"The teacher must return numbers, got {array.dtype} from {_kind(leaf)}.")
    return array.astype(np.float32, copy=False)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"
