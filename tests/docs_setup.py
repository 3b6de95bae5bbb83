"""What the code blocks of a documentation page find already defined.

A page asks for it with the comment `<!-- setup: NAME -->`, which the built site does not show.
"""

import functools
from typing import Any

import numpy as np


def _images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright bars on noise: the row says the class. Learned in an epoch or two by anything."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, count)
    images = random.uniform(0.0, 0.3, (count, 8, 8, 1)).astype("float32")
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] += 0.6
    return images, labels.astype("int64")


def make_network(*widths: int) -> Any:
    import keras
    from keras import layers

    model = keras.Sequential([keras.Input((8, 8, 1))])
    for number, width in enumerate(widths, start=1):
        model.add(layers.Conv2D(width, 3, 2, padding="same", use_bias=False, name=f"conv_{number}"))
        model.add(layers.BatchNormalization(name=f"norm_{number}"))
        model.add(layers.ReLU(name=f"relu_{number}"))
    model.add(layers.GlobalAveragePooling2D(name="mean"))
    model.add(layers.Dense(4, name="logits"))
    return model


def _label_loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@functools.cache
def _teacher_weights() -> list[np.ndarray]:
    import keras

    keras.utils.set_random_seed(0)
    teacher = make_network(8, 16)
    teacher.compile(keras.optimizers.Adam(0.01), _label_loss())
    teacher.fit(*_images(256, 0), epochs=2, verbose=0)
    return teacher.get_weights()


def classification() -> dict[str, Any]:
    """A trained teacher, an untrained student, and images of four classes."""
    import keras

    x_train, y_train = _images(128, 0)
    x_test, y_test = _images(64, 1)
    teacher = make_network(8, 16)
    teacher.set_weights(_teacher_weights())
    keras.utils.set_random_seed(1)
    teacher.compile("adam", _label_loss(), metrics=["accuracy"])
    student = make_network(4, 8)
    student.compile("adam", _label_loss(), metrics=["accuracy"])
    return {
        "keras": keras,
        "np": np,
        "make_network": make_network,
        "teacher": teacher,
        "student": student,
        "label_loss": _label_loss(),
        "x_train": x_train,
        "y_train": y_train,
        "x_test": x_test,
        "y_test": y_test,
        "x": x_train,
        "y": y_train,
    }


def nothing() -> dict[str, Any]:
    """A page that defines everything itself."""
    return {}
