"""A traced model: named, fixed-size signatures, ready to be written as a SavedModel."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tflite_tools.preprocessing import Preprocessing

DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of a signature: shape has None where a size is open, the batch included."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A model ready to be written as a SavedModel.

    Attributes:
      kind: "keras", "tf_keras", "saved_model" or "function".
      inputs: per signature, its inputs in the model's own order.
      functions: per signature, the traced function.
      layer_names: the model's layers, to recognise them in the converter's messages.
      variables: what the functions read; saved along.
      weights: the model's weights in its own order; hashed into the provenance.
      trained_ranges: whether the model carries quantization ranges from quantization-aware training.
      models: per signature, the Keras model behind it; empty for other kinds.
      notes: what was done to the model on the way.
      keep: objects that own variables and tables; they must stay alive and be saved along.
    """

    kind: str
    name: str
    inputs: dict[str, tuple[InputSpec, ...]]
    functions: dict[str, Any]
    layer_names: tuple[str, ...]
    variables: tuple[Any, ...]
    weights: tuple[Any, ...]
    trained_ranges: bool
    models: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    keep: tuple[Any, ...] = ()

    def write(self, folder: str) -> None:
        """Writes the SavedModel."""
        import tensorflow as tf

        module = tf.Module()
        module.held = list(self.variables)
        module.owners = list(self.keep)
        tf.saved_model.save(module, folder, signatures=self.functions)

    def weights_sha256(self) -> str:
        """SHA-256 over dtype, shape and bytes of every weight, in the order of `model.weights`."""
        digest = hashlib.sha256()
        for variable in self.weights:
            try:
                value = np.ascontiguousarray(variable.numpy())
            except (AttributeError, TypeError, NotImplementedError):
                continue  # a table or a string variable; it has no weights
            if value.dtype == object:
                continue
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()


def with_batch(shape: Sequence[int | None], batch_size: int | None) -> list[int | None]:
    """The shape with an open leading size fixed."""
    sizes = list(shape)
    if sizes and sizes[0] is None:
        sizes[0] = batch_size
    return sizes


def trace(
    call: Callable[..., Any], specs: Sequence[InputSpec], preprocess: "Preprocessing | None"
) -> tuple[Any, tuple[InputSpec, ...]]:
    """A concrete function over keyword inputs, and the inputs as the app will feed them."""
    import tensorflow as tf

    fed = tuple(specs) if preprocess is None else tuple(preprocess.feeds(spec) for spec in specs)

    def serve(*tensors: Any) -> Any:
        ready = tensors if preprocess is None else preprocess(specs, tensors)
        return call(*ready)

    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in fed]
    # Keras and the preprocessing are graph code already; AutoGraph would only warn about what it cannot read.
    return tf.function(serve, input_signature=signature, autograph=False).get_concrete_function(), fed
