"""Networks to carve, and the oracle that says whether it was done right."""

import keras
import numpy as np
from keras import layers


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Every vector gets distinct random values, as in a trained network, so that a channel is known by its numbers."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        # Not the statistics of keras.layers.Normalization: it works with copies that would stay behind.
        if len(weight.shape) == 1 and weight.name not in ("mean", "variance"):
            low, high = (0.5, 1.5) if weight.name in ("gamma", "moving_variance") else (-0.3, 0.3)
            weight.assign(generator.permutation(np.linspace(low, high, weight.shape[0])))
    return model


def silenced(teacher: keras.Model, student: keras.Model, kept: dict[str, tuple[int, ...]]) -> keras.Model:
    """A copy of the teacher in which every channel that the student lacks is exactly zero.

    Kernels are zeroed by the lists of kept channels. For vectors (biases, normalizations) the channels are found
    without them: by the values that the student's vector shares with the teacher's.
    """
    copy = keras.models.clone_model(teacher)
    copy.set_weights(teacher.get_weights())
    smaller = {layer.name: layer for layer in every_layer(student)}
    for layer in every_layer(copy):
        if layer.name in kept:
            for weight in layer.weights:
                if weight.name in ("kernel", "pointwise_kernel"):
                    value = weight.numpy()
                    axis = -2 if "Transpose" in type(layer).__name__ else -1
                    gone = np.setdiff1d(np.arange(value.shape[axis]), kept[layer.name])
                    np.moveaxis(value, axis, 0)[gone] = 0.0
                    weight.assign(value)
        if layer.name not in smaller:
            continue
        for weight, small in zip(layer.weights, smaller[layer.name].weights, strict=True):
            if len(weight.shape) == 1 and weight.name != "moving_variance":
                value = weight.numpy()
                stays = np.isin(value, small.numpy())
                assert np.array_equal(value[stays], small.numpy()), (layer.name, weight.name)
                weight.assign(np.where(stays, value, 0.0))
    return copy


def every_layer(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models inside it."""
    found = []
    for layer in model.layers:
        found.extend(every_layer(layer) if isinstance(layer, keras.Model) else [layer])
    return found


def convolution(x, filters, *, kernel=3, activation="relu", **arguments):
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False, **arguments)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x) if activation else x


def residual() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    x = convolution(x, 8)
    for _ in range(3):
        branch = convolution(x, 12)
        branch = convolution(branch, 8, activation=None)
        x = layers.ReLU()(layers.Add()([x, branch]))
    shortcut = convolution(x, 16, kernel=1, strides=2, activation=None)
    x = layers.Add()([convolution(x, 16, strides=2, activation=None), shortcut])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(5)(x), name="residual")


def squeeze_and_excite() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    x = convolution(x, 12, activation="silu")
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Dense(6, activation="relu")(layers.Reshape((1, 1, 12))(gate))
    gate = layers.Dense(12, activation="hard_sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = x * (keras.ops.relu6(x + 3.0) / 6.0)  # hard swish, out of operators
    attention = layers.Conv2D(1, 1, activation="sigmoid")(x)  # one map over all channels
    x = layers.Multiply()([x, attention])
    return keras.Model(image, layers.Dense(5)(layers.GlobalMaxPooling2D()(x)), name="squeeze")


def concatenations() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    first, second = convolution(x, 6), convolution(x, 10)
    both = layers.Concatenate()([image, first, second])
    both = layers.BatchNormalization()(both)
    mixed = convolution(both, 16)
    x = layers.Add()([mixed, layers.Concatenate()([second, first])])  # united across a concatenation
    x = layers.AveragePooling2D(2)(layers.ZeroPadding2D(1)(x))
    x = keras.ops.concatenate([x, x], axis=-1)
    x = layers.Flatten()(x)
    return keras.Model(image, layers.Dense(5)(layers.Dense(12, activation="gelu")(x)), name="concatenations")


def depthwise_and_grouped() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(8, 3, depth_multiplier=2, activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.Conv2D(24, 3, groups=4, padding="same")(x)
    x = layers.LeakyReLU()(x)
    x = layers.Conv2D(48, 3, groups=24)(x)  # each channel by itself, two filters
    x = layers.SeparableConv2D(8, 1, depth_multiplier=2)(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D(keepdims=True)(x)), name="groups")


def decoder() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    high = convolution(x, 8)
    low = convolution(layers.MaxPooling2D(2)(high), 16)
    up = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(low)
    x = layers.Concatenate()([high, up, layers.UpSampling2D()(low)])
    return keras.Model(image, layers.Conv2D(2, 1, activation="sigmoid")(convolution(x, 8)), name="decoder")


def series() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((12, 3)),
            layers.Conv1D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv1D(3),
            layers.MaxPooling1D(),
            layers.Permute((2, 1)),
            layers.Permute((2, 1)),
            layers.Reshape((-1, 2, 8)),
            layers.Flatten(),
            layers.Dense(6, "tanh"),
            layers.Dense(4, "softmax"),
        ],
        name="series",
    )


def nested_and_shared() -> keras.Model:
    inner_input = keras.Input((8, 8, 6))
    inner = keras.Model(inner_input, convolution(inner_input, 6), name="inner")
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    stem = layers.Conv2D(6, 3, padding="same", name="stem")
    ones = [inner(stem(left)), inner(stem(right))]
    x = layers.Subtract()(ones)
    features = layers.GlobalAveragePooling2D()(layers.Maximum()([x, ones[0]]))
    hidden = layers.Dense(8, "relu")(features)
    outputs = {
        "label": layers.Dense(3, name="label")(hidden),
        "score": layers.Dense(1, name="score")(features),
    }
    return keras.Model({"left": left, "right": right}, outputs, name="nested")


SMALL = (
    residual,
    squeeze_and_excite,
    concatenations,
    depthwise_and_grouped,
    decoder,
    series,
    nested_and_shared,
)
