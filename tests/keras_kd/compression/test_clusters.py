"""Clusters, alone and after pruning, through quantization-aware training and into the file."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_kd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Conv2D(12, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm2"),
            layers.ReLU(name="relu2"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(name="flat"),
            layers.Dense(16, activation="relu", name="dense"),
            layers.Dense(4, name="last"),
        ]
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(128, 12, 12, 3)).astype("float32"), rng.integers(0, 4, 128)


def int8_kernels(artifact):
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    details = interpreter.get_tensor_details()
    return {
        tuple(d["shape"]): interpreter.get_tensor(d["index"])
        for d in details
        if d["dtype"] == np.int8 and d["shape"][:1].tolist() != [1] and len(d["shape"]) > 1
    }


@pytest.mark.parametrize("name", ["cluster6-int8", "prune50-cluster6-int8"])
def test_clusters_and_zeros_reach_the_file(name, student, data):
    compressed = keras_kd.compress(student, name, *data, loss=LOSS, epochs=2, verbose=0)
    rows = {row.name: row for row in compressed.report.layers}
    kernels = int8_kernels(compressed.to_tflite())
    for layer, shape in (("conv", (12, 3, 3, 8)), ("dense", (16, 12 * 36))):
        assert rows[layer].clusters_asked == 6
        assert rows[layer].clusters <= 6
        # Scales are per output channel in a convolution, so that values are counted there.
        found = max(len(np.unique(channel)) for channel in kernels[shape])
        assert found <= 6
        zeros = (kernels[shape] == 0).sum()
        if name.startswith("prune"):
            assert zeros >= 0.5 * kernels[shape].size - 1
    assert any("not clustered: first or last" in reason for reason in rows["first"].reasons)
    assert len(np.unique(kernels[(4, 16)])) > 6
    assert set(compressed.report.history) == {"cluster", "quantize"} | (
        {"prune"} if "prune" in name else set()
    )


def test_clusters_are_trained_in_quantization_aware_training(student, data):
    """The values of the clusters move, while weights that were equal stay equal."""
    compressed = keras_kd.compress(
        student, "cluster6-int8", *data, loss=LOSS, optimizer=keras.optimizers.Adam(1e-2), verbose=0
    )
    before = next(layer for layer in compressed.float_model.layers if layer.name == "dense").get_weights()[0]
    wrapper = next(layer for layer in compressed.model.layers if layer.name == "quant_dense")
    after = next(w for w in wrapper.weights if w.name.endswith("kernel:0")).numpy()
    pairs = set(zip(before.ravel().tolist(), after.ravel().tolist()))
    assert len(pairs) == len(np.unique(before))
    assert any(abs(old - new) > 1e-4 for old, new in pairs)


def test_what_tfmot_does_not_cluster_is_named(data):
    layers = keras.layers
    student = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(4, 3),
            layers.Conv2D(1, 1, name="tiny"),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    report = keras_kd.compress(student, "cluster8", *data, loss=LOSS, verbose=0).report
    row = next(row for row in report.layers if row.name == "tiny")
    assert row.clusters is None and "no more weights than the 8 clusters" in row.reasons[0]


def test_two_clusters_and_pruning_exclude_each_other():
    with pytest.raises(ValueError, match="3 or more"):
        keras_kd.CompressionRecipe(keras_kd.Pruning(), keras_kd.Clustering(2))
