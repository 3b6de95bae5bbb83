"""`convert` from SavedModels, functions, files and several signatures; state, loops and preprocessing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.errors import ConversionError
from tflite_tools.file_facts import signature_names, tensor_types
from tflite_tools.preprocessing import Preprocessing
from tflite_tools.runner import ModelRunner


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((6, 6, 1), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    features = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(features), name="small")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((16, 6, 6, 1), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(model, images):
    return model.predict(images, verbose=0)


def _signature_names(artifact):
    return signature_names(artifact.content)


# --- kinds of source ---


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_saved_model_of_keras(model, images, expected, tmp_path, quantization):
    model.export(tmp_path / "saved", verbose=False)
    calibration = images if quantization else None
    artifact = tflite_tools.convert(tmp_path / "saved", quantization=quantization, calibration=calibration)
    (spec,) = ModelRunner(artifact.content).inputs
    assert spec.shape == (1, 6, 6, 1)  # fixed, although the SavedModel leaves it open
    tolerance = 0.1 * np.ptp(expected) if quantization else 1e-6
    assert np.max(np.abs(tflite_tools.predict(artifact, images) - expected)) <= tolerance
    assert artifact.provenance["source"] == "saved_model"


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_files(model, images, expected, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    model.save(path)
    np.testing.assert_allclose(tflite_tools.predict(tflite_tools.convert(path), images), expected, atol=1e-6)


def test_missing_and_strange_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        tflite_tools.convert(tmp_path / "absent.keras")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(TypeError, match=r"neither a SavedModel folder.*nor a \.keras"):
        tflite_tools.convert(tmp_path / "x.txt")


@pytest.mark.parametrize("kind", ["concrete", "function", "dictionary"])
def test_functions(model, images, expected, kind):
    @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 1], name="pixels")])
    def serve(pixels):
        return {"scores": model(pixels, training=False)}

    source = {
        "concrete": serve.get_concrete_function(),
        "function": serve,
        "dictionary": {"classify": serve},
    }[kind]
    artifact = tflite_tools.convert(source)
    assert _signature_names(artifact) == ["classify" if kind == "dictionary" else "serving_default"]
    (spec,) = ModelRunner(artifact.content).inputs
    assert (spec.name, spec.shape) == ("pixels", (1, 6, 6, 1))
    np.testing.assert_allclose(tflite_tools.predict(artifact, images), expected, atol=1e-6)


def test_a_function_without_signature_is_refused():
    with pytest.raises(ConversionError, match="input_signature"):
        tflite_tools.convert(tf.function(lambda x: x))


def test_a_subclassed_model_without_known_inputs_says_what_to_do():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    with pytest.raises(ConversionError, match="no weights yet"):
        tflite_tools.convert(Own())
    built = Own()
    built(np.zeros((1, 3)))
    with pytest.raises(ConversionError, match=r"subclassed model.*tf\.function"):
        tflite_tools.convert(built)


def test_dictionary_inputs():
    ins = {"zeta": keras.Input((2,), name="zeta"), "alpha": keras.Input((2,), name="alpha")}
    out = keras.layers.Subtract()([ins["zeta"], ins["alpha"]])
    artifact = tflite_tools.convert(keras.Model(ins, out))
    got = tflite_tools.predict(artifact, {"zeta": np.full((1, 2), 5.0), "alpha": np.full((1, 2), 2.0)})
    np.testing.assert_array_equal(got, [[3.0, 3.0]])


def test_calibration_of_two_inputs_reaches_the_right_one():
    """The converter sorts inputs by name; a list of arrays in the model's order would be mixed up."""
    z, a = keras.Input((4,), name="z_first"), keras.Input((4,), name="a_second")
    model = keras.Model([z, a], keras.layers.Concatenate()([z, a]))
    rng = np.random.default_rng(0)
    small, large = rng.uniform(-1, 1, (30, 4)), rng.uniform(-100, 100, (30, 4))
    artifact = tflite_tools.convert(model, quantization="int8", calibration=[small, large])
    scales = {spec.name: spec.scale for spec in ModelRunner(artifact.content).inputs}
    # A concatenation shares one scale in its output; its inputs keep their own or take the output's.
    assert scales["a_second"] == pytest.approx(200 / 255, rel=0.05)
    assert scales["z_first"] <= scales["a_second"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_models_become_float32(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((6, 6, 1), name="image")
        x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
        x = keras.layers.Flatten()(x)
        mixed = keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy(before)
    images = np.random.default_rng(0).random((8, 6, 6, 1), dtype=np.float32)
    artifact = tflite_tools.convert(mixed)
    assert any("computes in float32" in note for note in artifact.notes)
    # bfloat16 keeps 8 bits of a number; the file's float32 is the more exact of the two.
    expected = mixed.predict(images, verbose=0)
    assert np.max(np.abs(tflite_tools.predict(artifact, images) - expected)) <= 0.03 * np.ptp(expected)


@pytest.mark.parametrize("isolate", [True, False])
def test_open_image_sizes(isolate):
    inputs = keras.Input((None, None, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(pooled))
    artifact = tflite_tools.convert(model)
    for size in (5, 9, 7):
        x = np.random.default_rng(size).random((6, size, size + 1, 1), dtype=np.float32)
        np.testing.assert_allclose(
            tflite_tools.predict(artifact, x, isolate=isolate), model.predict(x, verbose=0), atol=1e-6
        )


# --- several signatures ---


def test_several_signatures_of_a_keras_model(model, images, expected):
    features = keras.Model(model.inputs, model.get_layer("features").output)
    artifact = tflite_tools.convert(model, signatures={"classify": model, "features": features})
    assert _signature_names(artifact) == ["classify", "features"]
    np.testing.assert_allclose(
        tflite_tools.predict(artifact, images, signature="classify"), expected, atol=1e-6
    )
    np.testing.assert_allclose(
        tflite_tools.predict(artifact, images, signature="features", isolate=True),
        features.predict(images, verbose=0),
        atol=1e-6,
    )


def test_choosing_signatures_of_functions(images):
    def times(factor):
        return tf.function(lambda x: {"y": x * factor}, input_signature=[tf.TensorSpec([1, 2], name="x")])

    functions = {"double": times(2.0), "triple": times(3.0)}
    both = tflite_tools.convert(functions)
    x = np.ones((3, 2), "float32")
    assert tflite_tools.predict(both, x, signature="double")[0, 0] == 2.0
    assert tflite_tools.predict(both, x, signature="triple")[0, 0] == 3.0
    assert _signature_names(tflite_tools.convert(functions, signatures=["triple"])) == ["triple"]
    with pytest.raises(ValueError, match="Did you mean 'double'"):
        tflite_tools.convert(functions, signatures=["doubel"])


# --- state and loops ---


def _delay_line():
    class Delay(tf.Module):
        """Sums the last three frames."""

        def __init__(self):
            self.frames = tf.Variable(tf.zeros([1, 3, 2]), trainable=False)

        @tf.function(input_signature=[tf.TensorSpec([1, 1, 2], name="frame")])
        def step(self, frame):
            frames = tf.concat([self.frames[:, 1:], frame], axis=1)
            self.frames.assign(frames)
            return {"sum": tf.reduce_sum(frames, axis=1)}

    return Delay()


@pytest.mark.parametrize("quantization", [None, "dynamic", "float16", "int8"])
def test_streaming_models_keep_their_variables(quantization):
    module = _delay_line()
    x = np.random.default_rng(0).random((12, 1, 2)).astype("float32")
    calibration = np.tile(x, (4, 1, 1)) if quantization == "int8" else None
    artifact = tflite_tools.convert(module.step, quantization=quantization, calibration=calibration)
    # The variable is in the file, and what fills it at the start.
    assert {"CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"} <= set(
        tflite_tools.inspect(artifact).ops
    )
    padded = np.concatenate([np.zeros((2, 2)), x[:, 0]])
    expected = padded[:-2] + padded[1:-1] + padded[2:]
    # Three quantized frames of range 1 and a sum of range 3, each within half a step of 1/255 of its range,
    # and the variable's own half step; together under three steps of the sum.
    tolerance = 3 * 3 / 255 if quantization == "int8" else 1e-6
    np.testing.assert_allclose(tflite_tools.predict(artifact, x), expected, atol=tolerance)


def test_a_keras_layer_with_state_streams():
    class Counter(keras.layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(1, 1), initializer="zeros", trainable=False, name="count")

        def call(self, x):
            self.count.assign(self.count + x)
            return self.count + 0.0

    inputs = keras.Input((1,), batch_size=1)
    artifact = tflite_tools.convert(keras.Model(inputs, Counter()(inputs)))
    assert tflite_tools.predict(artifact, np.ones((4, 1))).ravel().tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Bidirectional"])
def test_recurrent_layers_are_unrolled_for_integers(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3))
    layers = keras.layers
    layer = layers.Bidirectional(layers.LSTM(2)) if kind == "Bidirectional" else getattr(layers, kind)(4)
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    x = np.random.default_rng(0).normal(size=(40, 5, 3)).astype("float32")
    expected = model.predict(x, verbose=0)
    artifact = tflite_tools.convert(model, quantization="int8", calibration=x)
    assert any("were unrolled" in note for note in artifact.notes)
    error = np.abs(tflite_tools.predict(artifact, x) - expected)
    assert error.max() <= 0.1 * np.ptp(expected)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)  # the caller's model is as it was
    assert getattr(layer, "unroll", False) is False


def test_a_loop_that_cannot_be_unrolled_is_refused():
    @tf.function(input_signature=[tf.TensorSpec([1, 3], name="x")])
    def loop(x):
        return {"y": tf.while_loop(lambda i, v: i < 4, lambda i, v: (i + 1, v * 1.5), (0, x))[1]}

    with pytest.raises(ConversionError, match="loops"):
        tflite_tools.convert(loop, quantization="int8", calibration=np.ones((20, 3)) * np.arange(20)[:, None])
    assert tflite_tools.convert(loop).size_bytes > 0


# --- preprocessing ---


def test_scaling_becomes_part_of_the_file(model, images, expected):
    raw = (images * 255).round().astype("uint8")
    reference = model.predict(raw / np.float32(255), verbose=0)
    artifact = tflite_tools.convert(model, include_preprocessing={"dtype": "uint8", "scale": 1 / 255})
    (spec,) = ModelRunner(artifact.content).inputs
    assert (spec.dtype, spec.shape) == ("uint8", (1, 6, 6, 1))
    np.testing.assert_allclose(tflite_tools.predict(artifact, raw), reference, atol=1e-5)
    assert tflite_tools.load(artifact.content).metadata["preprocessing"]["scale"] == pytest.approx(1 / 255)


def test_resizing_becomes_part_of_the_file(model):
    raw = np.random.default_rng(0).random((3, 9, 12, 1), dtype=np.float32)
    wanted = Preprocessing.from_mean_std(mean=0.5, std=0.25, size=(9, 12))
    artifact = tflite_tools.convert(model, include_preprocessing=wanted)
    small = (tf.image.resize(raw, (6, 6)).numpy() - 0.5) / 0.25
    np.testing.assert_allclose(
        tflite_tools.predict(artifact, raw), model.predict(small, verbose=0), atol=1e-5
    )


def test_preprocessing_per_channel_equals_numpy():
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    mean, std = [1.0, 2.0, 3.0], [2.0, 4.0, 8.0]
    artifact = tflite_tools.convert(model, include_preprocessing={"mean": mean, "std": std})
    x = np.random.default_rng(0).random((2, 2, 2, 3), dtype=np.float32)
    np.testing.assert_allclose(
        tflite_tools.predict(artifact, x), (x - np.array(mean)) / np.array(std), atol=1e-5
    )


def test_integer_file_with_preprocessing_takes_raw_pixels(model, images):
    raw = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 1)).astype("float32")
    reference = model.predict(raw / 255, verbose=0)
    artifact = tflite_tools.convert(
        model,
        quantization="int8",
        input_dtype="uint8",
        calibration=raw,
        include_preprocessing={"scale": 1 / 255},
    )
    (spec,) = ModelRunner(artifact.content).inputs
    assert spec.dtype == "uint8"
    assert 0 not in {kind for _, kind, _ in tensor_types(artifact.content)}  # no float32 left
    error = np.abs(tflite_tools.predict(artifact, raw.astype("uint8")) - reference)
    assert error.max() <= 0.1 * np.ptp(reference)


def test_preprocessing_problems_are_listed():
    with pytest.raises(ValueError, match=r"dtype.*interpolation.*size"):
        Preprocessing(dtype="int3", interpolation="cubic", size=(0, 3))
    with pytest.raises(ValueError, match="unknown fields"):
        tflite_tools.convert(keras.Sequential([keras.Input((2,))]), include_preprocessing={"scales": 1})


def test_the_converters_own_metadata_stay_beside_ours():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    artifact = tflite_tools.convert(model, metadata={"class_names": ["a", "b", "c"]})
    names = {entry.name for entry in tflite_tools.inspect(artifact).metadata}
    assert {"min_runtime_version", "CONVERSION_METADATA"} < names
