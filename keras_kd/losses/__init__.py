"""Distillation losses: pure functions of tensors, and thin serialisable classes over them for a Distiller.

The teacher comes first everywhere. Functions return one value per example, except those in `relations` and
`correlation_distance`, which compare the examples of a batch with each other and return a scalar.
"""

from keras_kd.losses.base import DistillationLoss
from keras_kd.losses.feature_classes import (
    AttentionTransfer,
    FeatureDistillation,
    FlowDistillation,
    NeuronSelectivityTransfer,
    ProbabilisticTransfer,
    RelationalDistillation,
    SimilarityPreserving,
    VariationalInformation,
)
from keras_kd.losses.features import (
    attention_distance,
    attention_map,
    flow_distance,
    flow_matrix,
    gaussian_nll,
    hint_distance,
    neuron_selectivity_mmd,
)
from keras_kd.losses.logits import (
    correlation_distance,
    decoupled_kl,
    normalized_kd,
    soft_target_bce,
    soft_target_crossentropy,
    soft_target_kl,
    standardize_logits,
)
from keras_kd.losses.output_classes import (
    BinaryLogitsDistillation,
    CorrelationDistillation,
    DecoupledDistillation,
    LogitsDistillation,
    NormalizedDistillation,
    RegressionDistillation,
)
from keras_kd.losses.relations import cosine_kernel_kl, relational_distance, similarity_distance
from keras_kd.losses.selected import auto

__all__ = [
    "AttentionTransfer",
    "BinaryLogitsDistillation",
    "CorrelationDistillation",
    "DecoupledDistillation",
    "DistillationLoss",
    "FeatureDistillation",
    "FlowDistillation",
    "LogitsDistillation",
    "NeuronSelectivityTransfer",
    "NormalizedDistillation",
    "ProbabilisticTransfer",
    "RegressionDistillation",
    "RelationalDistillation",
    "SimilarityPreserving",
    "VariationalInformation",
    "attention_distance",
    "attention_map",
    "auto",
    "correlation_distance",
    "cosine_kernel_kl",
    "decoupled_kl",
    "flow_distance",
    "flow_matrix",
    "gaussian_nll",
    "hint_distance",
    "neuron_selectivity_mmd",
    "normalized_kd",
    "relational_distance",
    "similarity_distance",
    "soft_target_bce",
    "soft_target_crossentropy",
    "soft_target_kl",
    "standardize_logits",
]
