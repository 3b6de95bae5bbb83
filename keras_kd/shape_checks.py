"""Whether a loss can compare features of two shapes, found out before anything is trained."""

from typing import Any

import tensorflow as tf

from keras_kd.errors import ShapeMismatchError


def is_shape(value: Any) -> bool:
    """Whether it is the shape of one tensor: a tuple of sizes, None where one is not known."""
    return isinstance(value, tuple) and all(size is None or isinstance(size, int) for size in value)


def shape_problem(loss: Any, teacher_shapes: Any, student_shapes: Any, adapter: Any = None) -> str | None:
    """What a loss of this package says of features of these shapes, from a trace that computes nothing.

    Args:
      loss: any distillation loss. Only those of this package are traced: what a foreign one does is not known, and
        may be meant to run eagerly.
      teacher_shapes: a shape (a tuple of sizes, None where one is not known), or a tuple of shapes.
      student_shapes: the same of the student.
      adapter: the loss's trainable layer, built, or None.

    Returns:
      The message of the `ShapeMismatchError`, or None: no problem, or shapes that are not known.

    Example:
      >>> from keras_kd.losses import AttentionTransfer
      >>> shape_problem(AttentionTransfer("a", "b"), (None, 8, 8, 4), (None, 4, 4, 2)) is None
      True
      >>> shape_problem(AttentionTransfer("a", "b"), (None, 4), (None, 4))
      'An attention map needs at least 3 axes (the batch first, channels last), got (None, 4).'
    """
    specs = _specs(teacher_shapes), _specs(student_shapes)
    if None in specs or not type(loss).__module__.startswith("keras_kd."):
        return None
    more = {} if adapter is None else {"adapter": adapter}
    # AutoGraph would put an error of its own in the place of the loss's.
    trace = tf.function(lambda teacher, student: loss.compute_loss(teacher, student, **more), autograph=False)
    try:
        trace.get_concrete_function(*specs)
    except ShapeMismatchError as error:
        return str(error)
    except Exception:
        return None  # of a function that the user gave, and that may run eagerly
    return None


def _specs(shapes: Any) -> Any:
    """A `tf.TensorSpec` for a shape, a tuple of them for several; None where something is not known."""
    if is_shape(shapes):
        return tf.TensorSpec(shapes, tf.float32) if any(shapes) else None
    if not isinstance(shapes, tuple):
        return None
    found = tuple(_specs(shape) for shape in shapes)
    return None if None in found else found
