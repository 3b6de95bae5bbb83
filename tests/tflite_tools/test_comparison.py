"""`compare`: outputs and layers."""

import keras
import numpy as np
import pytest

import tflite_tools
from tflite_tools.comparison import ComparisonResult
from tflite_tools.layer_errors import LayerError, short_name, worst_layer


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).random((60, 8, 8, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def fragile():
    """The middle convolution gives one channel a range 2,000 times that of the others: int8 loses those."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 2), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu", name="solid")(inputs)
    y = keras.layers.Conv2D(4, 3, activation="relu", name="broken", bias_initializer="ones")(y)
    y = keras.layers.Conv2D(4, 3, activation="relu", name="after")(y)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(y)))
    kernel, bias = model.get_layer("broken").get_weights()
    kernel[..., 0] *= 2000.0
    bias[0] = 1000.0
    model.get_layer("broken").set_weights([kernel, bias])
    following, bias = model.get_layer("after").get_weights()
    following[:, :, 0] /= 20_000.0  # the float model itself hardly looks at the loud channel
    model.get_layer("after").set_weights([following, bias])
    return model


def _scaled(factor):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Rescaling(factor)(inputs))


def test_figures_by_hand():
    x = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]], "float32")
    result = tflite_tools.compare(_scaled(1.0), tflite_tools.convert(_scaled(1.1)), x)
    assert result.top1_agreement == 1.0
    assert result.max_error == pytest.approx(0.4, rel=1e-5)
    assert result.mean_error == pytest.approx(0.25, rel=1e-5)
    assert result.sqnr_db == pytest.approx(20.0, abs=1e-4)
    opposite = tflite_tools.compare(_scaled(1.0), tflite_tools.convert(_scaled(-1.0)), x)
    assert opposite.top1_agreement == 0.0


@pytest.mark.parametrize("kind", ["model", "artifact", "path", "callable"])
def test_every_kind_of_reference(kind, tmp_path):
    model = _scaled(2.0)
    artifact = tflite_tools.convert(model)
    reference = {
        "model": model,
        "artifact": artifact,
        "path": artifact.save(tmp_path / "m.tflite"),
        "callable": lambda values: 2.0 * values,
    }[kind]
    result = tflite_tools.compare(reference, artifact, np.ones((3, 4), "float32"))
    assert result.max_error == 0.0 and result.sqnr_db is None and result.num_examples == 3


def test_outputs_are_paired_by_name_then_by_shape():
    a = keras.Input((3,))
    outputs = {"small": keras.layers.Dense(2, name="s")(a), "large": keras.layers.Dense(5, name="l")(a)}
    model = keras.Model(a, outputs)
    x = np.random.default_rng(0).random((6, 3), dtype=np.float32)
    artifact = tflite_tools.convert(model)
    named = tflite_tools.compare(model, artifact, x)
    assert {o.name: o.shape for o in named.outputs} == {"small": (2,), "large": (5,)}
    assert all(o.max_error < 1e-5 for o in named.outputs)
    listed = tflite_tools.compare(
        lambda v: [np.asarray(model(v)[k]) for k in ("large", "small")], artifact, x
    )
    assert all(o.max_error < 1e-5 for o in listed.outputs)


def test_unequal_shapes_are_refused():
    artifact = tflite_tools.convert(_scaled(1.0))
    with pytest.raises(ValueError, match=r"\(2, 3\) and the file \(2, 4\)"):
        tflite_tools.compare(lambda v: v[:, :3], artifact, np.ones((2, 4), "float32"))


@pytest.mark.parametrize("reference", ["model", "file"])
def test_layers_find_the_one_that_quantization_broke(fragile, x, reference):
    artifact = tflite_tools.convert(fragile, quantization="int8", calibration=x)
    other = fragile if reference == "model" else tflite_tools.convert(fragile)
    result = tflite_tools.compare(other, artifact, x, layers=True)
    layers = {short_name(layer.name).removesuffix("_1"): layer for layer in result.layers}
    assert {"solid", "broken", "after"} <= set(layers)
    assert [layer.operator for layer in result.layers].count("CONV_2D") == 3
    assert layers["solid"].sqnr_db > 30
    assert result.worst_layer is layers["broken"]
    # Its quiet channels vanish between the steps of the loud one, and the layer that uses them shows it.
    assert layers["broken"].lost_db > 10 and layers["after"].lost_db > 10
    assert layers["after"].sqnr_db < 10
    assert "broken" in str(result) and "loses most" in str(result)


def test_isolated_layers_equal_direct_ones(fragile, x):
    artifact = tflite_tools.convert(fragile, quantization="int8", calibration=x)
    reference = tflite_tools.convert(fragile)
    direct = tflite_tools.compare(reference, artifact, x, layers=True, isolate=False)
    isolated = tflite_tools.compare(reference, artifact, x, layers=True, isolate=True)
    assert direct.layers == isolated.layers


def test_layers_need_a_model_or_a_file(fragile, x):
    with pytest.raises(TypeError, match="plain function"):
        tflite_tools.compare(fragile.predict_on_batch, tflite_tools.convert(fragile), x, layers=True)


def test_plot(fragile, x, tmp_path):
    pytest.importorskip("matplotlib")
    artifact = tflite_tools.convert(fragile, quantization="int8", calibration=x)
    result = tflite_tools.compare(fragile, artifact, x, layers=True)
    path = result.plot(tmp_path / "layers.svg")
    text = path.read_text()
    assert "<svg" in text and path.stat().st_size > 2000
    with pytest.raises(ValueError, match="layers=True"):
        tflite_tools.compare(fragile, artifact, x).plot(tmp_path / "none.png")


def test_result_round_trips(fragile, x):
    artifact = tflite_tools.convert(fragile, quantization="int8", calibration=x)
    result = tflite_tools.compare(fragile, artifact, x, layers=True)
    assert ComparisonResult.from_dict(result.to_dict()) == result
    assert result.sha256 == artifact.sha256


def test_worst_layer_of_rows():
    rows = tuple(
        LayerError(name, "ADD", 30.0, 0.1, 0.1, lost) for name, lost in (("a", None), ("b", 2.0), ("c", -9.0))
    )
    assert worst_layer(rows).name == "b"
    assert worst_layer(rows[:1]) is None
