"""`evaluate`: every task, against Keras or by hand, on a file that returns its input."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.evaluation import EvaluationResult, evaluate, recognize_task


def _echo(*shape, activation="linear"):
    inputs = keras.Input(shape)
    return tflite_tools.convert(keras.Model(inputs, keras.layers.Activation(activation)(inputs)))


@pytest.fixture(scope="module")
def echo7():
    return _echo(7)


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(size=(90, 7)).astype("float32") * 2


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(1).integers(0, 7, 90)


def test_classification_equals_keras(echo7, logits, labels):
    result = evaluate(echo7, logits, labels)
    assert result.task == "classification" and result.from_logits is True
    assert "class numbers for 7 outputs" in result.why and "logits" in result.why
    losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert result.loss == pytest.approx(float(losses(labels, logits)), rel=1e-5)
    top5 = keras.metrics.SparseTopKCategoricalAccuracy(5)
    top5.update_state(labels, logits)
    assert result.accuracy == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert result.top5_accuracy == pytest.approx(float(top5.result()))
    np.testing.assert_array_equal(
        result.confusion, tf.math.confusion_matrix(labels, logits.argmax(1), 7).numpy()
    )
    row = result.per_class[3]
    assert row.examples == int(np.sum(labels == 3))
    assert row.recall == pytest.approx(np.mean(logits.argmax(1)[labels == 3] == 3))
    assert row.precision == pytest.approx(np.mean(labels[logits.argmax(1) == 3] == 3))


def test_one_hot_labels_give_the_same(echo7, logits, labels):
    sparse, dense = evaluate(echo7, logits, labels), evaluate(echo7, logits, np.eye(7)[labels])
    assert "one-hot" in dense.why
    for name in ("accuracy", "top5_accuracy", "loss", "calibration_error", "confusion", "per_class"):
        assert getattr(sparse, name) == getattr(dense, name)


def test_probabilities_are_recognized(echo7, logits, labels):
    p = tf.nn.softmax(logits).numpy()
    result = evaluate(echo7, p, labels)
    assert result.from_logits is False
    assert result.loss == pytest.approx(evaluate(echo7, logits, labels).loss, rel=1e-4)
    forced = evaluate(echo7, p, labels, from_logits=True)
    assert forced.from_logits is True and forced.loss != pytest.approx(result.loss, rel=1e-2)


def test_a_quantized_softmax_still_counts_as_probabilities(labels):
    rng = np.random.default_rng(0)
    inputs = keras.Input((7,))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs))
    x = rng.normal(size=(90, 7)).astype("float32") * 4
    artifact = tflite_tools.convert(model, quantization="int8", calibration=x)
    result = evaluate(artifact, x, labels)
    assert result.from_logits is False and np.isfinite(result.loss)


def test_one_sigmoid_output():
    echo = _echo(1)
    scores = np.array([[0.9], [0.2], [0.6], [0.4]], "float32")
    result = evaluate(echo, scores, np.array([1, 0, 0, 1]))
    assert result.task == "classification" and result.from_logits is False
    assert result.accuracy == 0.5 and result.confusion == ((1, 1), (1, 1))
    assert result.loss == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.4, 0.4])), rel=1e-5)
    as_logits = evaluate(echo, np.log(scores / (1 - scores)), np.array([1, 0, 0, 1]))
    assert as_logits.from_logits is True
    assert as_logits.loss == pytest.approx(result.loss, rel=1e-4)
    assert as_logits.confusion == result.confusion


def test_multi_label(echo7):
    p = np.random.default_rng(0).random((40, 7)).astype("float32")
    truth = (np.random.default_rng(1).random((40, 7)) < 0.4).astype("float32")
    result = evaluate(echo7, p, truth)
    assert result.task == "multi_label"
    assert result.loss == pytest.approx(float(keras.losses.BinaryCrossentropy()(truth, p)), rel=1e-4)
    assert result.accuracy == pytest.approx(np.mean((p > 0.5) == truth))
    auc = keras.metrics.AUC(num_thresholds=2000)
    auc.update_state(truth[:, 2], p[:, 2])
    assert result.per_class[2].auc == pytest.approx(float(auc.result()), abs=2e-3)  # Keras bins thresholds
    assert result.auc == pytest.approx(np.mean([row.auc for row in result.per_class]))


def test_regression():
    echo = _echo(2)
    values = np.array([[1.0, 2.0], [3.0, 5.0]], "float32")
    truth = np.array([[1.5, 2.0], [3.0, 4.0]])
    result = evaluate(echo, values, truth)
    assert result.task == "regression"
    assert result.loss == pytest.approx((0.25 + 1.0) / 4)
    assert result.mean_absolute_error == pytest.approx(0.375)
    assert result.root_mean_squared_error == pytest.approx(0.3125**0.5)
    # spread about each column's mean: 2 * 0.75^2 + 2 * 1^2
    assert result.r2 == pytest.approx(1 - 1.25 / (2 * 0.75**2 + 2.0))
    assert result.accuracy is None and result.confusion is None


def test_reconstruction_finds_anomalies():
    inputs = keras.Input((8,))
    artifact = tflite_tools.convert(keras.Model(inputs, keras.layers.ReLU(max_value=1.0)(inputs)))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((20, 8)), 1.5 + rng.random((5, 8))]).astype("float32")
    result = evaluate(artifact, x, np.array([0] * 20 + [1] * 5))
    assert result.task == "reconstruction" and result.auc == 1.0
    unlabeled = evaluate(artifact, x)
    assert unlabeled.task == "reconstruction" and unlabeled.auc is None
    assert unlabeled.loss == pytest.approx(np.mean((x - np.clip(x, 0, 1)) ** 2), rel=1e-5)


def test_recognition_explains_itself_or_asks():
    outputs = np.zeros((4, 3))
    assert recognize_task(np.array([0, 1, 2, 1]), outputs, None)[0] == "classification"
    assert recognize_task(np.eye(3)[[0, 1, 2, 0]], outputs, None)[0] == "classification"
    assert recognize_task(np.ones((4, 3)), outputs, None)[0] == "multi_label"
    assert recognize_task(np.full((4, 3), 0.3), outputs, None)[0] == "regression"
    assert recognize_task(np.array([0.2, 1.0, 7.0, 1.0]), np.zeros((4, 1)), None)[0] == "regression"
    with pytest.raises(ValueError, match="pass task="):
        recognize_task(np.array([0.5, 1.0, 2.0, 1.0]), outputs, None)
    with pytest.raises(ValueError, match="no labels"):
        recognize_task(None, outputs, None)


def test_problems_are_named(echo7, logits, labels):
    with pytest.raises(ValueError, match="Did you mean 'classification'"):
        evaluate(echo7, logits, labels, task="clasification")
    with pytest.raises(ValueError, match="5 labels for 90 examples"):
        evaluate(echo7, logits, labels[:5])
    with pytest.raises(ValueError, match="class numbers from 0 to 9 for 7 outputs"):
        evaluate(echo7, logits, np.arange(90) % 10, task="classification")
    with pytest.raises(ValueError, match="2 names for 7 classes"):
        evaluate(echo7, logits, labels, class_names=["a", "b"])


def test_dataset_custom_metrics_and_names(echo7, logits, labels):
    artifact = echo7.with_metadata(class_names=list("abcdefg"))
    dataset = tf.data.Dataset.from_tensor_slices((logits, labels)).batch(16)
    result = evaluate(artifact, dataset, metrics={"mean label": lambda y, outputs: y.mean()})
    assert result.accuracy == evaluate(echo7, logits, labels).accuracy
    assert result.extra == {"mean label": pytest.approx(labels.mean())}
    assert [row.name for row in result.per_class] == list("abcdefg")


def test_result_prints_and_round_trips(echo7, logits, labels):
    result = evaluate(echo7, logits, labels)
    assert EvaluationResult.from_dict(result.to_dict()) == result
    text = str(result)
    assert "90 examples" in text and f"{result.accuracy:.4f}" in text and "true \\ predicted" in text
    with pytest.raises(AttributeError):
        result.accuracy = 1.0
