"""Number types: compression starts from float32, whatever dtype policy a student was trained under."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tf_keras

from keras_kd.compression.bridge_graph import is_graph_model

# How Keras 3 and tf_keras write a policy down.
_POLICIES = ("DTypePolicy", "DTypePolicyMap", "Policy")


def in_float32(config: Any) -> Any:
    """A layer's or model's configuration with float32 in place of every dtype policy.

    Example:
      >>> import keras
      >>> dense = keras.layers.Dense(2, dtype="mixed_float16")
      >>> in_float32(dense.get_config())["dtype"]
      'float32'
    """
    if isinstance(config, dict):
        if config.get("class_name") in _POLICIES:
            return "float32"
        return {key: in_float32(item) for key, item in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(in_float32(item) for item in config)
    return config


def computes_in_float32(model: Any) -> bool:
    """Whether every layer, those of nested models included, computes in float32."""
    for layer in model.layers:
        if is_graph_model(layer):
            if not computes_in_float32(layer):
                return False
        elif getattr(layer, "compute_dtype", "float32") != "float32":
            return False
    return True


def float32_twin(model: Any) -> Any:
    """The model itself where it computes in float32, otherwise a copy that does, with the same weights.

    Args:
      model: Functional or Sequential model of Keras 3 or tf_keras.

    Raises:
      ValueError: a layer cannot be made again from its configuration.
    """
    if computes_in_float32(model):
        return model
    library = keras if isinstance(model, keras.Model) else tf_keras
    classes = {type(layer).__name__: type(layer) for layer in _every_layer(model)}
    kind = library.Sequential if isinstance(model, library.Sequential) else library.Model
    source = model
    try:
        if "layers" not in model.get_config():  # a subclass of Functional with a configuration of its own
            source = library.Model(model.inputs, model.outputs)
        with library.utils.custom_object_scope(classes):
            twin = kind.from_config(in_float32(source.get_config()))
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model {model.name!r} computes in a lower precision, and its float32 copy for the parity check cannot "
            f"be made ({reason}); pass check=False to go without the check"
        ) from error
    twin.set_weights([np.asarray(weight, "float32") for weight in source.get_weights()])
    return twin


def _every_layer(model: Any) -> list[Any]:
    found = []
    for layer in model.layers:
        found += [layer, *(_every_layer(layer) if is_graph_model(layer) else [])]
    return found
