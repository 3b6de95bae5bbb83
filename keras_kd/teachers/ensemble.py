"""Several teachers as one: the weighted mean of what they say."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_kd.errors import raise_all
from keras_kd.losses.tensors import TINY, sigmoid_logits, softmax_logits
from keras_kd.output_kinds import probed_kind, seen_kinds

Tensor = Any


class MemberOutputs(NamedTuple):
    """What each member of an ensemble said of one batch, and how much it counts (the weights sum to 1)."""

    outputs: tuple[Any, ...]
    weights: tuple[float, ...]


@keras.saving.register_keras_serializable(package="keras_kd")
class TeacherEnsemble(keras.Model):
    """A teacher that is the weighted mean of several.

    Losses on classes get the mean of the members' probabilities at the loss's own temperature, losses on
    values the mean of the values. The members need the same outputs; their inputs and inner layers may differ.

    Args:
      models: the teachers, `keras.Model`.
      weights: a non-negative number for each, at least one of them positive; None is equal weights. They are
        divided by their sum.
      preprocessing: None, or a callable or None for each member, from the student's input batch to the member's
        (another size, another scaling).
      name: of the model.

    Raises:
      ValueError: no model, something that is no model, or lists of different lengths.

    Example:
      >>> import numpy as np
      >>> members = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
      >>> ensemble = TeacherEnsemble(members, weights=[3, 1])
      >>> ensemble.weights_of_members, tuple(ensemble(np.ones((2, 4))).shape)
      ((0.75, 0.25), (2, 3))

    Source: Hinton et al. 2015, arXiv:1503.02531, section 1 (the arithmetic mean of the predictions).
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        weights: Sequence[float] | None = None,
        *,
        preprocessing: Sequence[Callable[[Any], Any] | None] | None = None,
        name: str = "teacher_ensemble",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        models = list(models)
        given = [1.0] * len(models) if weights is None else list(weights)
        functions = [None] * len(models) if preprocessing is None else list(preprocessing)
        problems = [] if models else ["there is no model."]
        problems += [
            f"models[{index}] is {model!r}, not a keras.Model."
            for index, model in enumerate(models)
            if not isinstance(model, keras.Model)
        ]
        for argument, values in (("weights", given), ("preprocessing", functions)):
            if len(values) != len(models):
                problems.append(f"{argument} has {len(values)} entries for {len(models)} models.")
        bad = [w for w in given if not isinstance(w, (int, float)) or not math.isfinite(w) or w < 0]
        if bad or (given and not bad and not sum(given) > 0):
            problems.append(f"weights must be non-negative numbers with a positive sum, got {given!r}.")
        raise_all(problems, subject="These are no teachers for an ensemble")
        self.models = models
        self.weights_of_members = tuple(float(weight) / sum(given) for weight in given)
        self.preprocessing = tuple(functions)
        self._kinds_of_members: list[Any] = [(seen_kinds(model) or [None])[0] for model in models]

    def member_outputs(self, x: Any) -> MemberOutputs:
        """The outputs of every member, in inference mode, for a batch of the student's inputs."""
        outputs = tuple(
            model(function(x) if function is not None else x, training=False)
            for model, function in zip(self.models, self.preprocessing)
        )
        return MemberOutputs(outputs, self.weights_of_members)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The logarithm of the mean probabilities at temperature 1, for members with one output of classes.

        A member whose last activation cannot be seen is taken to return logits.
        """
        members = self.member_outputs(inputs)
        probabilities = []
        for index, outputs in enumerate(members.outputs):
            if len(keras.tree.flatten(outputs)) != 1:
                raise ValueError(
                    "An ensemble of models with several outputs works in a Distiller; it has no logits."
                )
            output = ops.cast(keras.tree.flatten(outputs)[0], "float32")
            kind = self._kinds_of_members[index]
            probabilities.append(output if kind == "softmax" else ops.softmax(output, axis=-1))
        mean = sum(weight * p for weight, p in zip(members.weights, probabilities))
        return ops.log(ops.maximum(mean, 1e-30))

    def look_at(self, x: Any) -> None:
        """Find out from one batch which members return probabilities, where their layers do not show it."""
        for index, outputs in enumerate(self.member_outputs(x).outputs):
            if self._kinds_of_members[index] is None and len(keras.tree.flatten(outputs)) == 1:
                self._kinds_of_members[index] = probed_kind(keras.tree.flatten(outputs)[0])

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "models": [serialize(model) for model in self.models],
            "weights": list(self.weights_of_members),
            "preprocessing": [None if f is None else serialize(f) for f in self.preprocessing],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "TeacherEnsemble":
        """The ensemble that `get_config` described."""
        deserialize = keras.saving.deserialize_keras_object
        models = [deserialize(model, custom_objects=custom_objects) for model in config["models"]]
        preprocessing = [
            None if f is None else deserialize(f, custom_objects=custom_objects)
            for f in config["preprocessing"]
        ]
        return cls(models, config["weights"], preprocessing=preprocessing, name=config["name"])


def mean_of_members(
    outputs: Sequence[Tensor], flags: Sequence[bool], weights: Sequence[float], kind: str, temperature: Any
) -> Tensor:
    """One tensor in the place of the members' tensors.

    Args:
      outputs: of each member, the same shape.
      flags: for each member whether its output is logits (and not probabilities).
      weights: of each member, summing to 1.
      kind: "logits" of classes, "binary" logits of independent labels, or "values".
      temperature: T > 0, a number or a scalar tensor.

    Returns:
      For classes and labels T·log of the mean probabilities at T (for labels T times their log-odds), whose
      probabilities at T are that mean; for values their mean.

    Example:
      >>> import numpy as np
      >>> members = [np.array([[0.9, 0.1]]), np.array([[0.5, 0.5]])]
      >>> mean = mean_of_members(members, [False, False], [0.5, 0.5], "logits", 1.0)
      >>> ops.convert_to_numpy(ops.softmax(mean)).round(4).tolist()
      [[0.7, 0.3]]
    """
    if kind == "values":
        return sum(weight * ops.cast(output, "float32") for output, weight in zip(outputs, weights))
    if kind == "binary":
        logits = [sigmoid_logits(output, flag) for output, flag in zip(outputs, flags)]
        mean = sum(weight * ops.sigmoid(z / temperature) for z, weight in zip(logits, weights))
        return temperature * sigmoid_logits(mean, from_logits=False)
    logits = [softmax_logits(output, flag) for output, flag in zip(outputs, flags)]
    mean = sum(weight * ops.softmax(z / temperature, axis=-1) for z, weight in zip(logits, weights))
    return temperature * ops.log(ops.maximum(mean, TINY))
