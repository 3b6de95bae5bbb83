"""Fashion-MNIST out of the shared data, without the download that `keras.datasets` would try."""

import gzip
import pathlib

import numpy as np


def load(shared_data: pathlib.Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images [count, 28, 28, 1] in 0..255 and labels of "train" or "t10k"."""
    folder = shared_data / "keras_home" / "datasets" / "fashion-mnist"

    def read(name: str, header: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{split}-{name}.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=header)

    images = read("images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)[:count]
    return images.astype("float32"), read("labels-idx1-ubyte", 8)[:count].astype("int64")
