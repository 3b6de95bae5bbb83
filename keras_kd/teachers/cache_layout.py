"""One record: what is stored for one example in one view, at a fixed size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_kd.teachers.cache_errors import CacheError
from keras_kd.teachers.cache_topk import TopK, dense_logits, index_dtype, take_top_k
from keras_kd.teachers.nests import assemble, leaves, skeleton

DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Layout:
    """How a teacher's outputs and features lie in a record.

    Attributes:
      outputs: the nesting of the outputs, see `nests.skeleton`.
      output_shapes: of each output without the batch.
      top_k: for each output how many logits are kept; None for all.
      feature_shapes: {layer name: shape without the batch}.
      dtype: of the stored values.
    """

    outputs: Any
    output_shapes: tuple[tuple[int, ...], ...]
    top_k: tuple[int | None, ...]
    feature_shapes: Mapping[str, tuple[int, ...]]
    dtype: str

    @classmethod
    def of(
        cls, outputs: Any, features: Mapping[str, np.ndarray], *, top_k: int | None, dtype: str
    ) -> "Layout":
        """The layout for targets that look like these of one batch."""
        if dtype not in DTYPES:
            raise CacheError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}.")
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves(outputs))
        kept: list[int | None] = [None] * len(shapes)
        if top_k is not None:
            kept = [top_k if shape and 1 <= top_k < shape[-1] else None for shape in shapes]
            if not any(kept):
                raise CacheError(
                    f"top_k must be at least 1 and less than the number of classes, got {top_k!r} for outputs of shape "
                    f"{', '.join(map(str, shapes))}. None keeps everything."
                )
        return cls(
            skeleton(outputs),
            shapes,
            tuple(kept),
            {name: tuple(value.shape[1:]) for name, value in features.items()},
            dtype,
        )

    @property
    def record(self) -> np.dtype[Any]:
        """NumPy's type of a record: packed, little-endian."""
        value = np.dtype(self.dtype).newbyteorder("<")
        fields: list[tuple[Any, ...]] = []
        for number, (shape, k) in enumerate(zip(self.output_shapes, self.top_k)):
            if k is None:
                fields.append((f"output_{number}", value, shape))
                continue
            inner = shape[:-1]
            fields.append((f"output_{number}_values", value, (*inner, k)))
            fields.append((f"output_{number}_indices", index_dtype(shape[-1]).newbyteorder("<"), (*inner, k)))
            fields.append((f"output_{number}_rest", np.dtype("<f4"), inner))
        for number, shape in enumerate(self.feature_shapes.values()):
            fields.append((f"feature_{number}", value, shape))
        return np.dtype(fields)

    def encode(self, outputs: Any, features: Mapping[str, Any]) -> np.ndarray:
        """Records [batch] of one batch.

        Raises:
          CacheError: a value that is not finite, or does not fit into the dtype.
        """
        flat = [np.asarray(leaf, dtype=np.float32) for leaf in leaves(outputs)]
        rows = np.zeros(len(flat[0]), dtype=self.record)
        for number, (logits, k) in enumerate(zip(flat, self.top_k)):
            if k is None:
                rows[f"output_{number}"] = self._narrowed(logits, f"output {number}")
                continue
            top = take_top_k(logits, k)
            rows[f"output_{number}_values"] = self._narrowed(top.values, f"output {number}")
            rows[f"output_{number}_indices"] = top.indices
            rows[f"output_{number}_rest"] = top.rest
        for number, name in enumerate(self.feature_shapes):
            rows[f"feature_{number}"] = self._narrowed(
                np.asarray(features[name], dtype=np.float32), f"layer {name!r}"
            )
        return rows

    def _narrowed(self, values: np.ndarray, what: str) -> np.ndarray:
        # One comparison over the whole batch; it is also false for NaN.
        if values.size and not float(np.abs(values).max()) <= float(np.finfo(self.dtype).max):
            if not np.all(np.isfinite(values)):
                raise CacheError(f"The teacher's {what} holds values that are not finite (NaN or infinity).")
            raise CacheError(
                f"The teacher's {what} reaches {np.abs(values).max():.4g}, more than {self.dtype} can hold: use "
                "dtype='float32'."
            )
        return values.astype(self.dtype)

    def decode(self, rows: np.ndarray) -> list[np.ndarray]:
        """Dense float32 arrays of a batch of records: the outputs in order, then the features in order."""
        decoded = []
        for number, (shape, k) in enumerate(zip(self.output_shapes, self.top_k)):
            if k is None:
                decoded.append(rows[f"output_{number}"].astype(np.float32))
            else:
                parts = [rows[f"output_{number}_{part}"] for part in ("values", "indices", "rest")]
                decoded.append(dense_logits(TopK(*parts), shape[-1]))
        decoded += [
            rows[f"feature_{number}"].astype(np.float32) for number in range(len(self.feature_shapes))
        ]
        return decoded

    def targets(self, flat: Sequence[Any]) -> dict[str, Any]:
        """{"outputs": ..., "features": {...}} from what `decode` returned, or from tensors in its place."""
        count = len(self.output_shapes)
        targets = {"outputs": assemble(self.outputs, flat[:count])}
        if self.feature_shapes:
            targets["features"] = dict(zip(self.feature_shapes, flat[count:]))
        return targets

    def decoded_shapes(self) -> list[tuple[int, ...]]:
        """Shapes without the batch of what `decode` returns."""
        return [*self.output_shapes, *self.feature_shapes.values()]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "outputs": self.outputs,
            "output_shapes": [list(shape) for shape in self.output_shapes],
            "top_k": list(self.top_k),
            "features": [
                {"layer": name, "shape": list(shape)} for name, shape in self.feature_shapes.items()
            ],
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Layout":
        """From the manifest."""
        return cls(
            data["outputs"],
            tuple(tuple(shape) for shape in data["output_shapes"]),
            tuple(data["top_k"]),
            {feature["layer"]: tuple(feature["shape"]) for feature in data["features"]},
            data["dtype"],
        )
