"""Selective distillation: which layers are worth teaching, and a student carved out of its teacher."""

from keras_kd.selection.carving import CarvedLayer, Carving, carve, carve_student
from keras_kd.selection.confidence import confidence_weights
from keras_kd.selection.layer_ranking import LayerRanking, RankedPair
from keras_kd.selection.ranking import rank_layers

__all__ = [
    "CarvedLayer",
    "Carving",
    "LayerRanking",
    "RankedPair",
    "carve",
    "carve_student",
    "confidence_weights",
    "rank_layers",
]
