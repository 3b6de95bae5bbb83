"""A student trains with BatchNormalization in one operation, and it is the same training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_kd import Distiller
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.normalization import FusedNormalization, can_be_fused, quick_to_train

pytestmark = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="on a GPU the student trains as it is"
)

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 8, 8, 3)).astype("float32"), RNG.integers(0, 3, 16)


def fused_operations(tapped, x=X):
    """How many of TensorFlow's fused operations a training pass holds, nested functions included."""
    graph = (
        tf.function(lambda batch: tapped(batch, training=True), autograph=False)
        .get_concrete_function(x)
        .graph
    )
    operations = [operation.type for operation in graph.get_operations()]
    return sum(kind.startswith("FusedBatchNorm") for kind in operations)


def in_numpy(x, gamma, beta, epsilon):
    x = x.astype("float64")
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta, mean, variance


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (1, 1, 1, 3), (7, 1, 1, 2)])
@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True), (True, False)])
def test_outputs_and_moving_averages_are_the_formula(shape, scale, center):
    layer = layers.BatchNormalization(scale=scale, center=center, momentum=0.75, epsilon=1e-2)
    layer.build(shape)
    channels = shape[-1]
    gamma, beta = RNG.uniform(0.5, 2, channels), RNG.normal(size=channels)
    if scale:
        layer.gamma.assign(gamma)
    if center:
        layer.beta.assign(beta)
    x = (3.0 + RNG.normal(size=shape)).astype("float32")
    outputs = FusedNormalization(layer)(x, training=True)
    expected, mean, variance = in_numpy(x, gamma if scale else 1.0, beta if center else 0.0, 1e-2)
    # float32 sums over a hundred values of order 3.
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.25 * mean, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.75 + 0.25 * variance, atol=1e-5)


def test_gradients_are_those_of_keras():
    cotangent = RNG.normal(size=X.shape).astype("float32")
    found = []
    for wrap in (lambda layer: layer, FusedNormalization):
        layer = layers.BatchNormalization()
        layer.build(X.shape)
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = wrap(layer)(x, training=True)
        found.append(tape.gradient(y, [x, layer.gamma.value, layer.beta.value], cotangent))
    for theirs, ours in zip(*found, strict=True):
        # Sums over 1024 numbers of order 1, each known to 1e-7.
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def student(activation="tanh"):
    """Nested, with a normalization of vectors, and one of maps that two convolutions share."""
    keras.utils.set_random_seed(5)
    inner_input = keras.Input((8, 8, 8))
    inner = layers.BatchNormalization(name="norm", momentum=0.8)(inner_input)
    inner = layers.Activation(activation, name="act")(inner)
    inner = layers.Conv2D(8, 3, padding="same", name="conv")(inner)
    block = keras.Model(inner_input, layers.BatchNormalization(name="norm_2")(inner), name="block")
    inputs = keras.Input((8, 8, 3))
    shared = layers.BatchNormalization(name="shared")
    x = shared(layers.Conv2D(8, 3, padding="same", name="stem")(inputs))
    x = shared(layers.Conv2D(8, 1, name="second")(x))
    x = layers.Dropout(0.25, seed=3)(block(x))
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.BatchNormalization(name="of_vectors")(layers.Dense(6)(x))
    return keras.Model(inputs, layers.Dense(3, name="last")(x), name="student")


@pytest.mark.filterwarnings("ignore:jit_compile=True on a machine without a GPU")
@pytest.mark.parametrize(
    "how", [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 2}]
)
def test_a_fit_gives_the_weights_and_statistics_of_keras(how):
    """Smooth activations: at the corner of a ReLU the last bit of a sum decides about a whole gradient."""
    results = []
    for distilled in (False, True):
        network = student()
        model = (
            Distiller(student(), network, LogitsDistillation(), student_loss_weight=1)
            if distilled
            else network
        )
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), FROM_LOGITS, **how)
        history = model.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
        results.append((history, network.weights))
        if distilled:
            assert fused_operations(model._tapped_student) == 4
    (plain_loss, plain), (our_loss, ours) = results
    # Six steps; single operations agree to about 1e-6.
    np.testing.assert_allclose(our_loss, plain_loss, rtol=1e-5)
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5, err_msg=a.path)


def test_taps_show_the_normalization_of_this_batch_and_inference_that_of_all():
    network = student()
    names = ["shared", "shared:1", "block/norm", "block/norm_2", "of_vectors"]
    tapped = quick_to_train(network, names)
    assert fused_operations(tapped) == 4
    stem = np.asarray(network.get_layer("stem")(X))
    _, features = tapped(X, training=True)
    np.testing.assert_allclose(features["shared"], in_numpy(stem, 1.0, 0.0, 1e-3)[0], atol=1e-5)
    second = np.asarray(network.get_layer("second")(features["shared"]))
    np.testing.assert_allclose(features["shared:1"], in_numpy(second, 1.0, 0.0, 1e-3)[0], atol=1e-4)
    outputs, features = tapped(X, training=False)
    np.testing.assert_allclose(outputs, network(X, training=False), atol=1e-6)
    norm = network.get_layer("block").get_layer("norm")
    np.testing.assert_allclose(features["block/norm"], norm(features["shared:1"], training=False), atol=1e-6)


def test_the_student_stays_as_it_is(tmp_path):
    network = student("relu")
    config, paths = network.get_config(), [weight.path for weight in network.weights]
    kinds = [type(layer) for layer in network.layers]
    distiller = Distiller(
        student("relu"), network, [LogitsDistillation(), FeatureDistillation("mse", "block/act", "block/act")]
    )
    distiller.compile("sgd", FROM_LOGITS)
    distiller.fit(X, Y, verbose=0)
    assert network.get_config() == config and [type(layer) for layer in network.layers] == kinds
    assert [weight.path for weight in network.weights] == paths
    assert len(distiller.trainable_variables) == len(network.trainable_variables)
    network.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(again(X), network(X, training=False), atol=1e-6)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert fused_operations(loaded._tapped_student) == 4
    np.testing.assert_allclose(loaded.predict(X, verbose=0), distiller.predict(X, verbose=0), atol=1e-6)


def test_a_normalization_that_is_frozen_stays_frozen():
    network = student()
    network.get_layer("block").trainable = False
    tapped = quick_to_train(network)
    before = [v.numpy() for v in network.get_layer("block").variables]
    tapped(X, training=True)
    for old, new in zip(before, network.get_layer("block").variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    assert fused_operations(tapped) == 2
    network.get_layer("block").trainable = True
    assert fused_operations(tapped) == 4


class Halved(keras.Model):
    """A Functional model whose class does something of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=training, mask=mask) / 2.0


@keras.saving.register_keras_serializable("test_normalization")
class Normalization(layers.BatchNormalization):
    pass


def convolved(normalization, filters=8, **kwargs):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, normalization(layers.Conv2D(filters, 3, **kwargs)(inputs)))


@pytest.mark.parametrize("filters", [3, 6, 14, 42])
def test_channels_for_which_the_operation_is_slow_are_left_to_keras(filters):
    assert fused_operations(quick_to_train(convolved(layers.BatchNormalization(), filters))) == 0
    assert fused_operations(quick_to_train(convolved(layers.BatchNormalization(), 12))) == 1


def test_what_the_operation_would_not_compute_as_keras_does_is_left_to_keras():
    for layer in (
        layers.BatchNormalization(axis=1),
        layers.BatchNormalization(axis=2),
        layers.BatchNormalization(epsilon=1e-6),
        layers.BatchNormalization(dtype="mixed_float16"),
        layers.BatchNormalization(dtype="float64"),
        layers.BatchNormalization(synchronized=True),
        layers.BatchNormalization(activity_regularizer="l2"),
        Normalization(),
    ):
        model = convolved(layer)
        assert not can_be_fused(layer)
        assert fused_operations(quick_to_train(model)) == 0
    assert fused_operations(quick_to_train(convolved(layers.BatchNormalization()))) == 1
    # Half precision arrives from the layer before.
    assert (
        fused_operations(quick_to_train(convolved(layers.BatchNormalization(), dtype="mixed_float16"))) <= 1
    )
    plain = convolved(layers.BatchNormalization())
    own = Halved(plain.input, plain.output)
    np.testing.assert_allclose(quick_to_train(own)(X)[0], plain(X) / 2.0, atol=1e-6)


def test_masked_positions_do_not_count():
    inputs = keras.Input((8, 8, 8))
    masked = layers.Masking()(inputs)
    x = RNG.normal(size=(16, 8, 8, 8)).astype("float32")
    x[:, :2] = 0.0
    results = []
    for build in (lambda model: model, quick_to_train):
        layer = layers.BatchNormalization()
        model = keras.Model(inputs, layer(masked))
        build(model)(x, training=True)
        results.append(layer.moving_mean.numpy())
    np.testing.assert_array_equal(*results)
    assert np.abs(results[0]).max() > 0
