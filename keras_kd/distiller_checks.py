"""What can be said about a Distiller's arguments before anything is trained."""

import warnings
from typing import Any

import keras

from keras_kd.output_kinds import OutputKind
from keras_kd.schedules import Schedule, is_number_or_schedule
from keras_kd.taps import has_graph
from keras_kd.teachers.runner import network_of

SAVE_TEACHER = ("embed", "reference", "none")

_FROM_LOGITS_LOSSES = {
    keras.losses.sparse_categorical_crossentropy: "softmax",
    keras.losses.categorical_crossentropy: "softmax",
    keras.losses.binary_crossentropy: "sigmoid",
}


def input_problems(teacher: Any, student: Any) -> list[str]:
    """What does not fit between the inputs of two models, as far as both are known."""
    if not has_graph(teacher) or not has_graph(student):
        return []
    hint = "Give teacher_preprocessing=, a callable from the student's input batch to the teacher's."
    teacher_shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(teacher.inputs)]
    student_shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(student.inputs)]
    if len(teacher_shapes) != len(student_shapes):
        return [f"the teacher has {len(teacher_shapes)} inputs and the student {len(student_shapes)}. {hint}"]
    return [
        f"the teacher's input has shape {a} and the student's {b}. {hint}"
        for a, b in zip(teacher_shapes, student_shapes)
        if len(a) != len(b) or any(x is not None and y is not None and x != y for x, y in zip(a[1:], b[1:]))
    ]


def dtype_policy_of(student: keras.Model) -> Any:
    """The student's dtype policy: mixed_float16 if any of its layers has it, so that the loss is scaled."""
    policy = student.dtype_policy
    if "float16" in policy.name and "bfloat16" not in policy.name:
        return policy
    for layer in _all_layers(student):
        if getattr(layer.dtype_policy, "name", "") == "mixed_float16":
            return layer.dtype_policy
    return policy


def _all_layers(model: Any) -> list[Any]:
    found = []
    for layer in getattr(model, "layers", []):
        found.append(layer)
        found.extend(_all_layers(layer))
    return found


def warn_about_label_loss(loss: Any, kinds: list[OutputKind | None], name: str) -> None:
    """Warn where the label loss takes logits for probabilities, and where probabilities cost precision."""
    if len(kinds) != 1 or isinstance(loss, (list, tuple, dict)) or loss is None:
        return
    kind = kinds[0]
    try:
        resolved = keras.losses.get(loss) if isinstance(loss, str) else loss
    except ValueError:
        return  # Keras's own compile says what is wrong with it
    if isinstance(resolved, keras.losses.Loss):
        from_logits = resolved.get_config().get("from_logits")
    else:
        from_logits = False if resolved in _FROM_LOGITS_LOSSES else None
    if from_logits is False and kind == "logits":
        warnings.warn(
            f"The student {name!r} ends in logits, and the label loss takes them for probabilities "
            "(from_logits=False): it will not train well. Use for example "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True).",
            stacklevel=3,
        )
    elif from_logits is True and kind in ("softmax", "sigmoid"):
        warnings.warn(
            f"The student {name!r} ends in {kind} probabilities, and the label loss takes them for logits "
            "(from_logits=True). Remove the activation, or set from_logits=False.",
            stacklevel=3,
        )


def warn_about_softmax_student(kinds: list[OutputKind | None], name: str) -> None:
    """Warn that a softmax inside the student costs the distillation loss precision."""
    if "softmax" in kinds:
        warnings.warn(
            f"The student {name!r} ends in a softmax. Distillation takes the logarithm of its probabilities for "
            "logits, which loses those that round to zero. A student that ends in logits learns more exactly; its "
            "softmax can be added after training.",
            stacklevel=3,
        )


def warn_about_xla() -> None:
    """Warn that XLA on a CPU costs some networks many times their step."""
    warnings.warn(
        "jit_compile=True on a machine without a GPU: XLA makes depthwise convolutions several times slower there "
        "(MobileNetV2: seven times). jit_compile='auto' leaves it off.",
        stacklevel=3,
    )


def check_student_loss_weight(value: Any) -> None:
    """Raise `ValueError` unless `value` is a number in [0, 1] or a schedule."""
    if not is_number_or_schedule(value):
        raise ValueError(
            f"student_loss_weight must be a number or a keras_kd.schedules.Schedule, got {type(value).__name__}."
        )
    if not isinstance(value, Schedule) and not 0.0 <= value <= 1.0:
        raise ValueError(f"student_loss_weight must be between 0.0 and 1.0, got {value!r}.")


def argument_problems(teacher: Any, student: Any, preprocessing: Any, save_teacher: str) -> list[str]:
    """What is wrong with a Distiller's arguments, as far as one can see without running anything."""
    problems = []
    if save_teacher not in SAVE_TEACHER:
        problems.append(
            f"save_teacher must be one of {', '.join(map(repr, SAVE_TEACHER))}, got {save_teacher!r}."
        )
    if preprocessing is not None and not callable(preprocessing):
        problems.append(f"teacher_preprocessing must be a callable or None, got {preprocessing!r}.")
    if teacher is None and save_teacher == "embed":
        problems.append("teacher is None; expected a keras.Model.")
    if preprocessing is None:
        problems.extend(input_problems(network_of(teacher), student))
    return problems
