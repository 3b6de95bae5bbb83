"""A Distiller as a configuration, and back."""

from typing import Any

import keras

from keras_kd.losses.base import pack, unpack
from keras_kd.objective import DistillationObjective


def config_of(distiller: Any, objective: DistillationObjective) -> dict[str, Any]:
    """A Distiller's arguments, ready for JSON; the teacher only where it is embedded."""
    serialize = keras.saving.serialize_keras_object
    return {
        "teacher": serialize(distiller.teacher) if distiller.save_teacher == "embed" else None,
        "student": serialize(distiller.student),
        "distillation_losses": [serialize(loss) for loss in objective.losses],
        "distillation_loss_names": list(objective.names),
        "distillation_loss_weights": [pack(weight) for weight in objective.weights],
        "student_loss_weight": pack(distiller.student_loss_weight),
        "teacher_preprocessing": pack(distiller.teacher_preprocessing),
        "save_teacher": distiller.save_teacher,
        "teacher_path": distiller.teacher_path,
        # Adapters have to exist before their weights are loaded, also where the teacher is not at hand.
        "adapter_shapes": {name: pack(shapes) for name, shapes in objective.adapter_shapes.items()},
    }


def arguments_of(config: dict[str, Any], custom_objects: Any = None) -> dict[str, Any]:
    """The arguments that `config_of` described, beside what else the configuration holds."""
    config = dict(config)
    deserialize = keras.saving.deserialize_keras_object
    for key in ("teacher", "student"):
        if config.get(key) is not None:
            config[key] = deserialize(config[key], custom_objects=custom_objects)
    for key in ("distillation_loss_weights", "student_loss_weight", "teacher_preprocessing"):
        config[key] = unpack(config.get(key))
    losses = [deserialize(loss, custom_objects=custom_objects) for loss in config["distillation_losses"]]
    names = config.pop("distillation_loss_names", None)
    config["distillation_losses"] = dict(zip(names, losses)) if names else losses
    if names:
        config["distillation_loss_weights"] = dict(zip(names, config["distillation_loss_weights"]))
    if isinstance(config.get("dtype"), dict):
        config["dtype"] = deserialize(config["dtype"])
    config["_adapter_shapes"] = config.pop("adapter_shapes", None)
    return config
