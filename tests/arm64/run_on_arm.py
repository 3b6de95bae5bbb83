"""Runs on the aarch64 side: every model of a folder on its inputs, raw tensors in and out. No time is taken."""

import pathlib
import platform
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

folder = pathlib.Path(sys.argv[1])
for path in sorted(folder.glob("*.tflite")):
    for suffix, kernels in ((".out.npy", OpResolverType.AUTO), (".ref.npy", OpResolverType.BUILTIN_REF)):
        interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
        source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        results = []
        for value in np.load(path.with_suffix(".in.npy")):
            interpreter.set_tensor(source["index"], value)
            interpreter.invoke()
            results.append(interpreter.get_tensor(target["index"]))
        np.save(path.with_suffix(suffix), np.stack(results))
print(platform.machine())
