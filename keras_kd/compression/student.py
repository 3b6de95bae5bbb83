"""The student as tf_keras sees it: a private copy, and where its layers are once they are wrapped."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tf_keras

from keras_kd.compression import tfmot
from keras_kd.errors import nearest

_WRAPPER_PREFIXES = ("", "quant_", "prune_low_magnitude_", "cluster_")


@dataclass(frozen=True)
class Student:
    """A student in both forms.

    Args:
      original: the model that the user handed in.
      model: a tf_keras copy of it that may be changed.
      layer_names: names of the original's layers -> names of the copy's layers that put out the same.
    """

    original: Any
    model: Any
    layer_names: Mapping[str, str]

    def layer_name(self, tap: str) -> str:
        """The copy's layer for a layer of the original.

        Raises:
          ValueError: there is none; the message suggests the nearest names.
        """
        if tap not in self.layer_names:
            raise ValueError(f"The student has no layer {tap!r}.{nearest(tap, self.layer_names)}")
        return self.layer_names[tap]


def private_copy(student: Any, *, seed: int) -> Student:
    """A tf_keras model with the student's weights that can be changed without the student noticing.

    Layers that draw random numbers (dropout, noise) get a seed of their own from `seed` and their name.

    Args:
      student: a built Keras 3 or tf_keras model, Functional or Sequential.
      seed: any integer.

    Raises:
      ValueError: another kind of model, or one that is not built.
    """
    if not isinstance(student, keras.Model | tf_keras.Model):
        raise ValueError(f"student must be a Keras 3 or tf_keras model, got {type(student).__name__}")
    if not student.built:
        raise ValueError(f"student {student.name!r} is not built; call it once or give it an Input")
    from keras_kd.compression.bridge import bridge_report, to_tf_keras
    from keras_kd.compression.bridge_layers import custom_objects

    bridged = to_tf_keras(student)
    report = bridge_report(bridged)
    layer_names = {path: report.output_layer(path) for path in report.layer_names}

    def seeded(layer: Any) -> Any:
        config = layer.get_config()
        if "seed" in config and config["seed"] is None:
            config["seed"] = zlib.crc32(f"{seed}/{layer.name}".encode()) & 0x7FFFFFFF
        return type(layer).from_config(config)

    with tf_keras.utils.custom_object_scope(custom_objects()):
        copy = tf_keras.models.clone_model(bridged, clone_function=seeded)
        copy.set_weights(bridged.get_weights())
        return Student(student, tfmot.with_separable_split(copy), layer_names)


def feature_tensors(model: Any, names: Iterable[str]) -> dict[str, Any]:
    """Symbolic outputs of named layers in a model whose layers may be wrapped.

    Raises:
      ValueError: a layer is not there; the message suggests the nearest names.
    """
    by_name = {layer.name: layer for layer in model.layers}
    found = {}
    for name in names:
        layer = next((by_name[p + name] for p in _WRAPPER_PREFIXES if p + name in by_name), None)
        if layer is None:
            raise ValueError(f"The student has no layer {name!r}.{nearest(name, by_name)}")
        # The last call is the one in this model: layers that were not wrapped keep the calls of earlier
        # models.
        found[name] = layer.get_output_at(len(layer.inbound_nodes) - 1)
    return found
