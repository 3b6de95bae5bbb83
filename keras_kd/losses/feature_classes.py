"""Distillation losses on inner features: thin serialisable classes over `losses.features` and `losses.relations`."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_kd import adapters
from keras_kd.losses import features as functions
from keras_kd.losses import relations
from keras_kd.losses.base import (
    DistillationLoss,
    check_layer_name,
    check_loss_structure,
    check_weight,
    flatten_nested,
    loss_name,
    pack,
    resolve_loss,
)
from keras_kd.losses.output_classes import distance
from keras_kd.losses.tensors import match_spatial, to_float
from keras_kd.schedules import value_at

Tensor = Any
Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="keras_kd")
class FeatureDistillation(DistillationLoss):
    """A hint: a layer of the student follows a layer of the teacher.

    Args:
      loss: "mse" (default), another Keras loss by name, or an instance; nested for nested outputs, with None where
        nothing is taught.
      teacher_layer_name: layer of the teacher, "backbone/block_3_add" inside a nested model; None for the outputs.
      student_layer_name: layer of the student; None for the outputs.
      adapter: "auto" (default) projects the student's feature to the teacher's width where the widths differ;
        None never does; a `keras.layers.Layer` is used as it is. It is trained by, and saved with, the Distiller.
      output_name: in a model of several outputs, the one this loss is for.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> from keras import ops
      >>> loss = FeatureDistillation()
      >>> ops.convert_to_numpy(loss.compute_loss(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))).tolist()
      [2.0]

    Source: Romero et al. 2015, arXiv:1412.6550.
    """

    def __init__(
        self,
        loss: Any = "mse",
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        *,
        adapter: Any = "auto",
        output_name: str | None = None,
        name: str | None = None,
    ):
        self._loss_argument = loss
        self.loss = resolve_loss(loss)
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = student_layer_name
        if not (adapter in (None, "auto") or isinstance(adapter, keras.layers.Layer)):
            raise ValueError(f"adapter must be 'auto', None or a keras.layers.Layer, got {adapter!r}.")
        self.adapter = adapter
        self.output_name = output_name
        self.name = name

    def create_adapter(self, teacher_shape: Any, student_shape: Any) -> keras.layers.Layer | None:
        """A projection from the student's width to the teacher's, None where there is nothing to project."""
        if isinstance(self.adapter, keras.layers.Layer):
            if not self.adapter.built:
                self.adapter.build((None, *student_shape[1:]))
                self.adapter.built = True
            return self.adapter
        nested = isinstance(self.loss, (list, tuple, dict))
        if self.adapter is None or nested or len(teacher_shape) < 2 or len(student_shape) < 2:
            return None
        return adapters.projection_if_needed(teacher_shape, student_shape, name=f"{loss_name(self)}_adapter")

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raise `ValueError` unless features and losses have one structure."""
        super().validate_outputs(teacher_outputs, student_outputs)
        check_loss_structure(self.loss, teacher_outputs, "FeatureDistillation")

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, *, adapter: Any = None, **kwargs: Any
    ) -> Tensor:
        """Float [batch]: the sum over the features that have a loss."""
        total = None
        triples = zip(
            flatten_nested(self.loss),
            keras.tree.flatten(teacher_outputs),
            keras.tree.flatten(student_outputs),
        )
        for loss, teacher, student in triples:
            if loss is None:
                continue
            teacher, student = to_float(teacher), to_float(student)
            if len(student.shape) > 2:
                # Pooled before it is projected: the same result, and less to compute.
                teacher, student = match_spatial(teacher, student)
            if adapter is not None:
                student = adapter(student)
            value = distance(loss, teacher, student)
            total = value if total is None else total + value
        return total

    def get_config(self) -> dict[str, Any]:
        return {
            "loss": pack(self._loss_argument),
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "adapter": pack(self.adapter),
            "output_name": self.output_name,
            "name": self.name,
        }


class TappedLoss(DistillationLoss):
    """Base of the losses that compare one named layer of the teacher with one of the student."""

    def __init__(self, teacher_layer_name: str, student_layer_name: str, *, name: str | None = None):
        self.teacher_layer_name = check_layer_name(teacher_layer_name, "teacher_layer_name")
        self.student_layer_name = check_layer_name(student_layer_name, "student_layer_name")
        self.name = name

    def get_config(self) -> dict[str, Any]:
        return {
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_kd")
class AttentionTransfer(TappedLoss):
    """The student looks where the teacher looks; the widths of the layers may differ.

    Args:
      teacher_layer_name: layer of the teacher with features [batch, ..., channels].
      student_layer_name: layer of the student.
      p: the power of the activations, an integer of at least 1.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> from keras import ops
      >>> teacher, student = np.array([[[3.0], [0.0]]]), np.array([[[0.0, 0.0], [1.0, 1.0]]])
      >>> ops.convert_to_numpy(AttentionTransfer("a", "b").compute_loss(teacher, student)).tolist()
      [1.0]

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.
    """

    def __init__(
        self, teacher_layer_name: str, student_layer_name: str, p: int = 2, *, name: str | None = None
    ):
        super().__init__(teacher_layer_name, student_layer_name, name=name)
        if isinstance(p, bool) or not isinstance(p, int) or p < 1:
            raise ValueError(f"p must be an integer of at least 1, got {p!r}.")
        self.p = p

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]."""
        return functions.attention_distance(teacher_outputs, student_outputs, p=self.p)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "p": self.p}


@keras.saving.register_keras_serializable(package="keras_kd")
class FlowDistillation(DistillationLoss):
    """The student's step from one layer to another correlates channels as the teacher's does.

    Args:
      teacher_layer_names: two layers of the teacher, the earlier first.
      student_layer_names: two layers of the student of the same two widths.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> from keras import ops
      >>> one, two = np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0)
      >>> ops.convert_to_numpy(FlowDistillation(("a", "b"), ("c", "d")).compute_loss((one, two), (one, one))).tolist()
      [1.0]

    Source: Yim et al. 2017, "A gift from knowledge distillation" (CVPR).
    """

    def __init__(
        self,
        teacher_layer_names: Sequence[str],
        student_layer_names: Sequence[str],
        *,
        name: str | None = None,
    ):
        for argument, names in (
            ("teacher_layer_names", teacher_layer_names),
            ("student_layer_names", student_layer_names),
        ):
            if isinstance(names, str) or len(names) != 2:
                raise ValueError(f"{argument} must be a pair of layer names, got {names!r}.")
            for layer_name in names:
                check_layer_name(layer_name, argument)
        self.teacher_layer_names = tuple(teacher_layer_names)
        self.student_layer_names = tuple(student_layer_names)
        self.name = name

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]."""
        return functions.flow_distance(teacher_outputs, student_outputs)

    def get_config(self) -> dict[str, Any]:
        return {
            "teacher_layer_names": list(self.teacher_layer_names),
            "student_layer_names": list(self.student_layer_names),
            "name": self.name,
        }


@keras.saving.register_keras_serializable(package="keras_kd")
class NeuronSelectivityTransfer(TappedLoss):
    """The student's channels select the same places as the teacher's; the widths may differ.

    Args:
      teacher_layer_name: layer of the teacher with features [batch, ..., channels].
      student_layer_name: layer of the student.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> from keras import ops
      >>> teacher, student = np.array([[[1.0], [0.0]]]), np.array([[[0.0], [2.0]]])
      >>> ops.convert_to_numpy(NeuronSelectivityTransfer("a", "b").compute_loss(teacher, student)).tolist()
      [2.0]

    Source: Huang and Wang 2017, arXiv:1707.01219.
    """

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float [batch]."""
        return functions.neuron_selectivity_mmd(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable(package="keras_kd")
class SimilarityPreserving(TappedLoss):
    """Examples that are alike to the teacher are alike to the student.

    Args:
      teacher_layer_name: layer of the teacher.
      student_layer_name: layer of the student; every size but the batch may differ.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> round(float(SimilarityPreserving("a", "b").compute_loss(np.eye(2), np.ones((2, 1)))), 4)
      0.2929

    Source: Tung and Mori 2019, arXiv:1907.09682.
    """

    per_example = False

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float scalar."""
        return relations.similarity_distance(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable(package="keras_kd")
class RelationalDistillation(TappedLoss):
    """Distances and angles between the examples of a batch are the same to teacher and student.

    Args:
      teacher_layer_name: layer of the teacher, usually its embedding.
      student_layer_name: layer of the student; every size but the batch may differ.
      distance_weight: weight of the distances, a number or a schedule.
      angle_weight: weight of the angles, a number or a schedule; 0 leaves them out.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> teacher, student = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0], [3.0]])
      >>> round(float(RelationalDistillation("a", "b").compute_loss(teacher, student)), 4)
      0.3472

    Source: Park et al. 2019, arXiv:1904.05068.
    """

    per_example = False

    def __init__(
        self,
        teacher_layer_name: str,
        student_layer_name: str,
        distance_weight: Any = 25.0,
        angle_weight: Any = 50.0,
        *,
        name: str | None = None,
    ):
        super().__init__(teacher_layer_name, student_layer_name, name=name)
        self.distance_weight = check_weight(distance_weight, "distance_weight")
        self.angle_weight = check_weight(angle_weight, "angle_weight")

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float scalar."""
        step, total_steps = kwargs.get("step"), kwargs.get("total_steps")
        return relations.relational_distance(
            teacher_outputs,
            student_outputs,
            distance_weight=value_at(self.distance_weight, step, total_steps),
            angle_weight=value_at(self.angle_weight, step, total_steps),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "distance_weight": pack(self.distance_weight),
            "angle_weight": pack(self.angle_weight),
        }


@keras.saving.register_keras_serializable(package="keras_kd")
class ProbabilisticTransfer(TappedLoss):
    """Examples have the same neighbors, by cosine similarity, to teacher and student.

    Args:
      teacher_layer_name: layer of the teacher.
      student_layer_name: layer of the student; every size but the batch may differ.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> round(float(ProbabilisticTransfer("a", "b").compute_loss(np.eye(2), np.ones((2, 1)))), 4)
      0.0283

    Source: Passalis and Tefas 2018, arXiv:1803.10837.
    """

    per_example = False

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **kwargs: Any) -> Tensor:
        """Float scalar."""
        return relations.cosine_kernel_kl(teacher_outputs, student_outputs)


@keras.saving.register_keras_serializable(package="keras_kd")
class VariationalInformation(TappedLoss):
    """The student's feature predicts the teacher's, with a spread learned for each channel.

    Args:
      teacher_layer_name: layer of the teacher.
      student_layer_name: layer of the student; sizes are pooled to the smaller, channels may differ.
      initial_variance: variance that every channel starts from.
      name: in the log.

    Example:
      >>> import numpy as np
      >>> from keras import ops
      >>> loss = VariationalInformation("a", "b")
      >>> head = lambda feature: (feature, np.log(np.expm1([1.0])))  # mean, and a variance of 1
      >>> values = loss.compute_loss(np.array([[3.0]]), np.array([[1.0]]), adapter=head)
      >>> ops.convert_to_numpy(values).round(3).tolist()
      [2.0]

    Source: Ahn et al. 2019, arXiv:1904.05835.
    """

    def __init__(
        self,
        teacher_layer_name: str,
        student_layer_name: str,
        initial_variance: float = 5.0,
        *,
        name: str | None = None,
    ):
        super().__init__(teacher_layer_name, student_layer_name, name=name)
        if not isinstance(initial_variance, (int, float)) or not initial_variance > 1e-5:
            raise ValueError(
                f"initial_variance must be a number greater than 1e-5, got {initial_variance!r}."
            )
        self.initial_variance = float(initial_variance)

    def create_adapter(self, teacher_shape: Any, student_shape: Any) -> keras.layers.Layer | None:
        """The trainable head that predicts the teacher's feature."""
        return adapters.variational_head(
            teacher_shape,
            student_shape,
            initial_variance=self.initial_variance,
            name=f"{loss_name(self)}_head",
        )

    def compute_loss(
        self, teacher_outputs: Any, student_outputs: Any, *, adapter: Any = None, **kwargs: Any
    ) -> Tensor:
        """Float [batch]."""
        if adapter is None:
            raise ValueError(
                "VariationalInformation has a trainable part, which a Distiller makes; outside of one, pass the layer "
                "that create_adapter returns as adapter=, or call losses.gaussian_nll."
            )
        teacher, student = to_float(teacher_outputs), to_float(student_outputs)
        if len(student.shape) > 2:
            teacher, student = match_spatial(teacher, student)
        mean, log_scale = adapter(student)
        return functions.gaussian_nll(teacher, mean, log_scale)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_variance": self.initial_variance}
