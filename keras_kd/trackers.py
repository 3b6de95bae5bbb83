"""The means of a step's losses, for the log."""

from typing import Any

import keras
from keras import ops


class LossMean(keras.metrics.Mean):
    """`keras.metrics.Mean` of values that are scalars already.

    The same state and the same result. `keras.metrics.Mean` (Keras 3.15) reshapes, broadcasts and reduces even what
    is one number; a Distiller has four and more of them in every step.

    Example:
      >>> mean = LossMean("loss")
      >>> mean.update_state(ops.convert_to_tensor(2.0), 3)
      >>> mean.update_state(ops.convert_to_tensor(4.0), 1)
      >>> float(mean.result())
      2.5
    """

    def update_state(self, values: Any, sample_weight: Any = None) -> None:
        """Add one number, which counts as often as `sample_weight` says.

        Args:
          values: a scalar; anything else goes the way of `keras.metrics.Mean`.
          sample_weight: a scalar, None for 1.
        """
        if getattr(values, "shape", None) != () or getattr(sample_weight, "shape", ()) != ():
            super().update_state(values, sample_weight)
            return
        weight = ops.cast(1 if sample_weight is None else sample_weight, self.dtype)
        self.total.assign_add(ops.cast(values, self.dtype) * weight)
        self.count.assign_add(weight)
