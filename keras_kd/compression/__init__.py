"""Pruning, clustering and quantization of Keras 3 students through TF-MOT, behind a bridge to tf_keras."""
