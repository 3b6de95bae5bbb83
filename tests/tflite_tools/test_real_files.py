"""Files that other people made: each that can run runs, each that cannot says why."""

import pathlib
import re
import tarfile
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tflite_tools
from tflite_tools.errors import UnsupportedModelError
from tflite_tools.interpreter import open_runner

# The reason that the error must give, for every file of the collection that cannot run here.
REASONS = {
    "coral_posenet_mobilenet_v1_075_353_481_16_quant_decoder": r"custom operators \(PosenetDecoderOp\)",
    "coral_split_concat_edgetpu": "compiled for a Coral Edge TPU",
    "tflm_audio_preprocessor_float": r"custom operators \(SignalWindow",
    "tflm_transpose_conv0": "TRANSPOSE_CONV",
    "tfls_test_model_nl_classifier_bool_output": "CUSTOM_OP_STRING_TO_BOOLS",
    "tfls_whitespace_tokenizer_flex_delegate": "TensorFlow's own kernels.*FlexUnicodeDecodeWithOffsets",
    "tfls_whitespace_tokenizer_to_ragged_2d_input": "tftext:WhitespaceTokenizer",
    "tfls_wiki40b-lm-en": "TensorFlow's own kernels.*FlexSentencepieceOp",
}


def _example_inputs(inputs, count, rng):
    """Random inputs of every type, `count` examples each."""
    feeds = {}
    for spec in inputs:
        shape = (count, *[size if size > 0 else 2 for size in spec.shape[1:]])
        if spec.dtype == "string":
            feeds[spec.name] = np.full(shape, "some words to read", dtype=object)
        elif spec.dtype.startswith("float"):
            feeds[spec.name] = rng.normal(size=shape).astype(spec.dtype)
        elif spec.dtype in ("int8", "uint8", "int16"):
            limits = np.iinfo(spec.dtype)
            feeds[spec.name] = rng.integers(limits.min, limits.max, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = rng.integers(0, 4, shape).astype(spec.dtype)  # token numbers
    return feeds


def _run(path):
    artifact = tflite_tools.load(path)
    runner = open_runner(artifact, "auto", {})
    inputs = runner.inputs
    runner.close()
    outputs = tflite_tools.predict(artifact, _example_inputs(inputs, 3, np.random.default_rng(0)))
    named = outputs if isinstance(outputs, dict) else {"output": outputs}
    assert all(len(values) == 3 for values in named.values()), {k: np.shape(v) for k, v in named.items()}
    return named


@pytest.mark.slow
def test_every_file_runs_or_says_why_not(shared_data):
    files = sorted(
        [*(shared_data / "mlperf_tiny").glob("*.tflite"), *(shared_data / "tflite_zoo").glob("*.tflite")]
    )
    assert len(files) >= 50
    unexpected, ran = [], 0
    for path in files:
        try:
            _run(path)
            ran += 1
            if path.stem in REASONS:
                unexpected.append(f"{path.name} ran")
        except UnsupportedModelError as error:
            reason = REASONS.get(path.stem)
            if reason is None or not re.search(reason, str(error)):
                unexpected.append(f"{path.name}: {error}")
    assert unexpected == []
    assert ran == len(files) - len(REASONS)


@pytest.mark.parametrize(
    "name",
    ["tflm_hello_world_int8", "mp_3in3out_model_swaps_input_2_and_0", "tfls_dilated_conv", "tflm_conv10"],
)
def test_some_files_run(shared_data, name):
    _run(shared_data / "tflite_zoo" / f"{name}.tflite")


def test_hello_world_computes_a_sine(shared_data):
    x = np.linspace(0, 2 * np.pi, 50).reshape(-1, 1)
    for name in ("tflm_hello_world_float", "tflm_hello_world_int8"):
        y = tflite_tools.predict(tflite_tools.load(shared_data / "tflite_zoo" / f"{name}.tflite"), x)
        # TensorFlow's tutorial model is a rough sine; its own documentation shows errors of this size.
        assert np.max(np.abs(y - np.sin(x))) < 0.25


def test_person_detection_on_its_two_pictures(shared_data):
    pytest.importorskip("PIL")
    from PIL import Image

    artifact = tflite_tools.load(shared_data / "mlperf_tiny" / "vww_96_int8.tflite")
    folder = shared_data / "tflite_zoo"
    pictures = []
    for name in ("tflm_person.bmp", "tflm_no_person.bmp"):
        pixels = np.asarray(Image.open(folder / name).convert("RGB").resize((96, 96)), np.float32) / 255
        pictures.append(pixels)
    probabilities = tflite_tools.predict(artifact, np.stack(pictures))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1 / 128)
    # Class 1 is "person"; the picture with a person must be the more likely one to show one.
    assert probabilities[0, 1] > probabilities[1, 1]


def test_autoencoders_agree_on_the_reference_sample(shared_data):
    folder = shared_data / "mlperf_tiny"
    path = folder / "ad01_sample_normal_id_01_00000000_hist_librosa.bin"
    frames = np.fromfile(path, "<f4").reshape(-1, 640)
    losses = {}
    for name in ("ad01_fp32", "ad01_dynamic_range", "ad01_int8", "ad01_fullint_floatio"):
        result = tflite_tools.evaluate(folder / f"{name}.tflite", frames)
        assert result.task == "reconstruction" and result.num_examples == len(frames)
        losses[name] = result.loss
    # A normal sample: int8 reconstructs it nearly as well as float32 (MLPerf Tiny accepts either for its AUC).
    assert losses["ad01_int8"] == pytest.approx(losses["ad01_fp32"], rel=0.25)
    assert losses["ad01_dynamic_range"] == pytest.approx(losses["ad01_fp32"], rel=0.1)
    assert losses["ad01_fullint_floatio"] == pytest.approx(losses["ad01_int8"], rel=0.1)


@pytest.fixture(scope="session")
def cifar10_jpeg_test(shared_data):
    """All 10,000 test images, classes in alphabetical order."""
    images, labels = [], []
    with tarfile.open(shared_data / "cifar10_jpeg" / "test.tar.xz") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
        classes = sorted({pathlib.PurePath(member.name).parent.name for member in members})
        for member in members:
            handle = archive.extractfile(member)
            assert handle is not None
            image = tf.io.decode_jpeg(handle.read(), channels=3, dct_method="INTEGER_ACCURATE")
            images.append(image.numpy())
            labels.append(classes.index(pathlib.PurePath(member.name).parent.name))
    return np.stack(images), np.array(labels), classes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "accuracy"), [("pretrainedResnet", 0.755), ("pretrainedResnet_quant", 0.754)]
)
def test_resnet8_reproduces_its_accuracy(shared_data, cifar10_jpeg_test, name, accuracy):
    images, labels, classes = cifar10_jpeg_test
    path = shared_data / "mlperf_tiny" / f"{name}.tflite"
    result = tflite_tools.evaluate(path, images.astype("float32"), labels, class_names=classes)
    assert result.num_examples == 10_000 and result.from_logits is False
    # Published to one decimal of a percent.
    assert result.accuracy == pytest.approx(accuracy, abs=0.0005)
    assert sum(map(sum, result.confusion)) == 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ad01", "kws_ref_model", "pretrainedResnet", "vww_96", "str_ww_ref_model"])
def test_mlperf_tiny_models_convert(shared_data, name):
    """The reference models themselves, through int8 with input-shaped data, against the model in TensorFlow."""
    folder = shared_data / "mlperf_tiny"
    if name == "kws_ref_model":
        source = folder / "kws_ref_model"
        function = tf.saved_model.load(str(source)).signatures["serving_default"]
        (spec,) = function.structured_input_signature[1].values()
        shape = tuple(spec.shape[1:])
        (key,) = function.structured_input_signature[1]

        def reference(x):
            return next(iter(function(**{key: tf.constant(x)}).values())).numpy()
    else:
        tf_keras = pytest.importorskip("tf_keras")
        source = tf_keras.models.load_model(folder / f"{name}.h5", compile=False)
        shape = source.input_shape[1:]

        def reference(x):
            return source.predict(x, verbose=0)

    rng = np.random.default_rng(0)
    x = (rng.random((32, *shape)) * (255 if name == "pretrainedResnet" else 1)).astype("float32")
    if name == "ad01":  # its BatchNormalization remembers decibels, and refuses values from 0 to 1
        x = np.fromfile(folder / "ad01_sample_normal_id_01_00000000_hist_librosa.bin", "<f4").reshape(
            -1, 640
        )[:32]
    expected = reference(x)
    float_file = tflite_tools.convert(source)
    np.testing.assert_allclose(
        tflite_tools.predict(float_file, x), expected, atol=1e-3 * max(1.0, np.ptp(expected))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random data are not what these models were trained on
        int8_file = tflite_tools.convert(source, quantization="int8", calibration=x)
    result = tflite_tools.compare(float_file, int8_file, x)
    assert result.mean_error < 0.1 * np.ptp(expected)
    # A quarter for the weights; what is not weights (names, shapes, scales) stays.
    assert int8_file.size_bytes < 0.55 * float_file.size_bytes
