"""Calls of a model's operations one by one."""

from typing import Any

import keras


def call_operation(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation returns; `training` goes to layers only, as Keras itself does it."""
    if not isinstance(operation, keras.layers.Layer):
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    return operation(*args, **kwargs)
