"""`convert` on models built here: every quantization, every kind of source."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.errors import ConversionError
from tflite_tools.file_facts import tensor_types
from tflite_tools.flatbuffer import model_table

FLOAT32, INT8 = 0, 9  # TensorType numbers of the schema


def _images(count=40, seed=0):
    return np.random.default_rng(seed).random((count, 12, 12, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def convnet():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 12, 2), name="image")
    x = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="convnet")


@pytest.fixture(scope="module")
def images():
    return _images()


def _input_shapes(artifact):
    return [tuple(t.vector(0, "int32")) for g in model_table(artifact.content).tables(2) for t in _io(g, 1)]


def _io(graph, field):
    tensors = list(graph.tables(0))
    return [tensors[k] for k in graph.vector(field, "int32")]


def _io_types(artifact):
    graph = next(model_table(artifact.content).tables(2))
    return [t.integer(1, "int8") for field in (1, 2) for t in _io(graph, field)]


# Largest difference in units of the outputs' spread. float32 differs by rounding; float16 keeps 11 bits
# of the weights;
# int8 has 256 steps for every activation, whose errors add up over four layers; int16x8 has int8 weights.
@pytest.mark.parametrize(
    ("quantization", "tolerance"),
    [(None, 1e-5), ("float16", 5e-3), ("dynamic", 0.05), ("int8", 0.08), ("int16x8", 0.05)],
)
def test_outputs_follow_the_keras_model(convnet, images, quantization, tolerance):
    calibration = images if quantization in ("int8", "int16x8") else None
    artifact = tflite_tools.convert(convnet, quantization=quantization, calibration=calibration)
    expected = convnet.predict(images, verbose=0)
    measured = tflite_tools.predict(artifact, images)
    assert np.max(np.abs(measured - expected)) <= tolerance * np.ptp(expected)
    assert _input_shapes(artifact) == [(1, 12, 12, 2)]


def test_int8_file_is_integer_throughout(convnet, images):
    artifact = tflite_tools.convert(convnet, quantization="int8", calibration=images)
    assert FLOAT32 not in {kind for _, kind, _ in tensor_types(artifact.content)}
    assert _io_types(artifact) == [INT8, INT8]


def test_int8_file_with_float_inputs(convnet, images):
    artifact = tflite_tools.convert(convnet, quantization="int8", calibration=images, input_dtype="float32")
    assert _io_types(artifact) == [FLOAT32, FLOAT32]
    kinds = [kind for _, kind, _ in tensor_types(artifact.content)]
    assert kinds.count(FLOAT32) == 2  # the input and the output, and nothing between them


def test_open_and_other_batch_sizes(convnet, images):
    eight = tflite_tools.convert(convnet, batch_size=8)
    assert _input_shapes(eight) == [(8, 12, 12, 2)]
    open_batch = tflite_tools.convert(convnet, batch_size=None)
    expected = convnet.predict(images[:11], verbose=0)
    for artifact in (eight, open_batch):
        # 11 examples: not a multiple of 8, so the last batch is filled up and cut again.
        np.testing.assert_allclose(tflite_tools.predict(artifact, images[:11]), expected, atol=1e-6)


def test_same_model_gives_the_same_bytes(convnet, images):
    first, second = (tflite_tools.convert(convnet, quantization="int8", calibration=images) for _ in range(2))
    assert first == second and first.sha256 == second.sha256


def test_provenance_survives_saving(convnet, images, tmp_path):
    artifact = tflite_tools.convert(
        convnet, quantization="int8", calibration=images, metadata={"class_names": list("abcd"), "seed": 3}
    )
    loaded = tflite_tools.load(artifact.save(tmp_path / "m.tflite"))
    assert loaded.provenance == artifact.provenance
    assert loaded.class_names == ("a", "b", "c", "d") and loaded.provenance["seed"] == 3
    assert loaded.provenance["calibration"]["serving_default"]["examples"] == 40
    assert loaded.provenance["versions"]["tensorflow"] == tf.__version__


def test_weights_digest_changes_with_one_weight(convnet):
    before = tflite_tools.convert(convnet).provenance["weights_sha256"]
    bias = convnet.get_layer("logits").bias
    bias.assign_add([0.0, 0.0, 0.0, 1e-3])
    try:
        assert tflite_tools.convert(convnet).provenance["weights_sha256"] != before
    finally:
        bias.assign_add([0.0, 0.0, 0.0, -1e-3])


def test_metadata_false_embeds_nothing(convnet):
    artifact = tflite_tools.convert(convnet, metadata=False)
    assert tflite_tools.load(artifact.content).provenance == {}
    assert artifact.provenance["quantization"] == "float32"


def test_arguments_are_checked_before_any_work(convnet, images):
    with pytest.raises(ValueError, match="Did you mean 'int8'"):
        tflite_tools.convert(convnet, quantization="int88")
    with pytest.raises(ValueError, match="needs calibration data"):
        tflite_tools.convert(convnet, quantization="int8")
    with pytest.raises(ValueError, match="only quantization='int8'"):
        tflite_tools.convert(convnet, quantization="float16", calibration=images)
    with pytest.raises(ValueError, match="can be float32"):
        tflite_tools.convert(convnet, input_dtype="int8")
    with pytest.raises(ValueError, match="batch_size"):
        tflite_tools.convert(convnet, batch_size=0)
    with pytest.raises(TypeError, match=r"SavedModel folder.*\.keras"):
        tflite_tools.convert(3)


def test_unsupported_operator_names_the_layer():
    class Gamma(keras.layers.Layer):
        def call(self, x):
            return tf.math.igamma(x, x)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Gamma(name="odd_one")(inputs)))
    with pytest.raises(ConversionError, match=r"no operator for Igamma.*'odd_one'") as caught:
        tflite_tools.convert(model)
    assert caught.value.layers == ("odd_one",) and caught.value.operators == ("Igamma",)
    assert "neither a custom op" in caught.value.log


def test_converter_output_does_not_reach_the_console(convnet, images, capfd):
    tflite_tools.convert(convnet, quantization="int8", calibration=images)
    printed = capfd.readouterr()
    assert printed.out == "" and "fully_quantize" not in printed.err


def test_a_model_too_small_for_dynamic_quantization_says_so(convnet):
    (note,) = tflite_tools.convert(convnet, quantization="dynamic").notes
    assert "changed nothing" in note and "1024" in note
    inputs = keras.Input((64,))
    large = keras.Model(inputs, keras.layers.Dense(64)(inputs))
    assert tflite_tools.convert(large, quantization="dynamic").notes == ()


def test_notes_are_empty_for_a_plain_model(convnet):
    assert tflite_tools.convert(convnet).notes == ()
