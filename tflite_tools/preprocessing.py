"""Resizing and scaling that become part of the file, so that the app feeds raw pixels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tflite_tools.traced import InputSpec


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to the raw input before the model sees it: resize, then x * scale + offset.

    Attributes:
      size: (height, width) of the raw image that the app feeds; None: the model's own.
      dtype: type of the raw input, "uint8" or "float32". For a fully integer file the converter's int8 input
        stands in its place.
      scale: a number, or one per channel.
      offset: a number, or one per channel.
      interpolation: "bilinear" or "nearest".

    Example:
      >>> Preprocessing.from_mean_std(mean=127.5, std=127.5)
      Preprocessing(size=None, dtype='float32', scale=0.00784313725490196, offset=-1.0,
      interpolation='bilinear')
    """

    size: tuple[int, int] | None = None
    dtype: str = "float32"
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        problems = []
        if self.dtype not in ("uint8", "float32"):
            problems.append(f"dtype: expected 'uint8' or 'float32', got {self.dtype!r}")
        if self.interpolation not in ("bilinear", "nearest"):
            problems.append(f"interpolation: expected 'bilinear' or 'nearest', got {self.interpolation!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            problems.append(f"size: expected (height, width), got {self.size!r}")
        if problems:
            raise ValueError("include_preprocessing: " + "; ".join(problems) + ".")

    @classmethod
    def from_mean_std(
        cls, mean: float | Sequence[float], std: float | Sequence[float], **fields: Any
    ) -> "Preprocessing":
        """(x - mean) / std, per channel where lists are given."""
        if isinstance(mean, (int, float)) and isinstance(std, (int, float)):
            return cls(scale=1.0 / std, offset=-mean / std, **fields)
        count = len(mean) if isinstance(mean, Sequence) else len(std)  # type: ignore[arg-type]
        means = list(mean) if isinstance(mean, Sequence) else [mean] * count
        stds = list(std) if isinstance(std, Sequence) else [std] * count
        return cls(
            scale=tuple(1.0 / s for s in stds), offset=tuple(-m / s for m, s in zip(means, stds)), **fields
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def feeds(self, spec: InputSpec) -> InputSpec:
        """The input as the app feeds it."""
        if len(spec.shape) != 4:
            return dataclasses.replace(spec, dtype=self.dtype)
        batch, height, width, channels = spec.shape
        if self.size is not None:
            height, width = self.size
        return InputSpec(spec.name, (batch, height, width, channels), self.dtype)

    def __call__(self, specs: Sequence[InputSpec], tensors: Sequence[Any]) -> tuple[Any, ...]:
        """Applies it inside the traced function; every input is treated alike."""
        import tensorflow as tf

        ready = []
        for spec, tensor in zip(specs, tensors):
            value = tf.cast(tensor, tf.float32)
            if len(spec.shape) == 4 and self.size is not None and tuple(spec.shape[1:3]) != self.size:
                resize = tf.image.resize
                value = resize(
                    value,
                    [int(size) for size in spec.shape[1:3] if size is not None],
                    method=self.interpolation,
                )
            value = value * tf.constant(self.scale, tf.float32) + tf.constant(self.offset, tf.float32)
            ready.append(tf.cast(value, spec.dtype))
        return tuple(ready)


def as_preprocessing(value: Any) -> Preprocessing | None:
    """None, a Preprocessing, or its fields in a dictionary; `mean` and `std` may replace scale and offset."""
    if value is None or isinstance(value, Preprocessing):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"include_preprocessing: expected a Preprocessing or a dictionary, got {type(value).__name__}."
        )
    fields: dict[str, Any] = {
        name: tuple(part) if isinstance(part, list) else part for name, part in value.items()
    }
    known = {field.name for field in dataclasses.fields(Preprocessing)} | {"mean", "std"}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ValueError(f"include_preprocessing: unknown fields {unknown}; known are {sorted(known)}.")
    if "mean" in fields or "std" in fields:
        return Preprocessing.from_mean_std(fields.pop("mean", 0.0), fields.pop("std", 1.0), **fields)
    return Preprocessing(**fields)
