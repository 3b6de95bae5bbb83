"""Every rule against Keras 3 itself: same inputs, random weights, outputs within 1e-5."""

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers as L

from keras_kd.compression.bridge import bridge_report, copy_weights_back, to_tf_keras
from keras_kd.compression.bridge_activations import ACTIVATIONS
from keras_kd.compression.bridge_layers import custom_objects
from keras_kd.compression.bridge_rules import APPLICATION_RULES, CALL_RULES, KEPT, LAYER_RULES

IMAGE, SEQUENCE, VOLUME, VECTOR = (8, 8, 3), (8, 3), (5, 6, 4, 2), (6,)


def image(*layers):
    return keras.Sequential([keras.Input(IMAGE), *layers])


def sequence(*layers):
    return keras.Sequential([keras.Input(SEQUENCE), *layers])


def volume(*layers):
    return keras.Sequential([keras.Input(VOLUME), *layers])


def vector(*layers):
    return keras.Sequential([keras.Input(VECTOR), *layers])


def merged(layer, count=2):
    inputs = [keras.Input(IMAGE) for _ in range(count)]
    return keras.Model(inputs, layer(inputs))


def volumes(layer, shape):
    return keras.Sequential([keras.Input(shape), layer])


def words(*layers):
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])


def pair_of_vectors(layer):
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, layer(inputs))


def with_states(layer, initial=False):
    inputs = keras.Input(SEQUENCE)
    states = [L.Dense(4)(inputs[:, 0]), L.Dense(4)(inputs[:, 1])] if initial else None
    return keras.Model(inputs, layer(inputs, initial_state=states))


def attention(layer, **options):
    query, value = keras.Input((5, 3)), keras.Input((7, 4))
    return keras.Model([query, value], layer(query, value, **options))


def image_net():
    return keras.Sequential([keras.Input((6, 5, 2)), L.Conv2D(3, 3), L.BatchNormalization(), L.Flatten()])


def adapted(layer):
    layer.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(16, *IMAGE)))
    return layer


# One entry or more per rule; `test_every_rule_is_tried` fails for a rule without one.
CASES = {
    "ActivityRegularization": [lambda: vector(L.ActivityRegularization(l1=0.1, l2=0.2))],
    "Bidirectional": [
        lambda: sequence(L.Bidirectional(L.LSTM(3, return_sequences=True))),
        lambda: sequence(L.Bidirectional(L.GRU(3), merge_mode="sum")),
        lambda: sequence(L.Bidirectional(L.LSTM(3), backward_layer=L.LSTM(2, go_backwards=True))),
    ],
    "ConvLSTM1D": [lambda: volumes(L.ConvLSTM1D(2, 3), (4, 6, 3))],
    "ConvLSTM2D": [lambda: volumes(L.ConvLSTM2D(2, 3, return_sequences=True), (3, 6, 5, 2))],
    "ConvLSTM3D": [lambda: volumes(L.ConvLSTM3D(2, 2), (3, 4, 4, 4, 2))],
    "Dot": [lambda: merged(L.Dot(axes=-1)), lambda: pair_of_vectors(L.Dot(axes=1, normalize=True))],
    "Embedding": [
        lambda: words(L.Embedding(5, 3)),
        lambda: words(L.Embedding(5, 3, mask_zero=True), L.LSTM(4)),
    ],
    "GRU": [
        lambda: sequence(L.GRU(4)),
        lambda: sequence(L.GRU(4, reset_after=False, return_sequences=True, use_bias=False)),
    ],
    "LSTM": [
        lambda: sequence(L.LSTM(4)),
        lambda: sequence(L.LSTM(4, return_sequences=True, go_backwards=True, activation="silu")),
        lambda: with_states(L.LSTM(4, return_state=True)),
        lambda: with_states(L.LSTM(4, return_sequences=True), initial=True),
    ],
    "Masking": [lambda: sequence(L.Masking(0.0), L.LSTM(3))],
    "MultiHeadAttention": [
        lambda: attention(L.MultiHeadAttention(2, 4)),
        lambda: attention(L.MultiHeadAttention(3, 2, value_dim=5, output_shape=4, use_bias=False)),
        lambda: attention(L.MultiHeadAttention(2, 4, dropout=0.3), use_causal_mask=True),
        lambda: attention(L.MultiHeadAttention(2, 4), return_attention_scores=True),
    ],
    "PReLU": [lambda: image(L.PReLU(shared_axes=[1, 2])), lambda: vector(L.PReLU())],
    "Resizing": [
        lambda: image(L.Resizing(5, 11)),
        lambda: image(L.Resizing(16, 4, interpolation="nearest")),
        lambda: image(L.Resizing(4, 6, crop_to_aspect_ratio=True)),
        lambda: keras.Sequential([keras.Input((4, 4, 3), dtype="uint8"), L.Resizing(8, 8)]),
    ],
    "SeparableConv1D": [
        lambda: sequence(L.SeparableConv1D(4, 3, strides=2, padding="same", depth_multiplier=2)),
        lambda: sequence(L.SeparableConv1D(4, 3, use_bias=False, activation="hard_silu")),
    ],
    "SimpleRNN": [lambda: sequence(L.SimpleRNN(4, activation="relu"))],
    "TimeDistributed": [
        lambda: volumes(L.TimeDistributed(L.Conv2D(2, 3, activation="hard_silu")), (3, 6, 5, 2)),
        lambda: volumes(L.TimeDistributed(image_net()), (3, 6, 5, 2)),
        lambda: sequence(L.TimeDistributed(L.Dense(4))),
    ],
    "UpSampling1D": [lambda: sequence(L.UpSampling1D(3))],
    "UpSampling2D": [
        lambda: image(L.UpSampling2D((2, 3))),
        lambda: image(L.UpSampling2D(2, interpolation="bilinear")),
    ],
    "UpSampling3D": [lambda: volume(L.UpSampling3D((1, 2, 2)))],
    "Activation": [lambda: image(L.Activation("relu6"))],
    "Add": [lambda: merged(L.Add()), lambda: merged(L.Add(), 3)],
    "AlphaDropout": [lambda: vector(L.AlphaDropout(0.3))],
    "Average": [lambda: merged(L.Average(), 3)],
    "AveragePooling1D": [
        lambda: sequence(L.AveragePooling1D(2)),
        lambda: sequence(L.AveragePooling1D(3, 2, "same")),
    ],
    "AveragePooling2D": [
        lambda: image(L.AveragePooling2D(2)),
        lambda: image(L.AveragePooling2D(3, 2, "same")),
    ],
    "AveragePooling3D": [lambda: volume(L.AveragePooling3D(2, 1, "same"))],
    "BatchNormalization": [
        lambda: image(L.BatchNormalization(epsilon=0.1)),
        lambda: image(L.Conv2D(4, 3), L.BatchNormalization(scale=False)),
        lambda: image(L.Conv2D(4, 3, activation="relu"), L.BatchNormalization(center=False)),
        lambda: vector(L.Dense(4), L.BatchNormalization()),
        lambda: vector(L.BatchNormalization()),
        lambda: sequence(L.BatchNormalization(axis=2)),
        lambda: sequence(L.Conv1D(4, 3), L.BatchNormalization(), L.ReLU(), L.Conv1D(2, 3)),
        lambda: volume(L.BatchNormalization()),
        lambda: image(L.BatchNormalization(axis=1)),
    ],
    "Concatenate": [lambda: merged(L.Concatenate(), 3), lambda: merged(L.Concatenate(axis=1))],
    "Conv1D": [
        lambda: sequence(L.Conv1D(4, 3)),
        lambda: sequence(L.Conv1D(4, 3, padding="causal", dilation_rate=2)),
        lambda: sequence(L.Conv1D(6, 3, strides=2, padding="same", groups=3, activation="relu")),
    ],
    "Conv1DTranspose": [lambda: sequence(L.Conv1DTranspose(4, 3, strides=2, padding="same"))],
    "Conv2D": [
        lambda: image(L.Conv2D(4, 3)),
        lambda: image(L.Conv2D(4, (3, 2), strides=2, padding="same", use_bias=False)),
        lambda: image(L.Conv2D(4, 3, dilation_rate=2, activation="gelu")),
        lambda: image(L.Conv2D(6, 3, groups=3, activation="relu6")),
    ],
    "Conv2DTranspose": [
        lambda: image(L.Conv2DTranspose(4, 3, strides=2, padding="same")),
        lambda: image(L.Conv2DTranspose(4, 3, strides=2, output_padding=1)),
    ],
    "Conv3D": [lambda: volume(L.Conv3D(3, 2, padding="same", activation="tanh"))],
    "Conv3DTranspose": [lambda: volume(L.Conv3DTranspose(3, 2, strides=2))],
    "Cropping1D": [lambda: sequence(L.Cropping1D((1, 2)))],
    "Cropping2D": [lambda: image(L.Cropping2D(((1, 0), (0, 2))))],
    "Cropping3D": [lambda: volume(L.Cropping3D(((1, 0), (0, 2), (1, 1))))],
    "Dense": [
        lambda: vector(L.Dense(4, activation="softmax")),
        lambda: sequence(L.Dense(4, use_bias=False, activation="hard_sigmoid")),
    ],
    "DepthwiseConv1D": [lambda: sequence(L.DepthwiseConv1D(3, depth_multiplier=2))],
    "DepthwiseConv2D": [
        lambda: image(L.DepthwiseConv2D(3, depth_multiplier=2, activation="silu")),
        lambda: image(L.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)),
    ],
    "Dropout": [lambda: vector(L.Dropout(0.4)), lambda: image(L.Dropout(0.4, noise_shape=(None, 1, 1, 1)))],
    "ELU": [lambda: vector(L.ELU(alpha=0.7))],
    "Flatten": [lambda: image(L.Flatten())],
    "GaussianDropout": [lambda: vector(L.GaussianDropout(0.3))],
    "GaussianNoise": [lambda: vector(L.GaussianNoise(0.3))],
    "GlobalAveragePooling1D": [lambda: sequence(L.GlobalAveragePooling1D())],
    "GlobalAveragePooling2D": [
        lambda: image(L.GlobalAveragePooling2D()),
        lambda: image(L.GlobalAveragePooling2D(keepdims=True)),
    ],
    "GlobalAveragePooling3D": [lambda: volume(L.GlobalAveragePooling3D())],
    "GlobalMaxPooling1D": [lambda: sequence(L.GlobalMaxPooling1D(keepdims=True))],
    "GlobalMaxPooling2D": [lambda: image(L.GlobalMaxPooling2D())],
    "GlobalMaxPooling3D": [lambda: volume(L.GlobalMaxPooling3D())],
    "Identity": [lambda: vector(L.Identity())],
    "LayerNormalization": [
        lambda: image(L.LayerNormalization(epsilon=0.1)),
        lambda: image(L.LayerNormalization(axis=(1, 2), center=False)),
    ],
    "LeakyReLU": [lambda: vector(L.LeakyReLU(negative_slope=0.15))],
    "MaxPooling1D": [lambda: sequence(L.MaxPooling1D(2))],
    "MaxPooling2D": [lambda: image(L.MaxPooling2D(3, strides=2, padding="same"))],
    "MaxPooling3D": [lambda: volume(L.MaxPooling3D(2))],
    "Maximum": [lambda: merged(L.Maximum(), 3)],
    "Minimum": [lambda: merged(L.Minimum())],
    "Multiply": [lambda: merged(L.Multiply(), 3)],
    "Normalization": [
        lambda: image(adapted(L.Normalization())),
        lambda: vector(L.Normalization(mean=3.0, variance=4.0)),
        lambda: image(L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0], invert=True)),
    ],
    "Permute": [lambda: image(L.Permute((3, 1, 2)))],
    "ReLU": [lambda: vector(L.ReLU(max_value=1.5, negative_slope=0.1, threshold=0.2))],
    "RepeatVector": [lambda: vector(L.RepeatVector(3))],
    "Rescaling": [
        lambda: image(L.Rescaling(1 / 255)),
        lambda: image(L.Rescaling(1 / 127.5, offset=-1)),
        lambda: image(L.Rescaling([0.5, 2.0, 3.0], offset=[1.0, -1.0, 0.0])),
        lambda: vector(L.Rescaling(2.0, offset=1.0)),
        lambda: sequence(L.Rescaling([1.0, 2.0, 3.0], offset=1.0)),
        lambda: keras.Sequential([keras.Input((4, 4, 3), dtype="uint8"), L.Rescaling(1 / 127.5, offset=-1)]),
    ],
    "Reshape": [lambda: image(L.Reshape((4, -1)))],
    "SeparableConv2D": [
        lambda: image(L.SeparableConv2D(4, 3, strides=2, padding="same", depth_multiplier=2)),
        lambda: image(L.SeparableConv2D(4, 3, use_bias=False, activation="hard_silu")),
    ],
    "Softmax": [lambda: image(L.Softmax()), lambda: image(L.Softmax(axis=1))],
    "SpatialDropout1D": [lambda: sequence(L.SpatialDropout1D(0.3))],
    "SpatialDropout2D": [lambda: image(L.SpatialDropout2D(0.3))],
    "SpatialDropout3D": [lambda: volume(L.SpatialDropout3D(0.3))],
    "Subtract": [lambda: merged(L.Subtract())],
    "ZeroPadding1D": [lambda: sequence(L.ZeroPadding1D((1, 2)))],
    "ZeroPadding2D": [lambda: image(L.ZeroPadding2D(((1, 0), (0, 2))))],
    "ZeroPadding3D": [lambda: volume(L.ZeroPadding3D(1))],
}


def randomize(model, seed=0):
    """Weights in [0.2, 1.2): no initial zero or one hides a swapped weight, and variances are positive."""
    generator = np.random.default_rng(seed)
    if any(isinstance(layer, L.Normalization) for layer in model.layers):
        return  # its statistics are no weights to train
    model.set_weights([generator.uniform(0.2, 1.2, w.shape).astype(w.dtype) for w in model.get_weights()])


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, made in CASES.items() for n in range(len(made))]
)
def test_rule_computes_what_keras_computes(kind, number):
    model = CASES[kind][number]()
    randomize(model)
    bridged = to_tf_keras(model, examples=2, seed=1)
    # Both run float32 kernels of TensorFlow; another order of summation moves the last two bits.
    assert bridge_report(bridged).largest_relative_difference < 1e-5

    if kind == "Normalization":
        return
    before = model.get_weights()
    bridged.set_weights([weight + 1.0 for weight in bridged.get_weights()])
    copy_weights_back(bridged, model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(ACTIVATIONS))
def test_every_activation_inside_a_layer_and_as_one(kind):
    inputs = keras.Input(IMAGE)
    model = keras.Model(inputs, [L.Conv2D(4, 2, activation=kind)(inputs), L.Activation(kind)(inputs)])
    randomize(model)
    assert bridge_report(to_tf_keras(model, seed=1)).largest_relative_difference < 1e-5


KEPT_CASES = {
    "AdaptiveAveragePooling1D": lambda: sequence(L.AdaptiveAveragePooling1D(3)),
    "AdaptiveAveragePooling2D": lambda: image(L.AdaptiveAveragePooling2D((3, 2))),
    "AdaptiveAveragePooling3D": lambda: volume(L.AdaptiveAveragePooling3D(2)),
    "AdaptiveMaxPooling1D": lambda: sequence(L.AdaptiveMaxPooling1D(3)),
    "AdaptiveMaxPooling2D": lambda: image(L.AdaptiveMaxPooling2D(3)),
    "AdaptiveMaxPooling3D": lambda: volume(L.AdaptiveMaxPooling3D(2)),
    "AdditiveAttention": lambda: two_sequences(L.AdditiveAttention()),
    "Attention": lambda: two_sequences(L.Attention(use_scale=True)),
    "CenterCrop": lambda: image(L.CenterCrop(5, 4)),
    "EinsumDense": lambda: sequence(L.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")),
    "GroupNormalization": lambda: image(L.GroupNormalization(groups=3)),
    "GroupedQueryAttention": lambda: attention_of_one(L.GroupQueryAttention(4, 4, 2)),
    "RMSNormalization": lambda: image(L.RMSNormalization()),
    "UnitNormalization": lambda: image(L.UnitNormalization()),
}


def two_sequences(layer):
    inputs = [keras.Input((5, 3)), keras.Input((7, 3))]
    return keras.Model(inputs, layer(inputs))


def attention_of_one(layer):
    inputs = keras.Input((5, 3))
    return keras.Model(inputs, layer(inputs, inputs))


@pytest.mark.parametrize("kind", KEPT_CASES)
def test_layers_that_stay_keras_inside(kind):
    model = KEPT_CASES[kind]()
    assert kind in {type(layer).__name__ for layer in model.layers}
    randomize(model)
    bridged = to_tf_keras(model, seed=1)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    with tf_keras.utils.custom_object_scope(custom_objects()):
        clone = tf_keras.models.clone_model(bridged)
    values = [weight + 1.0 for weight in bridged.get_weights()]
    clone.set_weights(values)
    before = model.get_weights()
    copy_weights_back(clone, model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_allclose(new, old + 1.0, rtol=1e-6)


def applications_layer(name, *args, **kwargs):
    """A layer that keras.applications keeps to itself, taken out of a model that uses it."""
    tiny = keras.applications.ConvNeXtTiny(weights=None, include_top=False, input_shape=(32, 32, 3), **kwargs)
    return next(type(layer) for layer in tiny.layers if type(layer).__name__ == name)(*args)


APPLICATION_CASES = {"LayerScale": lambda: image(applications_layer("LayerScale", 0.5, 3))}


@pytest.mark.parametrize("name", APPLICATION_CASES)
def test_layers_of_keras_applications(name):
    model = APPLICATION_CASES[name]()
    randomize(model)
    bridged = to_tf_keras(model)
    assert bridge_report(bridged).largest_relative_difference < 1e-5
    bridged.set_weights([weight + 1.0 for weight in bridged.get_weights()])
    before = model.get_weights()
    copy_weights_back(bridged, model)
    np.testing.assert_allclose(model.get_weights()[0], before[0] + 1.0, rtol=1e-6)


def test_every_rule_is_tried():
    assert sorted(APPLICATION_CASES) == sorted(APPLICATION_RULES)
    assert sorted(CASES) == sorted([*LAYER_RULES, *CALL_RULES])
    assert sorted(KEPT_CASES) == sorted(KEPT)
