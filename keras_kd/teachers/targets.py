"""How a teacher's targets travel with the data, for teachers that ran beforehand.

A data set made from a teacher cache yields `(x, y)` or `(x, y, sample_weight)` where `x` is a dict:

    {"keras_kd/inputs": <the student's inputs, any nesting>,
     "keras_kd/teacher": {"outputs": <the teacher's outputs, in the teacher's nesting, dense>,
                          "features": {<layer name>: <feature>, ...}}}     # left out where nothing is tapped

The targets go with the inputs and not with the labels, so that `class_weight`, metrics and losses see the
labels they always saw. A batch whose `x` is not such a dict is plain data: validation data, for example.

What a Distiller asks of the cache itself (see `PrecomputedTeacher`) is what it cannot read from a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

INPUTS_KEY = "keras_kd/inputs"
TEACHER_KEY = "keras_kd/teacher"

Shape = tuple[int | None, ...]


@runtime_checkable
class PrecomputedTeacher(Protocol):
    """A teacher whose targets come with the data; `keras_kd.TeacherCache` is one.

    Attributes:
      layer_names: the layers whose features the data set carries.
      feature_shapes: the shape of each of them with the batch as None: {layer name: (None, 8, 8, 64)}.
      output_shapes: of each output, in flattened order, with the batch as None.
      output_kinds: of each output "logits", "softmax" or "sigmoid".
      outputs_are_logits: True or False; None where the outputs differ in this.
      member_weights: of an ensemble, whose outputs are the tuple of its members' outputs; otherwise None.
    """

    layer_names: tuple[str, ...]
    feature_shapes: Mapping[str, Shape]
    output_shapes: Sequence[Shape]
    output_kinds: Sequence[str]
    outputs_are_logits: bool | None
    member_weights: tuple[float, ...] | None

    def dataset(self, x: Any, y: Any = None, **kwargs: Any) -> Any:
        """A `tf.data.Dataset` in the form that this module describes."""


def pack(inputs: Any, targets: Mapping[str, Any]) -> dict[str, Any]:
    """`x` of a batch that carries its teacher's targets.

    Args:
      inputs: the student's inputs.
      targets: {"outputs": ..., "features": {...}}; "features" may be left out.

    Raises:
      ValueError: `targets` has no "outputs", or a key that means nothing here.

    Example:
      >>> sorted(pack("image", {"outputs": "logits"}))
      ['keras_kd/inputs', 'keras_kd/teacher']
    """
    if "outputs" not in targets or not set(targets) <= {"outputs", "features"}:
        raise ValueError(
            f"A teacher's targets are a dict with 'outputs' and perhaps 'features', got the keys {sorted(targets)}."
        )
    return {INPUTS_KEY: inputs, TEACHER_KEY: dict(targets)}


def is_packed(x: Any) -> bool:
    """Whether `x` carries its teacher's targets.

    Example:
      >>> is_packed(pack("image", {"outputs": "logits"})), is_packed({"image": 1})
      (True, False)
    """
    return isinstance(x, Mapping) and set(x) == {INPUTS_KEY, TEACHER_KEY}


def unpack(x: Any) -> tuple[Any, dict[str, Any] | None]:
    """The inputs, and the teacher's targets or None.

    Returns:
      (inputs, {"outputs": ..., "features": {...}}) with "features" always there, or (x, None) for plain data.

    Example:
      >>> unpack(pack("image", {"outputs": "logits"}))
      ('image', {'outputs': 'logits', 'features': {}})
      >>> unpack("image")
      ('image', None)
    """
    if not is_packed(x):
        return x, None
    targets = x[TEACHER_KEY]
    return x[INPUTS_KEY], {"outputs": targets["outputs"], "features": dict(targets.get("features", {}))}
