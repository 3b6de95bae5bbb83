"""The rule of last resort: a Keras 3 layer goes on running as Keras 3, inside a tf_keras layer."""

from __future__ import annotations

from typing import Any

import keras
import tf_keras

from keras_kd.compression import bridge_layers as ours
from keras_kd.compression.bridge_build import Call
from keras_kd.compression.bridge_errors import NotBridgeable
from keras_kd.compression.bridge_precision import in_float32


def keep_in_keras(call: Call) -> Any:
    """Runs the layer's own code; its weights become tf_keras variables, and it is float in the file.

    Raises:
      NotBridgeable: it takes something that is not a tensor, or cannot be rebuilt from its configuration.
    """
    layer = call.operation
    given = [item for item in call.args if item is not None]
    options = {key: item for key, item in call.kwargs.items() if item is not None and key != "training"}
    tensors = [given[0], *given[1:]] if given else []
    for key, item in list(options.items()):
        if tf_keras.backend.is_keras_tensor(item) if hasattr(item, "dtype") else False:
            tensors.append(item)
            options[key] = {"tensor": len(tensors) - 1}
    flat = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    if not flat or not all(hasattr(tensor, "shape") for tensor in flat):
        raise NotBridgeable("it is called with arguments that are no tensors")
    in_a_list = len(tensors) == 1 and isinstance(tensors[0], (list, tuple))

    def make() -> Any:
        return ours.KerasLayer(
            in_float32(keras.saving.serialize_keras_object(layer)),
            [tuple(tensor.shape) for tensor in flat],
            [tensor.dtype.name for tensor in flat],
            in_a_list=in_a_list,
            options=options,
            name=call.name(),
        )

    made = call.builder.remembered(call, make)
    outputs = call.run(made, flat if len(flat) > 1 or in_a_list else flat[0])
    for sources, targets in (
        (layer.trainable_variables, made.trained),
        (layer.non_trainable_variables, made.kept),
    ):
        for source, target in zip(sources, targets, strict=True):
            call.link(source, target)
    return outputs
