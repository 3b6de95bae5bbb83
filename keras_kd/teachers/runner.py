"""Running a frozen teacher beside a student's training step."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_kd.errors import TeacherMissingError
from keras_kd.taps import TappedModel
from keras_kd.teachers.ensemble import MemberOutputs, TeacherEnsemble
from keras_kd.teachers.folding import FoldedTeacher
from keras_kd.teachers.moving_average import MovingAverageTeacher
from keras_kd.teachers.targets import is_packed, unpack

Tensor = Any


def is_cache(teacher: Any) -> bool:
    """Whether the teacher's targets come with the data."""
    return not isinstance(teacher, keras.Model) and callable(getattr(teacher, "dataset", None))


def as_teacher(teacher: Any) -> Any:
    """The teacher as it was given; a list becomes an ensemble."""
    if isinstance(teacher, (list, tuple)):
        return TeacherEnsemble(teacher)
    if teacher is None or isinstance(teacher, keras.Model) or is_cache(teacher):
        return teacher
    raise ValueError(
        "Teacher must be a keras.Model, a list of them, a keras_kd.TeacherEnsemble or a keras_kd.TeacherCache, got "
        f"{type(teacher).__name__}."
    )


def network_of(teacher: Any) -> Any:
    """The network whose layers and outputs are looked at: of a moving average, the averaged model."""
    return teacher.model if isinstance(teacher, MovingAverageTeacher) else teacher


class TeacherRunner:
    """What the Distiller holds of its teacher: a plain object, so that Keras neither tracks nor saves it.

    Args:
      teacher: a Keras model, an ensemble, a cache, or None (a Distiller that was reloaded without one).
      layer_names: the layers to tap.
      preprocessing: from the student's input batch to the teacher's, or None.
    """

    def __init__(
        self,
        teacher: Any,
        layer_names: Sequence[str] = (),
        preprocessing: Callable[[Any], Any] | None = None,
    ):
        self.teacher = teacher
        self.layer_names = tuple(layer_names)
        self.preprocessing = preprocessing
        self._tapped: dict[int, TappedModel] = {}
        self._folded: dict[int, FoldedTeacher | None] = {}

    def prepare(self) -> None:
        """Get ready for a fit, before the training step is traced: read the weights of the folded copies again."""
        if self.teacher is None:
            raise TeacherMissingError(
                "This Distiller was loaded without its teacher (save_teacher is 'reference' or 'none'), which is "
                "enough to predict and to evaluate. To train it, set distiller.teacher = <the teacher> first."
            )
        if is_cache(self.teacher) or isinstance(self.teacher, MovingAverageTeacher):
            return  # nothing to run, or weights that change at every step
        for index, network in enumerate(self._networks):
            if index not in self._folded:
                self._folded[index] = folded_or_none(network, self.layer_names)
                self._tapped.pop(index, None)
            elif (copy := self._folded[index]) is not None:
                copy.refold()

    @property
    def _networks(self) -> list[keras.Model]:
        if isinstance(self.teacher, TeacherEnsemble):
            return list(self.teacher.models)
        return [network_of(self.teacher)]

    def _run(self, index: int, x: Any) -> tuple[Any, dict[str, Any]]:
        if index not in self._tapped:
            copy = self._folded.get(index)
            network = self._networks[index] if copy is None else copy.model
            self._tapped[index] = TappedModel(network, self.layer_names)
        return self._tapped[index](x, training=False)

    def __call__(self, inputs: Any, targets: Any = None) -> tuple[Any, dict[str, Any]]:
        """(outputs, {layer name: feature}) for the student's inputs, in inference mode."""
        if targets is not None:
            return outputs_of(self.teacher, targets), targets["features"]
        if self.teacher is None:
            self.prepare()
        if is_cache(self.teacher):
            raise ValueError(
                "The teacher is a cache, and this batch does not carry the teacher's targets. Train on "
                "cache.dataset(x, y, batch_size=...), not on the arrays themselves."
            )
        x = self.preprocessing(inputs) if self.preprocessing is not None else inputs
        if isinstance(self.teacher, TeacherEnsemble):
            functions = self.teacher.preprocessing
            each = [
                self._run(index, function(x) if function else x)[0]
                for index, function in enumerate(functions)
            ]
            return MemberOutputs(tuple(each), self.teacher.weights_of_members), {}
        return self._run(0, x)

    def of_batch(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """The same for `x` of a batch, which may carry the targets."""
        return self(*unpack(x)) if is_packed(x) else self(x)


def folded_or_none(network: keras.Model, layer_names: Sequence[str]) -> FoldedTeacher | None:
    """A cheaper private copy of a network, None where nothing would be cheaper or it cannot be copied."""
    try:
        copy = FoldedTeacher(network, keep=layer_names)
    except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError):
        # A layer of the user's own that cannot be made from its configuration, a subclassed model: the network is
        # run as it is. Only speed is at stake.
        return None
    return copy if copy.folded else None


def outputs_of(teacher: Any, targets: Any) -> Any:
    """The outputs that came with a batch; those of an ensemble with their weights."""
    weights = getattr(teacher, "member_weights", None)
    return targets["outputs"] if weights is None else MemberOutputs(tuple(targets["outputs"]), weights)


def fingerprint(model: keras.Model) -> str:
    """A hash over the names, shapes and values of a model's weights.

    Example:
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
      >>> fingerprint(model) == fingerprint(model), len(fingerprint(model))
      (True, 64)
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(f"{weight.name} {value.shape} {value.dtype}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
