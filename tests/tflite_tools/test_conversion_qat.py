"""`convert` on tf_keras models, with and without quantization-aware training by TF-MOT."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.errors import ConversionError
from tflite_tools.file_facts import tensor_types

FLOAT32 = 0


@pytest.fixture(scope="module")
def legacy():
    """tf_keras and TF-MOT, with tf.keras left as Keras 3 for the other tests of this process."""
    assert tf.keras.Model is keras.Model  # touched before TF-MOT is imported
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    import tensorflow_model_optimization as tfmot
    import tf_keras

    if before is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = before
    return tf_keras, tfmot


def _net(tf_keras):
    tf_keras.utils.set_random_seed(2)
    inputs = tf_keras.Input((8, 8, 1), name="image")
    x = tf_keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = tf_keras.layers.BatchNormalization()(x)
    x = tf_keras.layers.ReLU()(x)
    x = tf_keras.layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="logits")(x))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((32, 8, 8, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def qat_model(legacy, images):
    tf_keras, tfmot = legacy
    model = tfmot.quantization.keras.quantize_model(_net(tf_keras))
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(32) % 3, epochs=3, verbose=0)
    return model


def test_tf_keras_model_converts(legacy, images):
    model = _net(legacy[0])
    artifact = tflite_tools.convert(model)
    np.testing.assert_allclose(
        tflite_tools.predict(artifact, images), model.predict(images, verbose=0), atol=1e-5
    )
    assert artifact.provenance["source"] == "tf_keras"


@pytest.mark.filterwarnings("ignore:The calibration data:UserWarning")
@pytest.mark.parametrize("calibrated", [False, True])
def test_qat_model_keeps_its_trained_ranges(qat_model, images, calibrated):
    # Ten times the range seen in training: if calibration replaced the trained ranges, the scale would tell.
    calibration = 10 * images if calibrated else None
    artifact = tflite_tools.convert(qat_model, quantization="int8", calibration=calibration)
    assert FLOAT32 not in {kind for _, kind, _ in tensor_types(artifact.content)}
    layer = qat_model.layers[1]
    assert type(layer).__name__ == "QuantizeLayer"
    low, high = (float(v.numpy()) for v in layer.weights[:2])
    from tflite_tools.runner import ModelRunner

    (spec,) = ModelRunner(artifact.content).inputs
    assert spec.scale == pytest.approx((high - low) / 255, rel=1e-3)
    assert artifact.provenance["quantization_aware_training"] is True


def test_qat_file_agrees_with_the_simulated_model(qat_model, images):
    artifact = tflite_tools.convert(qat_model, quantization="int8")
    expected = qat_model.predict(images, verbose=0)
    from tflite_tools.runner import ModelRunner

    (spec,) = ModelRunner(artifact.content).outputs
    # One step of the output, as training simulates it; a second for sums that round the other way.
    error = np.abs(tflite_tools.predict(artifact, images) - expected)
    assert error.max() <= 2.01 * spec.scale


def test_qat_model_with_float_inputs(qat_model, images):
    artifact = tflite_tools.convert(qat_model, quantization="int8", input_dtype="float32")
    kinds = [kind for _, kind, _ in tensor_types(artifact.content)]
    assert kinds.count(FLOAT32) == 2


def test_qat_model_is_not_for_int16(qat_model, images):
    with pytest.raises(ConversionError, match="trained for int8"):
        tflite_tools.convert(qat_model, quantization="int16x8", calibration=images)


def test_pruning_wrappers_must_be_stripped(legacy):
    tf_keras, tfmot = legacy
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(_net(tf_keras))
    with pytest.raises(ConversionError, match="strip_pruning"):
        tflite_tools.convert(wrapped)


def test_a_float_layer_in_a_qat_model_asks_for_calibration(legacy, images):
    tf_keras, tfmot = legacy
    inputs = tf_keras.Input((8, 8, 1))
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    x = annotate(tf_keras.layers.Conv2D(4, 3, activation="relu"))(inputs)
    x = tf_keras.layers.Flatten()(x)
    outputs = tf_keras.layers.Dense(3, name="left_out")(x)
    model = tfmot.quantization.keras.quantize_apply(tf_keras.Model(inputs, outputs))
    model.compile("sgd", "mse")
    model.fit(images, np.zeros((32, 3)), epochs=1, verbose=0)
    with pytest.raises(ConversionError, match=r"no ranges.*left_out.*calibration="):
        tflite_tools.convert(model, quantization="int8")
    artifact = tflite_tools.convert(model, quantization="int8", calibration=images)
    assert FLOAT32 not in {kind for _, kind, _ in tensor_types(artifact.content)}
