"""Latency and memory of a .tflite file, on this machine and elsewhere."""
