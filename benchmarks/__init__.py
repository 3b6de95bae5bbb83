"""Speed measurements; a package so that `benchmarks/tflite_tools.py` is not taken for the library."""
