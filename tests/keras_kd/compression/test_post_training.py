"""Quantization without training: every kind converts, and the options for int8_ptq do what they claim."""

import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter

import keras_kd
import tflite_tools
from keras_kd.compression import post_training

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 12, 12, 3)).astype("float32")


def legacy_network(spread=1.0):
    """Convolutions with and without normalization and bias, a depthwise one, a branch; channels of unlike ranges."""
    tf_keras.utils.set_random_seed(0)
    layers = tf_keras.layers
    inputs = layers.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.BatchNormalization(name="norm2")(x)
    x = layers.Activation("relu", name="relu2")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="pointwise")(x)
    branch = layers.Conv2D(8, 1, name="branch")(x)
    x = layers.Add(name="add")([x, branch])
    x = layers.ReLU(6.0, name="relu6")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(16, activation="relu", name="dense")(x)
    model = tf_keras.Model(inputs, layers.Dense(4, name="last")(x))
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            shape = weights[0].shape
            weights = [
                rng.uniform(0.5, 2, shape),
                rng.normal(size=shape),
                rng.normal(size=shape),
                rng.uniform(0.5, 2, shape),
            ]
        elif weights and spread > 1:
            weights[0] = weights[0] * np.exp(
                rng.uniform(-np.log(spread), np.log(spread), weights[0].shape[-1])
            )
        if layer.name in ("pointwise", "branch", "dense"):
            weights[1] = rng.normal(size=weights[1].shape) * 0.1
        layer.set_weights(weights)
    return model


def test_folding_changes_the_weights_and_not_the_function():
    model = legacy_network()
    before = model.predict(X, verbose=0)
    assert post_training.fold_batch_normalization(model) == 2
    # float32 with products in another order, through seven layers.
    np.testing.assert_allclose(model.predict(X, verbose=0), before, rtol=2e-4, atol=2e-5)
    norm = model.get_layer("norm")
    np.testing.assert_array_equal(norm.gamma.numpy(), 1)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), 0)


def test_equalization_makes_ranges_meet_and_keeps_the_function():
    model = legacy_network(spread=30.0)
    before = model.predict(X, verbose=0)
    # conv-depthwise, depthwise-pointwise and dense-last; the branch and ReLU6 stop the others.
    assert post_training.equalize(model) == 3
    np.testing.assert_allclose(
        model.predict(X, verbose=0), before, rtol=1e-3, atol=1e-3 * np.abs(before).max()
    )
    depthwise = np.abs(model.get_layer("depthwise").depthwise_kernel.numpy()).max(axis=(0, 1))[:, 0]
    incoming = np.abs(model.get_layer("conv").kernel.numpy()).max(axis=(0, 1, 2))
    outgoing = np.abs(model.get_layer("pointwise").kernel.numpy()).max(axis=(0, 1, 3))
    np.testing.assert_allclose(incoming, depthwise, rtol=1e-2)
    np.testing.assert_allclose(depthwise, outgoing, rtol=1e-2)


def test_bias_correction_removes_the_mean_error_of_rounding():
    model = legacy_network(spread=10.0)
    post_training.fold_batch_normalization(model)
    names = ("norm", "norm2", "branch", "last")
    wanted = outputs_of(model, names)

    def error_of_rounded():
        clone = tf_keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        for linear in post_training._linears(clone):
            post_training._kernel(linear.layer).assign(post_training._rounded(linear.layer))
        return [np.abs(found - want).max() for found, want in zip(outputs_of(clone, names), wanted)]

    before = error_of_rounded()
    assert post_training.correct_bias(model, X) == 6
    after = error_of_rounded()
    for name, old, new in zip(names, before, after):
        # What is left is float32: means of about 1 over some thousand values.
        assert new < 1e-5 or new < 0.02 * old, (name, old, new)


def outputs_of(model, names):
    probe = tf_keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    return [value.reshape(-1, value.shape[-1]).mean(axis=0) for value in probe.predict(X, verbose=0)]


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(32, 3, activation="relu", name="large"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="last"),
        ]
    )


KINDS = {
    "float32": ({np.float32}, 32, 32),
    "float16": ({np.float32, np.float16}, 16, 32),
    "dynamic": ({np.float32, np.int8}, 8, 32),
    "int8_ptq": ({np.int8, np.int32}, 8, 8),
    "int8_ptq+equalize+correct_bias": ({np.int8, np.int32}, 8, 8),
    "int16x8": ({np.int16, np.int8, np.int64, np.int32}, 8, 16),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_needs_no_labels_and_says_what_the_student_says(name, student):
    dtypes, weight_bits, activation_bits = KINDS[name]
    compressed = keras_kd.compress(student, name, X)
    artifact = compressed.to_tflite()
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    found = {detail["dtype"] for detail in interpreter.get_tensor_details()} - {np.int32, np.int64}
    assert found == dtypes - {np.int32, np.int64}
    row = next(row for row in compressed.report.layers if row.name == "large")
    assert (row.weight_bits, row.activation_bits) == (weight_bits, activation_bits)
    wanted, outputs = student.predict(X, verbose=0), np.asarray(tflite_tools.predict(artifact, X))
    # Signal to noise in dB: int8 activations and weights leave about 30 here, everything else more.
    assert 10 * np.log10((wanted**2).sum() / ((wanted - outputs) ** 2).sum()) > 25
    assert compressed.report.history == {}
    assert len(compressed.report.notes) == name.count("+")


def test_pruning_before_calibrated_quantization_keeps_its_zeros(student):
    compressed = keras_kd.compress(
        student,
        "prune75-int8_ptq",
        X,
        rng.integers(0, 4, 64),
        verbose=0,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    interpreter = Interpreter(model_content=compressed.to_tflite().content)
    interpreter.allocate_tensors()
    kernel = next(
        interpreter.get_tensor(d["index"])
        for d in interpreter.get_tensor_details()
        if tuple(d["shape"]) == (32, 3, 3, 8)
    )
    assert (kernel == 0).sum() >= 0.75 * kernel.size - 1
