"""Do the calibration data look like what the model saw in training? The model itself remembers.

A quantized file whose ranges were found on 0..1 images, for a model trained on 0..255, converts without a
word and is useless. The statistics in the first BatchNormalization or Normalization, a Rescaling layer and
the trained input range of a QAT model each give the mistake away.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# Calibration data are a sample, and channels differ: a factor of 2 happens, one of 4 is worth a word, and one of 20
# is another scaling (0..1 for 0..255 is 255, -1..1 for 0..255 is 128, millimetres for metres is 1000).
SUSPICIOUS_FACTOR = 4.0
WRONG_FACTOR = 20.0
_MAX_EXAMPLES = 100


def check_against_training(
    model: Any, arrays: Mapping[str, np.ndarray], problems: list[str], warnings: list[str]
) -> None:
    """Adds to problems and warnings what does not fit.

    Args:
      model: a Functional or Sequential keras.Model or tf_keras.Model.
      arrays: calibration data by input name, as the model itself takes them.
      problems: a scaling that cannot be right.
      warnings: a scaling that looks wrong.
    """
    inputs = [np.asarray(values[:_MAX_EXAMPLES], np.float32) for values in arrays.values()]
    if len(inputs) != 1:
        return  # several inputs are told apart by nothing here
    for layer in getattr(model, "layers", ()):
        kind = type(layer).__name__
        if kind == "QuantizeLayer":
            _check_trained_range(layer, inputs[0], warnings)
            return
        if kind == "Rescaling":
            _check_rescaling(layer, inputs[0], warnings)
        statistics = _statistics(layer)
        if statistics is None:
            continue
        features = _features(model, layer, inputs[0])
        if features is None or features.shape[-1] != statistics[0].size:
            return
        _compare(f"{kind} {layer.name!r}", features, *statistics, problems, warnings)
        return


def _statistics(layer: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and variance per channel (last axis) that the layer remembers; None when it has not been trained."""
    if type(layer).__name__ == "Normalization":
        mean, variance = getattr(layer, "mean", None), getattr(layer, "variance", None)
    elif hasattr(layer, "moving_mean"):
        axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
        shape = layer.input.shape
        if axis not in (-1, len(shape) - 1):
            return None
        mean, variance = layer.moving_mean, layer.moving_variance
    else:
        return None
    if mean is None or variance is None:
        return None
    mean_values, variance_values = (np.asarray(value, np.float64).ravel() for value in (mean, variance))
    untouched = not mean_values.any() and bool(np.all(variance_values == 1.0))
    return None if untouched else (mean_values, variance_values)


def _features(model: Any, layer: Any, values: np.ndarray) -> np.ndarray | None:
    """What arrives at the layer, as rows of channels."""
    package = sys.modules.get("tf_keras" if type(model).__module__.startswith("tf_keras") else "keras")
    try:
        part = package.Model(model.inputs, layer.input)  # type: ignore[union-attr]
        result = np.asarray(part.predict(values, verbose=0, batch_size=32))
    except (ValueError, AttributeError, TypeError):
        return None  # a layer inside another model, or one that is called several times
    return result.reshape(-1, result.shape[-1]).astype(np.float64)


def _compare(
    where: str,
    features: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    problems: list[str],
    warnings: list[str],
) -> None:
    # Channels that training found constant say nothing; the root mean square holds mean and spread in one figure.
    alive = variance > 1e-6 * max(float(variance.max()), 1e-12)
    seen = np.sqrt(mean**2 + variance)[alive]
    now = np.sqrt(np.mean(features**2, axis=0))[alive]
    if not seen.size or not np.any(now > 0):
        return
    factor = float(np.median(now / np.maximum(seen, 1e-12)))
    if SUSPICIOUS_FACTOR >= factor >= 1 / SUSPICIOUS_FACTOR:
        return
    text = (
        f"the values that reach {where} are {_times(factor)} those that it saw in training: the data seem to be "
        "scaled differently from the training data."
    )
    (problems if factor > WRONG_FACTOR or factor < 1 / WRONG_FACTOR else warnings).append(text)


def _check_trained_range(layer: Any, values: np.ndarray, warnings: list[str]) -> None:
    bounds = {
        _short(weight.name): float(np.asarray(weight)) for weight in layer.weights if np.ndim(weight) == 0
    }
    low, high = _ending(bounds, "min"), _ending(bounds, "max")
    if low is None or high is None or high <= low:
        return
    factor = float(np.abs(values).max()) / max(abs(low), abs(high))
    if factor > SUSPICIOUS_FACTOR or factor < 1 / SUSPICIOUS_FACTOR:
        warnings.append(
            f"their largest value is {_times(factor)} the largest that the model's input saw in training ({low:.4g} "
            f"to {high:.4g}): the data seem to be scaled differently from the training data."
        )


def _check_rescaling(layer: Any, values: np.ndarray, warnings: list[str]) -> None:
    scale = np.asarray(layer.scale, np.float64)
    if scale.size == 1 and 0 < float(scale) <= 1 / 64 and 0 < float(np.abs(values).max()) <= 2.0:
        warnings.append(
            f"the layer {layer.name!r} multiplies by {float(scale):.4g}, so the model expects raw pixels, and the data "
            f"lie between {values.min():.4g} and {values.max():.4g}: they seem to be scaled already."
        )


def _times(factor: float) -> str:
    return f"{factor:.3g} times" if factor >= 1 else f"1/{1 / factor:.3g} of"


def _short(name: str) -> str:
    return name.split("/")[-1].split(":")[0]


def _ending(bounds: Mapping[str, float], end: str) -> float | None:
    matches: Iterable[float] = (value for name, value in bounds.items() if name.endswith(end))
    return next(iter(matches), None)
