"""Quantization-aware training of what TF-MOT refuses: integer in the file, and the same numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

import keras_kd
import tflite_tools
from keras_kd.compression.quantize_configs import KeepingQuantizer, WarmAverageQuantizer

L = keras.layers
rng = np.random.default_rng(0)
X = rng.uniform(0, 255, size=(64, 12, 12, 4)).astype("float32")
Y = rng.integers(0, 5, 64)


def normalization_without_convolution(x):
    x = L.Conv2D(8, 3, name="conv")(x / 255.0)
    x = L.ReLU()(L.BatchNormalization(momentum=0.5, name="alone")(L.MaxPooling2D()(x)))
    return L.Conv2D(8, 1)(x)


def normalizations_of_unlike_inputs(x):
    """Each alone, over as many channels: equal kernels stand for them, which the converter must not mix up."""
    x = L.Conv2D(8, 3, padding="same")(x / 255.0)
    y = L.ReLU()(L.BatchNormalization(momentum=0.5)(x))
    x = L.Add()([x, L.Conv2D(8, 3, padding="same", kernel_initializer="he_normal")(y * 10.0)])
    return L.ReLU()(L.BatchNormalization(momentum=0.5)(x))


def one_normalization_of_two_inputs(x):
    x = L.Conv2D(8, 3, padding="same")(x / 255.0)
    conv, normalization = L.Conv2D(8, 3, padding="same"), L.BatchNormalization(momentum=0.5)
    branches = [L.ReLU()(normalization(conv(y))) for y in (x, L.ReLU()(x))]
    return L.Concatenate()([*branches, normalization(L.MaxPooling2D(3, 1, padding="same")(x))])


def average_pool_before_a_concatenation(x):
    x = L.AveragePooling2D(2)(L.Conv2D(8, 3, padding="same")(x / 255.0))
    y = L.ReLU()(L.BatchNormalization(momentum=0.5)(x))
    return L.ReLU()(L.Concatenate()([x, L.Conv2D(8, 3, padding="same")(y) * 4.0]))


def rescaling(x):
    return L.Conv2D(8, 3, activation="relu")(L.Rescaling(1 / 127.5, offset=-1.0)(x))


def hard_activations_and_squeeze_excite(x):
    x = L.Activation("hard_silu")(L.Conv2D(8, 3)(L.Rescaling(1 / 255.0)(x)))
    gate = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Conv2D(8, 1, activation="hard_sigmoid")(L.Conv2D(4, 1, activation="relu")(gate))
    return L.Multiply()([x, gate])


def constants(x):
    x = L.Conv2D(8, 3)(x / 255.0)
    return L.Conv2D(8, 1)(keras.ops.relu6(x + 3.0) * 0.5)


def branches_of_different_scales(x):
    x = L.Conv2D(8, 3, activation="relu")(x / 255.0)
    small, large = L.Conv2D(8, 1)(x) * 0.02, L.Conv2D(8, 1)(x) * 20.0
    return L.Conv2D(8, 1)(L.Concatenate()([small, large, L.MaxPooling2D(3, 1, padding="same")(x)]))


def nested_models(x):
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            L.Conv2D(8, 3, use_bias=False),
            L.BatchNormalization(momentum=0.5),
            L.ReLU(),
        ]
    )
    return inner(x / 255.0)


def smooth_activations(x):
    x = L.Activation("silu")(L.Conv2D(8, 3)(x / 255.0))
    return L.Activation("gelu")(L.Conv2D(8, 1)(L.LeakyReLU(0.2)(L.Conv2D(8, 1)(x))))


def residual(x):
    x = L.Conv2D(8, 3, padding="same")(x / 255.0)
    y = L.BatchNormalization(momentum=0.5)(L.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    return L.ReLU()(L.Add()([x, L.Conv2D(8, 1)(L.ReLU(6.0)(y))]))


def transposed(x):
    x = L.Conv2D(8, 3, strides=2)(x / 255.0)
    return L.Conv2DTranspose(8, 2, strides=2, activation="relu")(x)


GRAPHS = [
    normalization_without_convolution,
    normalizations_of_unlike_inputs,
    one_normalization_of_two_inputs,
    average_pool_before_a_concatenation,
    rescaling,
    hard_activations_and_squeeze_excite,
    constants,
    branches_of_different_scales,
    nested_models,
    smooth_activations,
    residual,
    transposed,
]


CASES = [(graph, "int8") for graph in GRAPHS]
CASES += [pytest.param(graph, "prune50-int8", marks=pytest.mark.slow) for graph in (residual, transposed)]


@pytest.mark.parametrize(("graph", "recipe"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_the_file_is_integer_and_says_what_the_model_says(graph, recipe):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((12, 12, 4))
    outputs = L.Dense(5)(L.GlobalAveragePooling2D()(graph(inputs)))
    student = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed = keras_kd.compress(
        student,
        recipe,
        X,
        Y,
        loss=loss,
        optimizer=keras.optimizers.Adam(1e-3),
        epochs=2,
        batch_size=16,
        verbose=0,
    )
    artifact = compressed.to_tflite()
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    floats = [d["name"] for d in interpreter.get_tensor_details() if d["dtype"] == np.float32]
    assert floats == []
    assert not any("stays float" in reason for row in compressed.report.layers for reason in row.reasons)
    wanted, found = compressed.model.predict(X, verbose=0), np.asarray(tflite_tools.predict(artifact, X))
    # The goal for whole networks is 15 dB; these are shallow and lose less.
    assert np.abs(wanted).max() > 0
    assert (wanted**2).sum() > 10 ** (20 / 10) * ((wanted - found) ** 2).sum()
    for layer, sparsity in compressed.report.layer_sparsity.items():
        asked = next(row.sparsity_asked for row in compressed.report.layers if row.name == layer)
        assert asked is None or sparsity >= asked - 0.01


def test_a_float_island_is_named_with_its_cost_and_the_rest_is_integer():
    keras.utils.set_random_seed(0)
    x = keras.Input((12, 12, 4))
    y = L.Conv2D(8, 3, activation="relu", name="conv")(x / 255.0)
    y = L.GroupNormalization(2, name="island")(y)  # TFLite has no integer kernel for its root
    student = keras.Model(
        x, L.Dense(5, name="last")(L.GlobalAveragePooling2D()(L.Conv2D(8, 1, name="after")(y)))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed = keras_kd.compress(student, "int8", X, Y, loss=loss, epochs=2, verbose=0)
    rows = {row.name: row for row in compressed.report.layers}
    islands = {name for name, row in rows.items() if any("stays float" in reason for reason in row.reasons)}
    assert islands and all(name.startswith("island") for name in islands)
    reason = rows["island"].reasons[-1]
    assert reason.startswith("stays float: GroupNormalization") and "bytes more than int8" in reason
    assert (rows["conv"].weight_bits, rows["after"].weight_bits) == (8, 8)
    artifact = compressed.to_tflite()
    wanted, found = compressed.model.predict(X, verbose=0), np.asarray(tflite_tools.predict(artifact, X))
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 15


class Holder(tf_keras.layers.Layer):
    """A layer that owns a quantizer's variables."""


def test_activation_ranges_follow_the_data_from_the_first_batch():
    layer, quantizer = Holder(), WarmAverageQuantizer()
    weights = quantizer.build(None, "output", layer)
    ranges = [(-1.0, 2.0), (-3.0, 4.0), (0.5, 1.0)]
    low = high = 0.0
    for n, (least, most) in enumerate(ranges):
        quantizer(tf.constant([least, most]), True, weights)
        keep = min(n / (n + 10), 0.999)
        low, high = keep * low + (1 - keep) * min(least, 0), keep * high + (1 - keep) * max(most, 0)
        assert float(weights["min_var"]) == pytest.approx(low, rel=1e-6)
        assert float(weights["max_var"]) == pytest.approx(high, rel=1e-6)
    before = float(weights["max_var"])
    quantizer(tf.constant([100.0]), False, weights)
    assert float(weights["max_var"]) == before


@pytest.mark.parametrize("clusters", [False, True])
def test_kept_zeros_and_clusters_get_the_gradient_they_should(clusters):
    kernel = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 2.0]], "float32")
    wrapper = Holder()
    wrapper.layer = tf_keras.layers.Dense(2)
    wrapper.layer.build((None, 3))
    wrapper.layer.kernel.assign(kernel)
    quantizer = KeepingQuantizer(per_axis=False, clusters=clusters)
    weights = quantizer.build(kernel.shape, "kernel", wrapper)
    upstream = tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    with tf.GradientTape() as tape:
        value = quantizer(wrapper.layer.kernel, True, weights)
        loss = tf.reduce_sum(value * upstream)
    # 2.0 is the largest magnitude: a step of 2/127, on which 1.0 is rounded by at most half a step.
    np.testing.assert_allclose(value, kernel, atol=1 / 127)
    gradient = tape.gradient(loss, wrapper.layer.kernel).numpy()
    if clusters:
        # Members of a cluster share the mean of what arrives: ones at (0,1), (1,1); twos at (1,0), (2,1).
        np.testing.assert_allclose(gradient, [[0, 3], [4.5, 3], [0, 4.5]], rtol=1e-6)
    else:
        np.testing.assert_allclose(gradient, [[0, 2], [3, 4], [0, 6]], rtol=1e-6)


def test_dead_channels_and_dead_activations_do_not_break_the_file():
    """Strong pruning empties whole output channels; a very negative bias silences a layer for good."""
    keras.utils.set_random_seed(0)
    student = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            L.Rescaling(1 / 255.0),
            L.Conv2D(8, 3, activation="relu", name="first"),
            L.Conv2D(8, 3, name="conv"),
            L.BatchNormalization(momentum=0.5),
            L.ReLU(),
            L.Conv2D(8, 1, activation="relu", name="dead"),
            L.Flatten(),
            L.Dense(5, name="last"),
        ]
    )
    kernel, bias = student.get_layer("conv").get_weights()
    kernel[..., :3] *= 1e-3  # these channels lose every weight at 75 %
    student.get_layer("conv").set_weights([kernel, bias])
    kernel, bias = student.get_layer("dead").get_weights()
    student.get_layer("dead").set_weights([kernel, bias - 100])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed = keras_kd.compress(
        student, "prune75-int8", X, Y, loss=loss, epochs=2, batch_size=16, verbose=0
    )
    pruned = next(layer for layer in compressed.float_model.layers if layer.name == "conv").get_weights()[0]
    assert (pruned[..., :3] == 0).all()
    wanted = compressed.model.predict(X, verbose=0)
    found = np.asarray(tflite_tools.predict(compressed.to_tflite(), X))
    assert np.isfinite(found).all()
    # The outputs are the last layer's biases: one step of their int8 scale is the most that may differ.
    np.testing.assert_allclose(found, wanted, atol=np.ptp(wanted) / 255 + 1e-6)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_kernels_have_a_scale_per_channel_in_training_and_in_the_file(multiplier):
    keras.utils.set_random_seed(0)
    student = keras.Sequential(
        [
            keras.Input((12, 12, 4)),
            L.Rescaling(1 / 255.0),
            L.DepthwiseConv2D(3, depth_multiplier=multiplier, use_bias=False, name="depthwise"),
            L.BatchNormalization(momentum=0.5),
            L.ReLU(),
            L.Conv2D(5, 1),
            L.GlobalAveragePooling2D(),
        ]
    )
    kernel = student.get_layer("depthwise").get_weights()[0]
    # Channels of very unlike size: with one scale for all, the smallest would be rounded to nothing.
    student.get_layer("depthwise").set_weights([kernel * np.array([1.0, 0.1, 0.01, 0.001])[:, np.newaxis]])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed = keras_kd.compress(
        student,
        "int8",
        X,
        Y,
        loss=loss,
        optimizer=keras.optimizers.SGD(1e-4),
        epochs=4,
        batch_size=16,
        verbose=0,
    )
    artifact = compressed.to_tflite()
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    shape = (1, 3, 3, 4 * multiplier)
    stored = next(
        interpreter.get_tensor(d["index"])
        for d in interpreter.get_tensor_details()
        if tuple(d["shape"]) == shape and d["dtype"] == np.int8
    )
    # 127 but for the last optimizer step, which comes after the last look at the range. One scale for all channels
    # would leave 13, 1 and 0 for the smaller ones.
    assert np.abs(stored.astype(int)).max(axis=(0, 1, 2)).min() > 100
    wanted, found = compressed.model.predict(X, verbose=0), np.asarray(tflite_tools.predict(artifact, X))
    assert (wanted**2).sum() > 10 ** (30 / 10) * ((wanted - found) ** 2).sum()


def test_frozen_layers_stay_as_they_are_in_every_phase():
    keras.utils.set_random_seed(0)
    layers = [
        L.Rescaling(1 / 127.5, offset=-1.0),
        L.Conv2D(8, 3, activation="relu", name="frozen"),
        L.Conv2D(8, 1, name="free"),
    ]
    student = keras.Sequential(
        [keras.Input((12, 12, 4)), *layers, L.GlobalAveragePooling2D(), L.Dense(5, name="last")]
    )
    student.get_layer("frozen").trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compressed = keras_kd.compress(
        student, "prune50-int8", X, Y, loss=loss, optimizer=keras.optimizers.Adam(1e-2), epochs=2, verbose=0
    )

    row = next(row for row in compressed.report.layers if row.name == "frozen")
    assert row.sparsity == 0.0 and "frozen" in row.reasons[0]

    def kernel(name):
        wrapper = next(layer for layer in compressed.model.layers if layer.name == f"quant_{name}")
        return next(w for w in wrapper.weights if w.name.endswith("kernel:0")).numpy()

    np.testing.assert_array_equal(kernel("frozen"), student.get_layer("frozen").get_weights()[0])
    assert np.abs(kernel("last") - student.get_layer("last").get_weights()[0]).max() > 1e-3
    rescaling = next(layer for layer in compressed.model.layers if "rescaling" in layer.name)
    for weight in rescaling.weights:
        if weight.name.endswith("depthwise_kernel:0"):
            np.testing.assert_allclose(weight.numpy(), 1 / 127.5, rtol=1e-6)


def test_a_rescaling_is_no_first_layer():
    layers = [L.Rescaling(1 / 255.0), L.Conv2D(8, 3, name="first"), L.Conv2D(8, 3, name="middle")]
    student = keras.Sequential(
        [keras.Input((12, 12, 4)), *layers, L.GlobalAveragePooling2D(), L.Dense(5, name="last")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = keras_kd.compress(student, "prune50", X, Y, loss=loss, verbose=0).report.layer_sparsity
    assert (found["first"], found["middle"], found["last"]) == (0.0, 0.5, 0.0)
