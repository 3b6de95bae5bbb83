"""Selective distillation: which layers are worth teaching, and a student carved out of its teacher."""

from keras_kd.selection.carving import CarvedLayer, Carving, carve, carve_student

__all__ = ["CarvedLayer", "Carving", "carve", "carve_student"]
