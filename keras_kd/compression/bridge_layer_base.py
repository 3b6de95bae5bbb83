"""What the bridge's own tf_keras layers have in common."""

from __future__ import annotations

from typing import ClassVar

import keras  # noqa: F401  (Keras 3 first: `tf.keras` resolves to it, not to tf_keras)
import tf_keras


class BridgeLayer(tf_keras.layers.Layer):
    """Base of our layers. `quantization` is the answer of `quantization_of`."""

    quantization: ClassVar[str] = "output"

    @property
    def computes(self) -> str:
        """What the layer computes, in a word for the report."""
        return type(self).__name__
