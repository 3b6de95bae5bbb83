"""Knowledge distillation of Keras models, and the road from the student to a measured .tflite file."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from tflite_tools.version import __version__


def _require_tensorflow(backend: str | None, origin: str) -> None:
    if backend not in (None, "", "tensorflow"):
        raise ImportError(
            f"keras_kd needs Keras on TensorFlow, and {origin} asks for {backend!r}. Set KERAS_BACKEND=tensorflow "
            "before Keras is first imported. A teacher trained on another backend can be saved as .keras and be "
            "loaded here."
        )


# Before Keras is imported: a backend that is not installed would end in an error about itself.
_require_tensorflow(os.environ.get("KERAS_BACKEND"), "the environment variable KERAS_BACKEND")

import keras  # noqa: E402

_require_tensorflow(keras.backend.backend(), "the configuration of Keras (keras.json)")

from keras_kd import losses, schedules, selection  # noqa: E402

if TYPE_CHECKING:
    from keras_kd.chain import ChainStage, distill_chain
    from keras_kd.compression.bridge import bridge_report, copy_weights_back, to_tf_keras
    from keras_kd.compression.bridge_errors import BridgeParityError, UnsupportedLayerError
    from keras_kd.compression.finetune import CompressedModel, compress
    from keras_kd.compression.recipe import Clustering, CompressionRecipe, Pruning
    from keras_kd.compression.sensitivity import sensitivity
    from keras_kd.distiller import Distiller
    from keras_kd.pipeline import distill_to_tflite
    from keras_kd.selection.carving import carve_student
    from keras_kd.selection.ranking import rank_layers
    from keras_kd.teachers.cache import TeacherCache
    from keras_kd.teachers.ensemble import TeacherEnsemble
    from keras_kd.teachers.moving_average import MovingAverageTeacher

# Where each public name lives. TF-MOT and tf_keras are loaded by the names of `compression` only, and
# only when such a name is first called, so that `tf.keras` stays Keras 3 in everybody else's process.
_HOMES = {
    "Distiller": "distiller",
    "TeacherCache": "teachers.cache",
    "TeacherEnsemble": "teachers.ensemble",
    "MovingAverageTeacher": "teachers.moving_average",
    "distill_chain": "chain",
    "ChainStage": "chain",
    "Pruning": "compression.recipe",
    "Clustering": "compression.recipe",
    "CompressionRecipe": "compression.recipe",
    "compress": "compression.finetune",
    "CompressedModel": "compression.finetune",
    "to_tf_keras": "compression.bridge",
    "copy_weights_back": "compression.bridge",
    "sensitivity": "compression.sensitivity",
    "bridge_report": "compression.bridge",
    "UnsupportedLayerError": "compression.bridge_errors",
    "BridgeParityError": "compression.bridge_errors",
    "distill_to_tflite": "pipeline",
    "carve_student": "selection.carving",
    "rank_layers": "selection.ranking",
}

__all__ = [
    "BridgeParityError",
    "ChainStage",
    "Clustering",
    "CompressedModel",
    "CompressionRecipe",
    "Distiller",
    "MovingAverageTeacher",
    "Pruning",
    "TeacherCache",
    "TeacherEnsemble",
    "UnsupportedLayerError",
    "__version__",
    "bridge_report",
    "callbacks",
    "carve_student",
    "compress",
    "copy_weights_back",
    "distill_chain",
    "distill_to_tflite",
    "losses",
    "rank_layers",
    "schedules",
    "selection",
    "sensitivity",
    "to_tf_keras",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
