"""Other forms of a tensor that neighboring layers hand on: rows for 1-D layers, channels last for channels first.

TFLite works channels last, TF-MOT quantizes 2-D convolutions, and TensorFlow's processor kernels do little else. So
a 1-D convolution is rebuilt over one row, and a `channels_first` layer as its channels-last twin between two
transpositions. The other form of each output is remembered: where the next layer wants it, nothing stands between
them, and BatchNormalization and activations stay right behind their convolution. What is left of a channels-first
image model is one transposition at its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tf_keras

from keras_kd.compression.bridge_errors import NotBridgeable

if TYPE_CHECKING:
    from keras_kd.compression.bridge_build import Call

_L = tf_keras.layers
_LAYERS = (keras.layers.Layer, tf_keras.layers.Layer)
# What treats every number alike, whatever the shape: layers and `keras.ops` of Keras 3, and layers of tf_keras.
_ELEMENTWISE = frozenset(
    {
        "Activation",
        "Add",
        "Average",
        "Dropout",
        "ELU",
        "LeakyReLU",
        "Maximum",
        "Minimum",
        "Multiply",
        "ReLU",
        "Subtract",
        *("Elu", "Gelu", "HardSigmoid", "HardSilu", "Relu", "Relu6", "Sigmoid", "Silu", "Tanh"),
    }
)
# Their own code moves the axes that they need.
_ANY_FORMAT = ("CenterCrop", "TimeDistributed")


class Forms:
    """Remembers tensors in another form, by their identity (and keeps them alive for that)."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def of(self, kind: str, tensor: Any) -> Any:
        """The form of that kind, "rows" or "last", or None."""
        return self._known.get((kind, id(tensor)), (None, None))[1]

    def note(self, kind: str, tensor: Any, form: Any) -> None:
        """Remembers a form of a tensor."""
        self._known[kind, id(tensor)] = (tensor, form)


def is_tensor(value: Any) -> bool:
    """Whether an argument is a symbolic tf_keras tensor."""
    try:
        return bool(tf_keras.backend.is_keras_tensor(value))
    except ValueError:  # what tf_keras answers for anything that is not a tensor at all
        return False


def in_other_form(call: Call) -> tuple[Call, Callable[[Any], Any]] | None:
    """The same call on another form of its inputs, and the way back for its output; None where there is none."""
    operation = call.operation
    if not type(operation).__module__.startswith(("keras.", "tf_keras.")):
        return None  # of a user's class nothing is known
    if getattr(operation, "data_format", None) == "channels_first" and isinstance(operation, _LAYERS):
        return _channels_last_twin(call)
    rank = len(_first_tensor(call.args).shape) if _first_tensor(call.args) is not None else 0
    last = _on_known_form(call, "last")
    if last is not None and _axis(operation, rank) == 1:
        return _with_config(last, axis=-1), lambda outputs: _from_last(call, outputs)
    if not _is_elementwise(operation):
        return None
    if last is not None:
        return last, lambda outputs: _from_last(call, outputs)
    rows = _on_known_form(call, "rows")
    return None if rows is None else (rows, lambda outputs: call.from_rows(outputs, rank))


def _is_elementwise(operation: Any) -> bool:
    kind = type(operation).__name__
    if kind == "Activation":
        return getattr(operation.activation, "__name__", "") not in ("softmax", "log_softmax")
    return kind in _ELEMENTWISE and getattr(operation, "noise_shape", None) is None


def _axis(operation: Any, rank: int) -> int | None:
    """The axis of a BatchNormalization or Concatenate, counted from 0."""
    if type(operation).__name__ not in ("BatchNormalization", "Concatenate"):
        return None
    axis = operation.axis[0] if isinstance(operation.axis, (list, tuple)) else operation.axis
    return int(axis) % rank if axis is not None else None


def _channels_last_twin(call: Call) -> tuple[Call, Callable[[Any], Any]] | None:
    kind, tensor = type(call.operation).__name__, call.input
    rank = len(tensor.shape)
    if rank < 3 or kind in _ANY_FORMAT:
        return None
    if kind.startswith("ConvLSTM"):
        raise NotBridgeable("data_format='channels_first'; channels_last can be rebuilt")
    last = call.builder.forms.of("last", tensor)
    if last is None:
        last = call.run(_L.Permute((*range(2, rank), 1), name=call.name("channels_last")), tensor)
    twin = _with_config(dataclasses.replace(call, args=(last, *call.args[1:])), data_format="channels_last")
    keeps_rank = kind != "Flatten"
    return (
        twin,
        lambda outputs: _from_last(call, outputs) if keeps_rank and len(outputs.shape) == rank else outputs,
    )


def _with_config(call: Call, **changes: Any) -> Call:
    """The call of a layer with other settings that stands for the same weights."""
    layer = call.operation
    try:
        twin = type(layer).from_config({**layer.get_config(), **changes})
    except (TypeError, ValueError) as error:
        raise NotBridgeable(f"it cannot be made again with {changes}: {error}") from error
    return dataclasses.replace(call, operation=twin, owner=call.owner or layer)


def _from_last(call: Call, last: Any) -> Any:
    """Back to channels first; the next layer that wants channels last gets them without a transposition."""
    rank = len(last.shape)
    tensor = call.run(_L.Permute((rank - 1, *range(1, rank - 1)), name=call.name("channels_first")), last)
    call.builder.forms.note("last", tensor, last)
    return tensor


def _first_tensor(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return next((found for entry in item if (found := _first_tensor(entry)) is not None), None)
    return item if is_tensor(item) else None


class _NoSuchForm(Exception):
    pass


def _on_known_form(call: Call, kind: str) -> Call | None:
    """The call with every tensor in the form that is known of it; None where one is not, or ranks differ."""
    ranks = set()

    def move(item: Any) -> Any:
        if isinstance(item, (list, tuple)):
            return type(item)(move(entry) for entry in item)
        if not is_tensor(item):
            if getattr(item, "shape", ()):  # an array broadcasts against one form only
                raise _NoSuchForm
            return item
        form = call.builder.forms.of(kind, item)
        if form is None:
            raise _NoSuchForm
        ranks.add(len(item.shape))
        return form

    try:
        args = tuple(move(item) for item in call.args)
        kwargs = {key: move(item) for key, item in call.kwargs.items()}
    except _NoSuchForm:
        return None
    return dataclasses.replace(call, args=args, kwargs=kwargs) if len(ranks) == 1 else None
