"""Evaluate somebody else's .tflite files: MLPerf Tiny's ResNet8 on CIFAR-10 images, float32 against int8.

    python examples/evaluate_resnet8.py --float_model=pretrainedResnet.tflite \
        --int8_model=pretrainedResnet_quant.tflite --images=test.tar.xz

`--images` is a folder, or an archive, of <class>/<name>.jpg files. The models are those of the MLPerf Tiny benchmark
(https://github.com/mlcommons/tiny). Neither Keras nor TensorFlow is needed, only Pillow for the pictures.
"""

import io
import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np
from absl import app, flags
from PIL import Image

import tflite_tools

FLOAT_MODEL = flags.DEFINE_string("float_model", None, "The float32 file.", required=True)
INT8_MODEL = flags.DEFINE_string("int8_model", None, "The int8 file.", required=True)
IMAGES = flags.DEFINE_string("images", None, "Folder or archive of <class>/<name>.jpg.", required=True)
LIMIT = flags.DEFINE_integer("limit", None, "Use every n-th image only, so that about so many are left.")


def pictures(source: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(class, JPEG bytes) of every picture."""
    if source.is_dir():
        for path in sorted(source.rglob("*.jpg")):
            yield path.parent.name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            handle = archive.extractfile(member) if member.name.endswith(".jpg") else None
            if handle is not None:
                yield pathlib.PurePath(member.name).parent.name, handle.read()


def load_images(source: pathlib.Path, limit: int | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pixels from 0 to 255, class numbers in alphabetical order, and the classes."""
    found = list(pictures(source))
    if not found:
        raise app.UsageError(f"--images: there is no <class>/<name>.jpg in {source}.")
    if limit is not None:
        found = found[:: max(1, len(found) // limit)]
    classes = sorted({name for name, _ in found})
    images = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in found])
    return images.astype("float32"), np.array([classes.index(name) for name, _ in found]), classes


def main(argv: list[str]) -> None:
    """Evaluates both files, then compares them with each other."""
    del argv
    images, labels, classes = load_images(pathlib.Path(IMAGES.value), LIMIT.value)
    for path in (FLOAT_MODEL.value, INT8_MODEL.value):
        print(f"\n=== {path} ===")
        print(tflite_tools.evaluate(path, images, labels, class_names=classes))
    print("\n=== int8 against float32, layer by layer ===")
    print(tflite_tools.compare(FLOAT_MODEL.value, INT8_MODEL.value, images[:500], layers=True))


if __name__ == "__main__":
    app.run(main)
