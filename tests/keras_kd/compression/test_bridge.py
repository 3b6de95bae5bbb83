"""The bridge on whole graphs: structure, names, sharing, errors, weights back."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers as L

from keras_kd.compression.bridge import bridge_report, copy_weights_back, to_tf_keras
from keras_kd.compression.bridge_build import GraphBuilder
from keras_kd.compression.bridge_errors import BridgeParityError, UnsupportedLayerError
from keras_kd.compression.bridge_parity import relative_difference
from keras_kd.compression.bridge_rules import rule_finder


def randomize(model, seed=0):
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 1.2, w.shape).astype(w.dtype) for w in model.get_weights()])


def squeeze_and_excite(x, name):
    gate = L.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(x)
    gate = L.Conv2D(2, 1, activation="relu", name=f"{name}_down")(gate)
    gate = L.Conv2D(x.shape[-1], 1, activation="hard_sigmoid", name=f"{name}_up")(gate)
    return L.Multiply(name=f"{name}_scale")([x, gate])


def residual_student():
    inputs = keras.Input((16, 16, 3), name="pixels")
    x = L.Rescaling(1 / 127.5, offset=-1, name="scaling")(inputs)
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = stem = L.BatchNormalization(name="stem_bn")(x)
    x = L.BatchNormalization(name="pre")(x)
    x = L.Activation("hard_silu", name="act")(x)
    x = squeeze_and_excite(x, "se")
    x = L.Add(name="sum")([stem, x])
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(5, name="head")(x), name="residual")


def predictions_agree(model, bridged, inputs):
    ours = bridged(inputs, training=False)
    theirs = model(inputs, training=False)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), theirs, ours
    )


def test_residual_and_squeeze_excite_graph():
    model = residual_student()
    randomize(model)
    bridged = to_tf_keras(model)
    assert isinstance(bridged, tf_keras.Model)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    predictions_agree(model, bridged, np.random.default_rng(3).normal(size=(4, 16, 16, 3)).astype("float32"))


def test_layer_names_are_those_of_the_student():
    report = bridge_report(to_tf_keras(residual_student()))
    assert report.layer_names["stem"] == ("stem",)
    assert report.layer_names["se_up"] == ("se_up", "se_up/hard_sigmoid_shift", "se_up/hard_sigmoid")
    assert report.output_layer("se_up") == "se_up/hard_sigmoid"
    # The BatchNormalization that follows no convolution gets one, so that TF-MOT can fold it.
    assert report.layer_names["pre"] == ("pre/channels", "pre")
    assert report.weight_layers["pre"] == ("pre",)
    assert report.layer_names["stem_bn"] == ("stem_bn",)
    assert "sum" not in report.weight_layers


def test_batch_normalization_read_by_two_layers_before_it_is_not_folded():
    inputs = keras.Input((4, 4, 3))
    conv = L.Conv2D(3, 1, name="conv")(inputs)
    model = keras.Model(inputs, L.Add()([conv, L.BatchNormalization(name="bn")(conv)]))
    assert bridge_report(to_tf_keras(model)).layer_names["bn"] == ("bn/channels", "bn")


def test_shared_layer_stays_shared():
    shared = L.Dense(3, activation="gelu", name="shared")
    first, second = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([first, second], L.Add()([shared(first), shared(second)]))
    randomize(model)
    bridged = to_tf_keras(model)
    assert len(bridged.weights) == 2
    assert len(bridged.get_layer("shared").inbound_nodes) == 2


def test_shared_layer_without_weights_gets_one_range_per_call():
    relu = L.ReLU(name="relu")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, relu(L.Dense(4)(relu(inputs))))
    assert bridge_report(to_tf_keras(model)).layer_names["relu"] == ("relu", "relu_1")


def test_nested_models_become_paths_and_may_be_called_twice():
    block = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(3, 3, padding="same", name="conv")], name="block"
    )
    inner_input = keras.Input((8, 8, 3))
    inner = keras.Model(inner_input, [block(inner_input), L.ReLU(name="relu")(inner_input)], name="inner")
    inputs = keras.Input((8, 8, 3))
    first, second = inner(inputs)
    third, fourth = inner(second)
    # Outputs of both calls: the second call's must not be taken for the first one's.
    model = keras.Model(inputs, [first, third, fourth])
    randomize(model)
    bridged = to_tf_keras(model)
    assert set(bridge_report(bridged).layer_names) == {"inner/block/conv", "inner/relu"}
    assert len(bridged.weights) == 2
    predictions_agree(model, bridged, np.random.default_rng(3).normal(size=(2, 8, 8, 3)).astype("float32"))


def test_nested_model_as_the_output_of_the_outer_one():
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, L.Dense(3)(inner_input), name="inner")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [inner(inputs), inner(L.ReLU()(inputs))])
    randomize(model)
    predictions_agree(model, to_tf_keras(model), np.linspace(-1, 1, 8, dtype="float32").reshape(2, 4))


def test_several_inputs_and_outputs_by_name():
    image, flag = keras.Input((8, 8, 1), name="image"), keras.Input((3,), name="flag")
    x = L.Flatten()(L.Conv2D(2, 3)(image))
    both = L.Concatenate()([x, flag])
    model = keras.Model({"image": image, "flag": flag}, {"kind": L.Dense(4)(both), "size": L.Dense(1)(both)})
    randomize(model)
    bridged = to_tf_keras(model)
    generator = np.random.default_rng(0)
    x = {"image": generator.normal(size=(2, 8, 8, 1)), "flag": generator.normal(size=(2, 3))}
    x = {key: value.astype("float32") for key, value in x.items()}
    predictions_agree(model, bridged, x)
    assert set(bridged(x)) == {"kind", "size"}


def test_training_false_inside_the_graph_is_kept():
    inputs = keras.Input((6, 6, 2))
    normalized = L.BatchNormalization(name="bn")(L.Conv2D(2, 1)(inputs), training=False)
    model = keras.Model(inputs, normalized)
    bridged = to_tf_keras(model)
    before = bridged.get_layer("bn").moving_mean.numpy()
    bridged(np.full((4, 6, 6, 2), 5.0, "float32"), training=True)
    np.testing.assert_array_equal(bridged.get_layer("bn").moving_mean.numpy(), before)


def test_frozen_layers_stay_frozen():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="frozen"), L.Dense(2)])
    model.get_layer("frozen").trainable = False
    assert len(to_tf_keras(model).trainable_weights) == 2


def test_regularizers_and_constraints_come_along():
    layer = L.Dense(
        2, kernel_regularizer=keras.regularizers.L2(0.5), kernel_constraint="non_neg", use_bias=False
    )
    model = keras.Sequential([keras.Input((2,)), layer])
    model.set_weights([np.ones((2, 2))])
    bridged = to_tf_keras(model)
    assert float(sum(bridged.losses)) == pytest.approx(0.5 * 4)
    assert isinstance(bridged.layers[-1].kernel_constraint, tf_keras.constraints.NonNeg)


class Doubler(L.Layer):
    def call(self, x):
        return 2 * x


class MyDense(L.Dense):
    pass


def test_all_unknown_layers_are_named_at_once():
    inner = keras.Sequential([keras.Input((4,)), Doubler(name="double")], name="inner")
    model = keras.Sequential(
        [keras.Input((4,)), inner, MyDense(3, name="mine"), L.Dense(3, activation=lambda x: x, name="odd")]
    )
    with pytest.raises(UnsupportedLayerError) as raised:
        to_tf_keras(model)
    assert isinstance(raised.value, ValueError)
    assert [(path, kind) for path, kind, _ in raised.value.layers] == [
        ("inner/double", "Doubler"),
        ("mine", "MyDense"),
        ("odd", "Dense"),
    ]
    for text in ("inner/double (Doubler)", "mine (MyDense)", "odd (Dense)", "rules="):
        assert text in str(raised.value)


def test_custom_rule_with_weights_there_and_back():
    model = keras.Sequential([keras.Input((4,)), MyDense(3, name="mine"), Doubler(name="double")])
    randomize(model)
    rules = {
        MyDense: lambda layer, name: tf_keras.layers.Dense(layer.units, name=name),
        Doubler: lambda layer, name: tf_keras.layers.Rescaling(2.0, name=name),
    }
    bridged = to_tf_keras(model, rules=rules)
    predictions_agree(model, bridged, np.ones((1, 4), "float32"))
    bridged.set_weights([np.full((4, 3), 7.0), np.full((3,), 8.0)])
    copy_weights_back(bridged, model, rules=rules)
    assert model.get_weights()[0][0, 0] == 7.0
    assert model.get_weights()[1][0] == 8.0


def test_a_wrong_rule_is_caught_and_its_layer_named():
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), Doubler(name="double"), L.Dense(2)])
    randomize(model)
    rules = {Doubler: lambda layer, name: tf_keras.layers.Rescaling(2.1, name=name)}
    with pytest.raises(BridgeParityError, match="first layer that differs is 'double'"):
        to_tf_keras(model, rules=rules)


def test_the_check_feeds_what_the_model_expects():
    """Sine and line are one near 0, where random values divided by 255 lie."""
    model = keras.Sequential([keras.Input((4,)), L.Rescaling(1 / 255.0), Doubler(name="double")])
    rules = {Doubler: lambda _, name: tf_keras.layers.Activation(lambda x: 2.0 * tf.sin(x), name=name)}
    with pytest.raises(BridgeParityError, match="first layer that differs is 'double'"):
        to_tf_keras(model, rules=rules)


def test_a_network_that_amplifies_rounding_is_said_to():
    inputs = keras.Input((4,))
    wild = keras.Model(inputs, keras.ops.sin(1e5 * Doubler(name="double")(inputs)))
    rules = {Doubler: lambda _, name: tf_keras.layers.Rescaling(2.1, name=name)}
    with pytest.raises(BridgeParityError, match=r"double.*The original differs from itself by .* rounding"):
        to_tf_keras(wild, rules=rules)
    tame = keras.Sequential([keras.Input((4,)), Doubler(name="double")])
    with pytest.raises(BridgeParityError, match=r"by 0\.05\.$"):
        to_tf_keras(tame, rules=rules)


def pixels(*layers):
    return keras.Sequential([keras.Input((4, 4, 3)), *layers, L.Conv2D(2, 1)])


STATISTICS = {"mean": [0.4, 0.5, 0.6], "variance": [0.04, 0.01, 0.0025]}
UNITS = {
    "rescaling": (lambda x: L.Rescaling(1 / 127.5, -1.0)(x), 1 / 127.5, -1.0),
    "operators": (lambda x: x / 127.5 - 1.0, 1 / 127.5, -1.0),
    "number first": (lambda x: 0.5 + 2.0 * x, 2.0, 0.5),
    "nested": (lambda x: pixels(L.Rescaling(1 / 255.0))(x), 1 / 255, 0.0),
    "statistics": (lambda x: L.Normalization(**STATISTICS)(x), [5, 10, 20], [-2, -5, -12]),
    "both": (lambda x: L.Normalization(**STATISTICS)(L.Rescaling(0.1)(x)), [0.5, 1, 2], [-2, -5, -12]),
    "none": (lambda x: L.Conv2D(2, 1)(x), 1.0, 0.0),
    "two readers": (lambda x: L.Concatenate()([x, L.Rescaling(0.1)(x)]), 1.0, 0.0),
    "by itself": (lambda x: x * x, 1.0, 0.0),
}


@pytest.mark.parametrize("case", UNITS)
def test_units_of_inputs(case):
    build, scale, shift = UNITS[case]
    inputs = keras.Input((4, 4, 3))
    builder = GraphBuilder(keras.Model(inputs, build(inputs)), rule_finder(None))
    builder.build()
    found = builder.units.of(0)
    # Variances are kept in float32.
    np.testing.assert_allclose(np.squeeze(found[0]), scale, rtol=1e-6)
    np.testing.assert_allclose(np.squeeze(found[1]), shift, rtol=1e-6)


def test_a_rule_with_other_weights_is_refused():
    model = keras.Sequential([keras.Input((4,)), MyDense(3, name="mine")])
    rules = {MyDense: lambda layer, name: tf_keras.layers.Dense(5, name=name)}
    with pytest.raises(UnsupportedLayerError, match=r"\(4, 3\)"):
        to_tf_keras(model, rules=rules)


def test_weights_come_back_from_a_clone():
    model = residual_student()
    bridged = to_tf_keras(model)
    clone = tf_keras.models.clone_model(bridged)
    values = [np.full(weight.shape, 2.0) for weight in bridged.get_weights()]
    clone.set_weights(values)
    copy_weights_back(clone, model)
    assert all(np.all(weight == 2.0) for weight in model.get_weights())


def test_weights_of_another_model_are_refused_before_anything_is_copied():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="a"), L.Dense(2, name="b")])
    other = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="a")])
    before = model.get_weights()
    with pytest.raises(ValueError, match="layer 'b' is missing"):
        copy_weights_back(other, model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_tf_keras_model_comes_back_as_a_copy():
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="head")])
    copy = to_tf_keras(model)
    copy.set_weights([np.zeros((4, 2)), np.zeros(2)])
    assert np.any(model.get_weights()[0])
    assert bridge_report(copy).layer_names == {"head": ("head",)}


def test_models_without_a_graph_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="keras_model must be a Keras 3 model or a tf_keras model, got int"):
        to_tf_keras(3)
    with pytest.raises(ValueError, match="subclassed"):
        to_tf_keras(Subclassed())
    with pytest.raises(ValueError, match="has not been built"):
        to_tf_keras(keras.Sequential([L.Dense(2)]))
    with pytest.raises(ValueError, match="did not come from to_tf_keras"):
        bridge_report(tf_keras.Sequential())


def test_relative_difference_by_hand():
    assert relative_difference([1.0, -4.0], [1.0, -3.0]) == pytest.approx(0.25)
    assert relative_difference([0.0], [0.0]) == 0.0
    assert relative_difference([[1.0]], [1.0]) == float("inf")
    assert relative_difference([1.0], [float("nan")]) == float("inf")


def test_the_bridge_leaves_tf_keras_out_until_it_is_called():
    program = (
        "import os, sys; from keras_kd import to_tf_keras; import tensorflow as tf, keras; "
        "assert 'tf_keras' not in sys.modules; "
        "to_tf_keras(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])); "
        "assert tf.keras.__version__.startswith('3'); assert 'TF_USE_LEGACY_KERAS' not in os.environ"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["fashion_teacher", "cifar10_jpeg_teacher"])
def test_a_real_trained_network(shared_data, name):
    model = keras.models.load_model(shared_data / "teachers" / f"{name}.keras")
    assert bridge_report(to_tf_keras(model)).largest_relative_difference < 1e-5
