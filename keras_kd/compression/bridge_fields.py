"""Carries fields of a Keras 3 layer's configuration over to its tf_keras counterpart.

A Keras 3 configuration as a whole is refused by tf_keras 2.21 (dtype policies, `input_axes` of initializers,
`quantization_config`), so each rule names the fields that it takes. Initializers are never among them: the
weights are copied.
"""

from __future__ import annotations

from typing import Any

import keras
import tf_keras

from keras_kd.compression.bridge_errors import NotBridgeable


def fields(layer: Any, *names: str) -> dict[str, Any]:
    """The named entries of the layer's configuration."""
    config = layer.get_config()
    return {name: config[name] for name in names if name in config}


def common(layer: Any, name: str) -> dict[str, Any]:
    """What every layer takes over: whether it is trained, under the name it gets."""
    return {"name": name, "trainable": layer.trainable}


def penalties(layer: Any, *attributes: str) -> dict[str, Any]:
    """Regularizers and constraints, rebuilt for tf_keras; they matter in fine-tuning.

    Raises:
      NotBridgeable: one of them is not Keras's own.
    """
    rebuilt = {}
    for attribute in attributes:
        value = getattr(layer, attribute, None)
        if value is not None:
            if type(value).__module__.startswith("tf_keras."):
                rebuilt[attribute] = value
                continue
            home = tf_keras.constraints if attribute.endswith("_constraint") else tf_keras.regularizers
            rebuilt[attribute] = _rebuild(value, attribute, home)
    return rebuilt


def _rebuild(value: Any, attribute: str, home: Any) -> Any:
    name = type(value).__name__
    keras_home = keras.constraints if attribute.endswith("_constraint") else keras.regularizers
    if getattr(keras_home, name, None) is not type(value) or not hasattr(home, name):
        raise NotBridgeable(f"its {attribute} {name} is not one of Keras's own")
    return getattr(home, name)(**value.get_config())
