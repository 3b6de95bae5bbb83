"""Small networks, data and float64 references for the tests of the Distiller."""

import keras
import numpy as np
from keras import layers

FROM_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 5)).astype("float32"), RNG.integers(0, 3, 24)


def dense(width, seed, *, activation=None, name=None):
    keras.utils.set_random_seed(seed)
    stack = [
        keras.Input((5,)),
        layers.Dense(width, "tanh", name="hidden"),
        layers.Dense(3, activation, name="last"),
    ]
    return keras.Sequential(stack, name=name)


def softmax(z, temperature=1.0):
    e = np.exp((z - z.max(-1, keepdims=True)) / temperature)
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), -1)


def train(distiller, x=X, y=Y, loss=FROM_LOGITS, **kwargs):
    """Logs of one batch at a learning rate of zero: the loss at the weights as they are."""
    distiller.compile(keras.optimizers.SGD(0.0), loss)
    kwargs.setdefault("batch_size", len(Y))
    return {key: values[0] for key, values in distiller.fit(x, y, verbose=0, **kwargs).history.items()}
