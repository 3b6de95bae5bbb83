"""The Distiller: a Keras model that trains a student under a teacher, in `fit`."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd import distiller_checks as checks
from keras_kd import distiller_config
from keras_kd.balancing import balanced_weights, rebalance
from keras_kd.callbacks import FitLength, add_callback
from keras_kd.distributed import MultiWorkerFit
from keras_kd.errors import raise_all
from keras_kd.normalization import quick_to_train
from keras_kd.objective import DistillationObjective
from keras_kd.output_kinds import seen_kinds
from keras_kd.probing import first_inputs
from keras_kd.schedules import Schedule, value_at
from keras_kd.teachers import targets as teacher_targets
from keras_kd.teachers.epochs import epochs_of_fit
from keras_kd.teachers.runner import TeacherRunner, as_teacher, fingerprint, is_cache, network_of
from keras_kd.trackers import LossMean

Tensor = Any


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(MultiWorkerFit):
    """Trains a student on labels and on what a teacher says, with the whole of Keras's `fit`.

    total_loss = student_loss_weight * student_loss + (1 - student_loss_weight) * sum(weight_i * loss_i)
    plus the student's own regularizers and `add_loss` terms, which keep their strength.

    On a CPU the student's BatchNormalization layers train by one operation of TensorFlow each, and the teacher's are
    folded into the layers before them: the same numbers up to the rounding of float32, sooner.

    Args:
      teacher: a `keras.Model`, a list of them, a `TeacherEnsemble`, a `MovingAverageTeacher` or a `TeacherCache`.
        It is frozen (`trainable = False`) and only ever run in inference mode.
      student: the `keras.Model` to train; afterwards it is `distiller.student`, without a trace of all this.
      distillation_losses: a loss of `keras_kd.losses` (or of `keras.distillation`), a list, or a dict that names them.
      distillation_loss_weights: a number or a schedule for each; None is 1.0 for all.
      student_loss_weight: between 0 and 1, a number or a schedule. At 0 no labels are needed.
      name: of the Distiller.
      teacher_preprocessing: a callable from the student's input batch to the teacher's.
      save_teacher: "embed" (in the Distiller's file), "reference" (its path and fingerprint) or "none".
      teacher_path: where the teacher's own file is, for "reference".
      **kwargs: further arguments of `keras.Model`.

    Raises:
      ValueError: anything that does not fit, in one message, before training.

    Example:
      >>> import numpy as np
      >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
      >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
      >>> from keras_kd.losses import LogitsDistillation
      >>> distiller = Distiller(teacher, student, LogitsDistillation(temperature=4.0), student_loss_weight=0.1)
      >>> distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
      >>> history = distiller.fit(np.ones((8, 4)), np.zeros(8), verbose=0)
      >>> sorted(history.history)
      ['distillation_loss', 'logits_distillation', 'loss', 'student_loss', 'total_loss']

    Source: Hinton et al. 2015, arXiv:1503.02531; the interface of `keras.distillation.Distiller`.
    """

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.5,
        name: str = "distiller",
        *,
        teacher_preprocessing: Callable[[Any], Any] | None = None,
        save_teacher: str = "embed",
        teacher_path: str | None = None,
        _adapter_shapes: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(student, keras.Model):
            raise ValueError(f"Student must be a keras.Model, got {type(student).__name__}.")
        teacher = as_teacher(teacher)
        objective = DistillationObjective(distillation_losses, distillation_loss_weights)
        checks.check_student_loss_weight(student_loss_weight)
        problems = checks.argument_problems(teacher, student, teacher_preprocessing, save_teacher)
        raise_all(problems, subject="This Distiller cannot be made")
        # Under the student's policy a LossScaleOptimizer is put on for mixed_float16; without autocast the
        # inputs reach both networks as they are.
        kwargs.setdefault("dtype", checks.dtype_policy_of(student))
        super().__init__(name=name, autocast=False, **kwargs)

        self.save_teacher = "none" if is_cache(teacher) else save_teacher
        if self.save_teacher == "embed":
            # Tracked under Keras's own attribute name and before the student, for Keras's own layout of the file.
            super().__setattr__("teacher", teacher)
        self.student = student
        self.teacher_path = teacher_path
        self.teacher_preprocessing = teacher_preprocessing
        self.student_loss_weight = student_loss_weight
        self.evaluate_distillation = False
        self._has_label_loss = False
        self._objective = objective
        self._runner = TeacherRunner(None)
        self._expected_fingerprint: str | None = None
        self._additional_losses_only_here = False
        self._measured: set[str] = set()
        self._terms: dict[str, Any] = {}  # the losses of the step that is being traced
        self._balanced = balanced_weights(objective.names, objective.weights, student_loss_weight)
        objective.bind(network_of(teacher), student, adapter_shapes=_adapter_shapes)
        self._hold_teacher(teacher)
        self._tapped_student = quick_to_train(student, objective.student_layer_names)
        self.distillation_losses = list(objective.losses)
        self.distillation_loss_weights = list(objective.weights)
        self.adapters = list(objective.adapters.values())

        self.student_loss_tracker = LossMean(name="student_loss")
        self.distillation_loss_tracker = LossMean(name="distillation_loss")
        self.total_loss_tracker = LossMean(name="total_loss")
        self.named_loss_trackers = [LossMean(name=loss_name) for loss_name in objective.names]
        self._make_fit_length()
        self.built = student.built

    # The teacher.

    def _hold_teacher(self, teacher: Any) -> None:
        if isinstance(teacher, keras.Model):
            if teacher is self.student:
                raise ValueError(
                    "The teacher is the student itself. For self-distillation use "
                    "keras_kd.MovingAverageTeacher(student), or a copy."
                )
            teacher.trainable = False
        self._runner = TeacherRunner(teacher, self._objective.teacher_layer_names, self.teacher_preprocessing)

    def __getattr__(self, name: str) -> Any:
        # Only reached where `teacher` is not an attribute: a teacher that is not embedded must not be found by
        # Keras, which walks the attributes to save them.
        if name == "teacher" and "_runner" in self.__dict__:
            return self._runner.teacher
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            self._replace_teacher(value)
        else:
            super().__setattr__(name, value)

    def _replace_teacher(self, teacher: Any) -> None:
        if self.save_teacher == "embed":
            raise ValueError(
                "This Distiller embeds its teacher, which cannot be replaced. Make a new Distiller around "
                "distiller.student, or use save_teacher='reference' or 'none'."
            )
        teacher = as_teacher(teacher)
        raise_all(
            checks.argument_problems(teacher, self.student, self.teacher_preprocessing, self.save_teacher),
            subject="This teacher does not fit",
        )
        expected = self._expected_fingerprint
        if expected is not None and isinstance(teacher, keras.Model) and fingerprint(teacher) != expected:
            raise ValueError(
                "This is not the teacher that the Distiller was saved with: the fingerprint of its weights differs"
                + (f" (the teacher's file was {self.teacher_path!r})." if self.teacher_path else ".")
            )
        self._objective.bind(network_of(teacher), self.student)
        self._hold_teacher(teacher)
        self.train_function = self.test_function = None

    # Compiling and fitting.

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: Any = None,
        *,
        evaluate_distillation: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configure training; the arguments and defaults of `keras.Model.compile`, and one more.

        Args:
          optimizer: for the student and the adapters.
          loss: the student's loss on the labels; None is allowed with `student_loss_weight=0`.
          metrics: a list or a dict, of the student's outputs.
          evaluate_distillation: also run the teacher in `evaluate`; `val_total_loss` is then the whole total, and
            otherwise the student's loss.
          **kwargs: `loss_weights`, `weighted_metrics`, `run_eagerly`, `steps_per_execution`, `jit_compile`, ...
        """
        if loss is None and not _is_zero(self.student_loss_weight):
            raise ValueError(
                f"'loss' cannot be None while student_loss_weight is {self.student_loss_weight!r}. Give the student's "
                "loss on the labels, or set student_loss_weight=0 to learn from the teacher alone."
            )
        self.evaluate_distillation = bool(evaluate_distillation)
        self._has_label_loss = loss is not None
        kinds = seen_kinds(self.student)
        checks.warn_about_label_loss(loss, kinds, self.student.name)
        checks.warn_about_softmax_student(kinds, self.student.name)
        if kwargs.get("jit_compile") is True and not tf.config.list_physical_devices("GPU"):
            checks.warn_about_xla()
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)

    @property
    def output_names(self) -> list[str]:
        """The student's output names, by which losses and metrics of several outputs are given."""
        return self.student.output_names

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """`keras.Model.fit`; `y` may be left out with `student_loss_weight=0`."""
        arguments = inspect.signature(super().fit).bind(x, y, *args, **kwargs).arguments
        with epochs_of_fit(self._runner.teacher, arguments) as follower:
            self._prepare_teacher()
            arguments["x"] = self._look_at(x)
            length = FitLength(self._fit_length) if self._fit_length is not None else None
            for extra in (length, follower):
                if extra is not None:
                    arguments["callbacks"] = add_callback(arguments.get("callbacks"), extra)
            return super().fit(**arguments)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.train_on_batch`."""
        self._prepare_teacher()
        self._look_at(x)
        return super().train_on_batch(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`keras.Model.evaluate` of the student; runs no teacher unless compiled with `evaluate_distillation`."""
        if self.evaluate_distillation and x is not None and not kwargs.get("_use_cached_eval_dataset"):
            self._prepare_teacher()
            x = self._look_at(x)
        return super().evaluate(x, *args, **kwargs)

    def _prepare_teacher(self) -> None:
        with self.distribute_strategy.scope():
            self._runner.prepare()

    def _look_at(self, x: Any) -> Any:
        """Find out from one batch what the outputs are, where the models do not show it."""
        if x is None or not self._objective.needs_probe:
            return x
        inputs, x = first_inputs(x)
        with self.distribute_strategy.scope():
            inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
            student_outputs = self.student(teacher_targets.unpack(inputs)[0], training=False)
            self._objective.probe(self._runner.of_batch(inputs)[0], student_outputs)
        return x

    # A step.

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The student's outputs."""
        x, _ = teacher_targets.unpack(inputs)
        return self.student(x, training=training, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Build the student."""
        if not self.student.built:
            self.student.build(input_shape)
        self.built = True

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step: one forward pass of each network."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        inputs, targets = teacher_targets.unpack(x)
        self._measured = set()
        taught = None if _is_one(self.student_loss_weight) else self._runner(inputs, targets)
        with tf.GradientTape(persistent=bool(self._balanced)) as tape:
            y_pred, features = self._tapped_student(inputs, training=True)
            if type(self).compute_loss is Distiller.compute_loss:
                loss = self._total_loss(x, y, y_pred, sample_weight, taught, features)
            else:  # a subclass with a loss of its own
                loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        variables = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
        if self._terms:
            rebalance(tape, self._balanced, self._terms, self.student.trainable_weights)
            self._terms = {}
        follow = getattr(self._runner.teacher, "follow", None)
        if follow is not None:
            follow(self.student)
        return self._results(x, y, y_pred, sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the student on one batch; the teacher runs with `evaluate_distillation` only."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._measured = set()
        y_pred = self._evaluate_batch(x, y, sample_weight)
        return self._results(x, y, y_pred, sample_weight)

    def _evaluate_batch(self, x: Any, y: Any, sample_weight: Any) -> Any:
        inputs, targets = teacher_targets.unpack(x)
        if self.evaluate_distillation:
            y_pred, features = self._tapped_student(inputs, training=False)
            self._total_loss(x, y, y_pred, sample_weight, self._runner(inputs, targets), features)
            return y_pred
        y_pred = self.student(inputs, training=False)
        if self._has_label_loss and y is not None:
            student_loss = self._student_loss(x, y, y_pred, sample_weight, training=False)
            self._track(x, student_loss=student_loss, total_loss=student_loss + self._additional_loss())
        return y_pred

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """The total loss of one batch; runs the teacher (and the student, where a loss taps it).

        `train_step` does the same with one forward pass of each network.
        """
        inputs, targets = teacher_targets.unpack(x)
        features: dict[str, Any] = {}
        if y_pred is None or self._objective.student_layer_names:
            outputs, features = self._tapped_student(inputs, training=training)
            y_pred = outputs if y_pred is None else y_pred
        teach = (training or self.evaluate_distillation) and not _is_one(self.student_loss_weight)
        taught = self._runner(inputs, targets) if teach else None
        if taught is None:
            return self._student_loss(x, y, y_pred, sample_weight, training) + self._additional_loss()
        return self._total_loss(x, y, y_pred, sample_weight, taught, features, training=training)

    def _total_loss(
        self,
        x: Any,
        y: Any,
        y_pred: Any,
        sample_weight: Any,
        taught: Any,
        features: Any,
        training: bool = True,
    ) -> Tensor:
        step, total_steps = self._progress()
        share = value_at(self.student_loss_weight, step, total_steps)
        tracked: dict[str, Any] = {}
        total: Any = self._additional_loss()
        if self._has_label_loss and y is not None:
            tracked["student_loss"] = self._student_loss(x, y, y_pred, sample_weight, training)
            if not _is_zero(self.student_loss_weight):
                total = total + share * tracked["student_loss"]
        elif not _is_zero(self.student_loss_weight):
            raise ValueError(
                f"This batch has no labels, and student_loss_weight is {self.student_loss_weight!r}. Give labels, "
                "or set student_loss_weight=0 to learn from the teacher alone."
            )
        if taught is not None:
            teacher_outputs, teacher_features = taught
            distillation, values = self._objective(
                teacher_outputs,
                y_pred,
                teacher_features,
                features,
                labels=y,
                sample_weight=sample_weight,
                step=step,
                total_steps=total_steps,
            )
            # Gradients are summed over replicas: Keras scales the label loss for that, and so is this one.
            replicas = self.distribute_strategy.num_replicas_in_sync
            tracked["distillation_loss"] = distillation / replicas
            tracked.update({name: value / replicas for name, value in values.items()})
            total = total + (1.0 - share) * tracked["distillation_loss"]
        self._track(x, total_loss=total, **tracked)
        if self._balanced and training and taught is not None:
            self._terms = tracked
        return total

    def _student_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Tensor:
        """The compiled loss without regularizers and `add_loss` terms."""
        self._additional_losses_only_here = True
        try:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        finally:
            self._additional_losses_only_here = False

    @property
    def losses(self) -> list[Any]:
        """Regularizers and `add_loss` terms of the student and the adapters."""
        if self._additional_losses_only_here:
            return []
        return [loss for layer in (self.student, *self.adapters) for loss in layer.losses]

    def _additional_loss(self) -> Tensor:
        replicas = self.distribute_strategy.num_replicas_in_sync
        return sum((ops.sum(ops.cast(loss, "float32")) for loss in self.losses), ops.zeros(())) / replicas

    # Schedules.

    def _make_fit_length(self) -> None:
        """Two numbers that schedules over the whole fit need: the step it began at and its length."""
        schedules = [*self._objective.schedules, self.student_loss_weight]
        self._fit_length = None
        if any(isinstance(schedule, Schedule) and schedule.needs_total_steps for schedule in schedules):
            self._fit_length = self.add_weight(
                shape=(2,), initializer="zeros", dtype="float32", trainable=False, name="fit_start_and_length"
            )

    def _progress(self) -> tuple[Any, Any]:
        """(optimizer steps since the fit began, its length or None)."""
        if not self.compiled or self.optimizer is None:
            return 0, None
        step = ops.cast(self.optimizer.iterations, "float32")
        if self._fit_length is None:
            return step, None
        start_and_length = ops.convert_to_tensor(self._fit_length)
        return step - start_and_length[0], start_and_length[1]

    # Logs.

    def _track(self, x: Any, **values: Any) -> None:
        replicas = self.distribute_strategy.num_replicas_in_sync
        batch = ops.cast(ops.shape(keras.tree.flatten(x)[0])[0], "float32")
        for tracker in self._trackers:
            if tracker.name in values:
                tracker.update_state(values[tracker.name] * replicas, sample_weight=batch)
                self._measured.add(tracker.name)

    @property
    def _trackers(self) -> list[Any]:
        return [
            self.total_loss_tracker,
            self.student_loss_tracker,
            self.distillation_loss_tracker,
            *self.named_loss_trackers,
        ]

    def _results(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        if y is None:
            return self.get_metrics_result()
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """The logs: what was measured and nothing else."""
        results = super().get_metrics_result()
        for tracker in self._trackers:
            if tf.executing_eagerly():
                measured = float(ops.convert_to_numpy(tracker.count)) > 0
            else:
                measured = tracker.name in self._measured
            if not measured:
                results.pop(tracker.name, None)
        results.pop("loss", None)
        if "total_loss" in results:
            results = {"loss": results["total_loss"], **results}
        return results

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Everything the Distiller is made of, ready for JSON."""
        config = {**super().get_config(), **distiller_config.config_of(self, self._objective)}
        if self.save_teacher == "reference":
            known = isinstance(self.teacher, keras.Model)
            config["teacher_fingerprint"] = fingerprint(self.teacher) if known else self._expected_fingerprint
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Distiller":
        """The Distiller that `get_config` described, without a teacher unless it was embedded."""
        config = distiller_config.arguments_of(config, custom_objects)
        expected = config.pop("teacher_fingerprint", None)
        distiller = cls(**config)
        distiller._expected_fingerprint = expected
        return distiller

    def get_compile_config(self) -> Any:
        """Arguments of `compile`."""
        config = super().get_compile_config()
        return config and {**config, "evaluate_distillation": self.evaluate_distillation}

    def compile_from_config(self, config: Any) -> None:
        """Compile as before saving, so that training can go on."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)


def _is_zero(weight: Any) -> bool:
    return not isinstance(weight, Schedule) and weight == 0


def _is_one(weight: Any) -> bool:
    return not isinstance(weight, Schedule) and weight == 1
