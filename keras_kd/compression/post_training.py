"""What can be done for a calibrated int8 model before conversion: equalize channels, correct biases.

Both work on folded weights: a BatchNormalization behind a convolution or dense layer is first absorbed into
that layer's kernel, and only its shift stays behind, so that the arithmetic is what the file will compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from keras_kd.compression.sensitivity import quantize_weights

_ROUNDS = 20


@dataclass(frozen=True)
class _Linear:
    """A convolution or dense layer and the BatchNormalization behind it that will hold its shift, if any."""

    layer: Any
    norm: Any | None

    @property
    def end(self) -> Any:
        """The layer whose output is this one's before the activation."""
        return self.norm or self.layer


def fold_batch_normalization(model: Any) -> int:
    """Moves the scale of every BatchNormalization behind a linear layer into that layer's kernel.

    The normalization stays in the graph as an addition of its shift. The model computes the same.

    Args:
      model: a tf_keras model; its weights are changed in place.

    Returns:
      How many were folded.
    """
    folded = 0
    for linear in _linears(model):
        norm = linear.norm
        if norm is None:
            continue
        gamma, beta, mean, variance = (
            _value(norm, name) for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + norm.epsilon)
        bias = linear.layer.bias.numpy() if linear.layer.use_bias else 0.0
        _scale_outputs(linear.layer, scale)
        if linear.layer.use_bias:
            linear.layer.bias.assign(np.zeros_like(scale))
        _assign(norm, gamma=np.ones_like(scale), beta=beta + (bias - mean) * scale)
        _assign(norm, moving_mean=np.zeros_like(scale), moving_variance=np.full_like(scale, 1 - norm.epsilon))
        folded += 1
    return folded


def equalize(model: Any) -> int:
    """Gives neighboring layers equal ranges per channel; the model computes the same.

    For two layers with a ReLU (or nothing) between them, output channel i of the first is divided by s_i and
    input channel i of the second multiplied by it, s_i = sqrt(r1_i / r2_i) with r the largest magnitude.

    Args:
      model: a tf_keras model; its weights are changed in place.

    Returns:
      How many pairs of layers were equalized.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.
    """
    fold_batch_normalization(model)
    pairs = list(_pairs(model))
    for _ in range(_ROUNDS):
        largest = 0.0
        for first, second in pairs:
            out_range, in_range = _output_range(first.layer), _input_range(second.layer)
            used = (out_range > 0) & (in_range > 0)
            scale = np.where(used, np.sqrt(np.where(used, out_range, 1) / np.where(used, in_range, 1)), 1.0)
            _scale_outputs(first.layer, 1 / scale)
            if first.norm is not None:
                _assign(first.norm, beta=_value(first.norm, "beta") / scale)
            if first.layer.use_bias:
                first.layer.bias.assign(first.layer.bias.numpy() / scale)
            _scale_inputs(second.layer, scale)
            largest = max(largest, float(np.abs(np.log(scale)).max()))
        if largest < 1e-3:
            break
    return len(pairs)


def correct_bias(model: Any, x: Any) -> int:
    """Shifts every bias by the mean error that rounding the kernel to int8 will cause.

    Layer by layer from the inputs: the mean of each output channel over the calibration data, with float
    kernels everywhere, minus the same with this and all earlier kernels rounded, is added to the bias.

    Args:
      model: a tf_keras model; its biases are changed in place.
      x: calibration inputs.

    Returns:
      How many layers were corrected.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (the empirical form of its appendix D).
    """
    fold_batch_normalization(model)
    linears = [linear for linear in _linears(model) if linear.norm is not None or linear.layer.use_bias]
    if not linears:
        return 0
    twins = [_without_activation(linear) for linear in linears]
    probe = tf_keras.Model(model.inputs, [tensor for tensor, _ in twins])
    wanted = _means(probe, x)
    kernels = [_kernel(linear.layer).numpy() for linear in linears]
    for index, (linear, (_, twin)) in enumerate(zip(linears, twins)):
        for layer in {id(part): part for part in (linear.layer, twin) if part is not None}.values():
            _kernel(layer).assign(_rounded(layer))
        error = wanted[index] - _means(probe, x)[index]
        if linear.norm is not None:
            _assign(linear.norm, beta=_value(linear.norm, "beta") + error)
        for layer in (linear.layer, twin):
            if linear.norm is None and layer is not None:
                layer.bias.assign(layer.bias.numpy() + error)
    for linear, kernel in zip(linears, kernels):
        _kernel(linear.layer).assign(kernel)
    return len(linears)


def _without_activation(linear: _Linear) -> tuple[Any, Any | None]:
    """The output before the activation, and the twin of the layer that computes it where one is needed."""
    layer = linear.layer
    if linear.norm is not None or layer.activation is tf_keras.activations.linear:
        return linear.end.get_output_at(0), None
    twin = type(layer).from_config(
        {**layer.get_config(), "activation": "linear", "name": f"{layer.name}_twin"}
    )
    output = twin(layer.get_input_at(0))
    twin.set_weights(layer.get_weights())
    return output, twin


def _means(probe: Any, x: Any) -> list[np.ndarray]:
    """Mean of every output channel over examples and positions, in float64."""
    outputs = probe.predict(x, verbose=0)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [np.asarray(value, np.float64).reshape(-1, value.shape[-1]).mean(axis=0) for value in outputs]


# The graph.


def _linears(model: Any) -> list[_Linear]:
    """In the model's order: layers whose output is linear in their input, called once."""
    layers = tf_keras.layers
    found = []
    for layer in model.layers:
        plain = type(layer) in (layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
        if not plain or len(layer.inbound_nodes) != 1 or getattr(layer, "groups", 1) != 1:
            continue
        after = _only_consumer(layer, model)
        is_norm = (
            after is not None
            and type(after) is layers.BatchNormalization
            and list(after.axis) == [layer.get_output_at(0).shape.rank - 1]
            and after.scale
            and after.center
            and layer.activation is tf_keras.activations.linear
        )
        found.append(_Linear(layer, after if is_norm else None))
    return found


def _only_consumer(layer: Any, model: Any) -> Any | None:
    """The one layer that reads this one's output, if it is one and the output is not the model's too."""
    members = {id(member) for member in model.layers}
    readers = [node.outbound_layer for node in layer.outbound_nodes if id(node.outbound_layer) in members]
    is_output = any(tensor is layer.get_output_at(0) for tensor in model.outputs)
    return readers[0] if len(readers) == 1 and not is_output else None


def _pairs(model: Any) -> Iterator[tuple[_Linear, _Linear]]:
    """Linear layers with nothing between them that would notice a positive scaling of channels."""
    by_layer = {id(linear.layer): linear for linear in _linears(model)}
    for linear in by_layer.values():
        if not _is_homogeneous(linear.layer.activation):
            continue
        after = _only_consumer(linear.end, model)
        while after is not None and _commutes(after):
            after = _only_consumer(after, model)
        if after is not None and id(after) in by_layer:
            yield linear, by_layer[id(after)]


def _is_homogeneous(activation: Any) -> bool:
    return activation in (tf_keras.activations.linear, tf_keras.activations.relu)


def _commutes(layer: Any) -> bool:
    layers = tf_keras.layers
    if type(layer) is layers.ReLU:
        return layer.max_value is None and not layer.threshold
    if type(layer) is layers.Activation:
        return _is_homogeneous(layer.activation)
    kept = (layers.Dropout, layers.SpatialDropout2D, layers.ZeroPadding2D, layers.MaxPooling2D)
    return type(layer) in (
        *kept,
        layers.AveragePooling2D,
        layers.GlobalAveragePooling2D,
        layers.GlobalMaxPooling2D,
    )


# The weights.


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, tf_keras.layers.DepthwiseConv2D)


def _kernel(layer: Any) -> Any:
    return layer.depthwise_kernel if _is_depthwise(layer) else layer.kernel


def _as_outputs(layer: Any, kernel: np.ndarray) -> np.ndarray:
    """The kernel with its output channels on the last axis."""
    return kernel.reshape(*kernel.shape[:-2], -1) if _is_depthwise(layer) else kernel


def _output_range(layer: Any) -> np.ndarray:
    kernel = np.abs(_as_outputs(layer, _kernel(layer).numpy()))
    return np.asarray(kernel.reshape(-1, kernel.shape[-1]).max(axis=0))


def _input_range(layer: Any) -> np.ndarray:
    kernel = np.abs(_kernel(layer).numpy())
    return np.asarray(np.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1).max(axis=1))


def _scale_outputs(layer: Any, scale: np.ndarray) -> None:
    kernel = _kernel(layer).numpy()
    _kernel(layer).assign((_as_outputs(layer, kernel) * scale).reshape(kernel.shape))


def _scale_inputs(layer: Any, scale: np.ndarray) -> None:
    _kernel(layer).assign(_kernel(layer).numpy() * scale[:, np.newaxis])


def _rounded(layer: Any) -> np.ndarray:
    kernel = _kernel(layer).numpy()
    return quantize_weights(_as_outputs(layer, kernel), 8).reshape(kernel.shape)


def _value(norm: Any, name: str) -> np.ndarray:
    return np.asarray(getattr(norm, name).numpy())


def _assign(norm: Any, **values: np.ndarray) -> None:
    for name, value in values.items():
        getattr(norm, name).assign(value)
