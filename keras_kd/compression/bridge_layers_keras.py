"""Keras 3's own code inside a tf_keras layer, for what the bridge has no layer of its own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kd.compression.bridge_layer_base import BridgeLayer


class KerasOperation(BridgeLayer):
    """A `keras.ops` operation for which the bridge has no layer of its own, run as Keras 3 runs it.

    Args:
      operation: the operation as `keras.saving.serialize_keras_object` writes it.
      args: its positional arguments; {"tensor": i} stands for the i-th input, the rest is serialized.
      kwargs: its keyword arguments likewise.
    """

    quantization = "island"

    def __init__(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], **more: Any):
        super().__init__(**more)
        self.operation = operation
        self.arguments, self.keywords = list(args), dict(kwargs)
        self._operation = keras.saving.deserialize_keras_object(operation)

    @property
    def computes(self) -> str:
        """The operation's class."""
        return str(self.operation["class_name"])

    def call(self, inputs: Any) -> Any:
        """See the class."""
        tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        args = [_fill_tensors(item, tensors) for item in self.arguments]
        kwargs = {key: _fill_tensors(item, tensors) for key, item in self.keywords.items()}
        return self._operation.call(*args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"operation": self.operation, "args": list(self.arguments), "kwargs": dict(self.keywords)}
        return {**super().get_config(), **mine}


def _is_mark(item: Any) -> bool:
    return isinstance(item, dict) and set(item) == {"tensor"}


def _fill_tensors(item: Any, tensors: Sequence[tf.Tensor]) -> Any:
    if _is_mark(item):
        return tensors[item["tensor"]]
    if isinstance(item, dict) and "class_name" in item:
        return keras.saving.deserialize_keras_object(item)
    if isinstance(item, (list, tuple)):
        return [_fill_tensors(entry, tensors) for entry in item]
    return item


class KerasLayer(BridgeLayer):
    """A Keras 3 layer run inside tf_keras, its weights held as tf_keras variables.

    Args:
      layer: the layer as `keras.saving.serialize_keras_object` writes it.
      input_shapes: shapes (batch size included, None where open) that it was built for.
      input_dtypes: their number types.
      in_a_list: the inputs go to the layer as one list, not as positional arguments.
      options: further keyword arguments of the call; {"tensor": i} stands for the i-th input.
    """

    quantization = "island"

    def __init__(
        self,
        layer: Any,
        input_shapes: Sequence[Any],
        input_dtypes: Sequence[str],
        in_a_list: bool = False,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.layer = layer
        self.input_shapes = [list(shape) for shape in input_shapes]
        self.input_dtypes = list(input_dtypes)
        self.in_a_list, self.options = in_a_list, dict(options or {})
        inner = keras.saving.deserialize_keras_object(layer)
        specs = [keras.KerasTensor(tuple(s), d) for s, d in zip(self.input_shapes, self.input_dtypes)]
        args, keywords = self._arguments(specs)
        inner(*args, **keywords)
        # Behind a function, so that tf_keras does not track the Keras 3 layer and its idle variables.
        self._inner = lambda: inner

    @property
    def computes(self) -> str:
        """The class of the Keras 3 layer."""
        return str(self.layer["class_name"])

    def _arguments(self, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        keywords = {key: _fill_tensors(item, tensors) for key, item in self.options.items()}
        taken = {item["tensor"] for item in self.options.values() if _is_mark(item)}
        args = [tensor for number, tensor in enumerate(tensors) if number not in taken]
        return ([args] if self.in_a_list else args), keywords

    def build(self, input_shape: Any) -> None:
        """Makes one tf_keras variable for each of the layer's."""
        inner = self._inner()
        self.trained = [self._variable(v, True) for v in inner.trainable_variables]
        self.kept = [self._variable(v, False) for v in inner.non_trainable_variables]
        super().build(input_shape)

    def _variable(self, variable: Any, trainable: bool) -> Any:
        made = self.add_weight(
            name=variable.path.replace("/", "_"),
            shape=tuple(variable.shape),
            dtype=str(variable.dtype),
            initializer="zeros",
            trainable=trainable,
        )
        made.assign(keras.ops.convert_to_numpy(variable))
        return made

    def call(self, inputs: Any, training: Any = None) -> Any:
        """See the class."""
        inner = self._inner()
        args, keywords = self._arguments(list(inputs) if isinstance(inputs, (list, tuple)) else [inputs])
        if "training" in inspect.signature(inner.call).parameters:
            keywords["training"] = training
        outputs, kept = inner.stateless_call(
            [tf.convert_to_tensor(v) for v in self.trained],
            [tf.convert_to_tensor(v) for v in self.kept],
            *args,
            **keywords,
        )
        if training:
            for variable, value in zip(self.kept, kept):
                variable.assign(value)
        return outputs

    def get_config(self) -> dict[str, Any]:
        """See tf_keras."""
        mine = {"layer": self.layer, "input_shapes": self.input_shapes, "input_dtypes": self.input_dtypes}
        mine.update(in_a_list=self.in_a_list, options=dict(self.options))
        return {**super().get_config(), **mine}
