"""What importing and compressing leaves behind in the process: nothing. In fresh processes, because imports stay."""

import subprocess
import sys
import textwrap

import pytest


def run(code, **environment):
    import os

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**{k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}, **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


def test_importing_keras_kd_loads_neither_tfmot_nor_tf_keras():
    out = run(
        """
        import os, sys
        before = dict(os.environ)
        import keras_kd
        import keras_kd.compression.recipe
        keras_kd.CompressionRecipe.from_name("prune75-int8")
        loaded = [m for m in ("tensorflow_model_optimization", "tf_keras") if m in sys.modules]
        changed = {k for k in {*before, *os.environ} if before.get(k) != os.environ.get(k)}
        import tensorflow as tf
        print(loaded, "TF_USE_LEGACY_KERAS" in changed, tf.keras.__version__.split(".")[0])
        """
    )
    assert out == ["[]", "False", "3"]


@pytest.mark.parametrize("value", [None, "0"])
def test_compress_leaves_tf_keras_and_the_environment_as_they_were(value):
    environment = {} if value is None else {"TF_USE_LEGACY_KERAS": value}
    out = run(
        """
        import os
        import numpy as np
        import keras
        import keras_kd
        Dense = keras.layers.Dense
        student = keras.Sequential([keras.Input((8,)), Dense(16), Dense(16), Dense(2)])
        x = np.ones((8, 8), "float32")
        keras_kd.compress(student, "prune50-int8", x, np.zeros((8, 2)), loss="mse", verbose=0)
        import tensorflow as tf
        print(tf.keras.__version__.split(".")[0], os.environ.get("TF_USE_LEGACY_KERAS"))
        """,
        **environment,
    )
    assert out[-2:] == ["3", str(value)]


def test_only_one_module_imports_tfmot():
    import pathlib

    import keras_kd

    root = pathlib.Path(keras_kd.__file__).parent
    importing = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "import tensorflow_model_optimization" in path.read_text(encoding="utf-8")
    ]
    assert importing == ["compression/tfmot.py"]
