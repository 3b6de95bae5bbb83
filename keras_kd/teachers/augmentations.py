"""Stateless augmentations for `TeacherCache.build`: (example, seed) -> example.

Each is a frozen dataclass, so that it has a name that a manifest can keep and that makes it again. They use
TensorFlow's own stateless operations: the same seed gives the same pixels, today and in a year.
Images are [height, width, channels], of bytes (0..255) or floats in the same range as `value_range`; time series are
[time, channels].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Tensor = Any
_FIELDS = "fields"


def _uniform(seed: Tensor, salt: int, low: Any = 0.0, high: Any = 1.0, shape: Any = ()) -> Tensor:
    """Random numbers for one purpose; the salt keeps the purposes of one seed apart."""
    import tensorflow as tf

    return tf.random.stateless_uniform(shape, tf.random.experimental.stateless_fold_in(seed, salt), low, high)


def _salted(seed: Tensor, salt: int) -> Tensor:
    import tensorflow as tf

    return tf.random.experimental.stateless_fold_in(seed, salt)


def _like(values: Tensor, original: Tensor) -> Tensor:
    """Floats in the type of the original; bytes are rounded and kept from 0 to 255."""
    import tensorflow as tf

    if original.dtype.is_integer:
        values = tf.clip_by_value(tf.round(values), original.dtype.min, original.dtype.max)
    return tf.cast(values, original.dtype)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What all of them have in common; the name of a class and its fields are its identity."""

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        """The example, changed as the seed says."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """For a manifest."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self, Sequence):
            values = {"steps": [step.to_config() for step in self.steps]}
        return {"class": type(self).__name__, _FIELDS: values}


@dataclasses.dataclass(frozen=True)
class Sequence(Augmentation):
    """Several, one after the other.

    Example:
      >>> Sequence((RandomFlip(), RandomShift(2)))
      Sequence(steps=(RandomFlip(vertical=False), RandomShift(pixels=2)))
    """

    steps: tuple[Augmentation, ...]

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        for number, step in enumerate(self.steps):
            example = step(example, _salted(seed, 1000 + number))
        return example


@dataclasses.dataclass(frozen=True)
class RandomFlip(Augmentation):
    """Left and right change places for every second image; with `vertical` also top and bottom."""

    vertical: bool = False

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        example = tf.image.stateless_random_flip_left_right(example, _salted(seed, 1))
        return tf.image.stateless_random_flip_up_down(example, _salted(seed, 2)) if self.vertical else example


@dataclasses.dataclass(frozen=True)
class RandomShift(Augmentation):
    """Moves the image by up to so many pixels in each direction; what comes in at the border is 0."""

    pixels: int = 2

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        edge = (self.pixels, self.pixels)
        padded = tf.pad(example, (edge, edge, (0, 0)))
        moved = tf.image.stateless_random_crop(padded, tf.shape(example), _salted(seed, 3))
        return tf.ensure_shape(moved, example.shape)


@dataclasses.dataclass(frozen=True)
class RandomCrop(Augmentation):
    """A random part of the image, enlarged to the image's size (the usual ImageNet augmentation).

    Args:
      least_area: the smallest part, as a fraction of the image's area.
      least_ratio: the narrowest shape, as width over height; the widest is its inverse.
    """

    least_area: float = 0.08
    least_ratio: float = 0.75

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        height, width = example.shape[0], example.shape[1]
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(example),
            tf.zeros((1, 0, 4)),
            _salted(seed, 4),
            aspect_ratio_range=(self.least_ratio, 1.0 / self.least_ratio),
            area_range=(self.least_area, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        part = tf.slice(example, begin, size)
        return _like(tf.ensure_shape(tf.image.resize(part, (height, width)), example.shape), example)


@dataclasses.dataclass(frozen=True)
class RandomColor(Augmentation):
    """Brightness, contrast and, for three channels, saturation and hue; 0 leaves any of them as it is.

    Args:
      brightness: largest change, as a fraction of the range of values.
      contrast: contrast between 1 - contrast and 1 + contrast.
      saturation: the same for saturation.
      hue: largest change, as a fraction of the color circle, up to 0.5.
      value_range: the range's width of float images; bytes have 255.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    value_range: float = 255.0

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        image = tf.cast(example, tf.float32) / self.value_range
        if self.brightness:
            image = tf.image.stateless_random_brightness(image, self.brightness, _salted(seed, 5))
        if self.contrast:  # TensorFlow takes no range of one number
            low, high = 1.0 - self.contrast, 1.0 + self.contrast
            image = tf.image.stateless_random_contrast(image, low, high, _salted(seed, 6))
        if self.saturation and example.shape[-1] == 3:
            low, high = 1.0 - self.saturation, 1.0 + self.saturation
            image = tf.image.stateless_random_saturation(image, low, high, _salted(seed, 7))
        if self.hue and example.shape[-1] == 3:
            image = tf.image.stateless_random_hue(image, self.hue, _salted(seed, 8))
        return _like(tf.clip_by_value(image, 0.0, 1.0) * self.value_range, example)


@dataclasses.dataclass(frozen=True)
class Jitter(Augmentation):
    """Normal noise on every value of a time series; `stddev` is in the series' own unit."""

    stddev: float = 0.05

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        noise = tf.random.stateless_normal(tf.shape(example), _salted(seed, 9), stddev=self.stddev)
        return _like(tf.cast(example, tf.float32) + noise, example)


@dataclasses.dataclass(frozen=True)
class RandomScale(Augmentation):
    """Each channel of a time series times a number between 1 - change and 1 + change."""

    change: float = 0.1

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        factors = _uniform(seed, 10, 1.0 - self.change, 1.0 + self.change, (example.shape[-1],))
        return _like(tf.cast(example, tf.float32) * factors, example)


@dataclasses.dataclass(frozen=True)
class RandomTimeShift(Augmentation):
    """Moves a time series by up to so many steps; what comes in repeats the first or last value."""

    steps: int = 4

    def __call__(self, example: Tensor, seed: Tensor) -> Tensor:
        import tensorflow as tf

        length = tf.shape(example)[0]
        shift = tf.random.stateless_uniform(
            (), _salted(seed, 11), -self.steps, self.steps + 1, dtype=tf.int32
        )
        places = tf.clip_by_value(tf.range(length) + shift, 0, length - 1)
        return tf.ensure_shape(tf.gather(example, places), example.shape)


def _beta(seed: Tensor, alpha: float) -> Tensor:
    """One draw from Beta(alpha, alpha)."""
    import tensorflow as tf

    draws = tf.random.stateless_gamma((2,), _salted(seed, 12), alpha)
    # Both gammas can underflow to 0 for a small alpha; Beta(alpha, alpha) then is near 0 or 1, as good as a coin.
    total = tf.reduce_sum(draws)
    coin = tf.cast(_uniform(seed, 13) < 0.5, tf.float32)
    return tf.where(total > 0.0, tf.math.divide_no_nan(draws[0], total), coin)


@dataclasses.dataclass(frozen=True)
class Mixup(Augmentation):
    """A weighted mean of two examples, and of their labels. The share is Beta(alpha, alpha).

    Source: Zhang et al. 2018, arXiv:1710.09412.
    """

    alpha: float = 0.2

    def __call__(self, example: Tensor, partner: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        import tensorflow as tf

        share = _beta(seed, self.alpha)
        mixed = share * tf.cast(example, tf.float32) + (1.0 - share) * tf.cast(partner, tf.float32)
        return _like(mixed, example), share


@dataclasses.dataclass(frozen=True)
class CutMix(Augmentation):
    """A rectangle of the partner's image in the example's; the share is the part of the area that is left.

    Source: Yun et al. 2019, arXiv:1905.04899.
    """

    alpha: float = 1.0

    def __call__(self, example: Tensor, partner: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        import tensorflow as tf

        height, width = example.shape[0], example.shape[1]
        side = tf.sqrt(1.0 - _beta(seed, self.alpha))
        middles = _uniform(seed, 14, shape=(2,))

        def inside(size: int, middle: Tensor) -> Tensor:
            half = side * size / 2.0
            places = tf.range(size, dtype=tf.float32) + 0.5
            return tf.abs(places - middle * size) < half

        cut = inside(height, middles[0])[:, None] & inside(width, middles[1])[None, :]
        share = 1.0 - tf.reduce_mean(tf.cast(cut, tf.float32))
        return tf.where(cut[..., None], partner, example), share


CLASSES: dict[str, type[Augmentation]] = {
    kind.__name__: kind
    for kind in (
        Sequence,
        RandomFlip,
        RandomShift,
        RandomCrop,
        RandomColor,
        Jitter,
        RandomScale,
        RandomTimeShift,
        Mixup,
        CutMix,
    )
}


def from_config(config: Mapping[str, Any]) -> Augmentation:
    """The augmentation that `to_config` described.

    Example:
      >>> from_config(Sequence((RandomShift(3),)).to_config())
      Sequence(steps=(RandomShift(pixels=3),))
    """
    values = dict(config[_FIELDS])
    if "steps" in values and config["class"] == "Sequence":
        values["steps"] = tuple(from_config(step) for step in values["steps"])
    return CLASSES[config["class"]](**values)
