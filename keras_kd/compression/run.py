"""The phases of a compression: what `keras_kd.compress` does, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from keras_kd.compression import adapt, batches, tfmot
from keras_kd.compression.kernels import kernels
from keras_kd.compression.masks import MaskedKernels
from keras_kd.compression.plan import LayerPlan, check_clusters, check_finite, check_sparsity, plan_layers
from keras_kd.compression.post_training import correct_bias, equalize
from keras_kd.compression.preparation import Settings, Training, phases_of, prepare
from keras_kd.compression.quantize_configs import quantize
from keras_kd.compression.recipe import CompressionRecipe, Pruning, block_of
from keras_kd.compression.report import CompressionReport
from keras_kd.compression.rows import converter_notes, island_note, layer_rows
from keras_kd.compression.schedule import pruning_steps
from keras_kd.compression.sensitivity import AUTO_SPARSITIES, measure_layers
from keras_kd.compression.student import feature_tensors, private_copy
from keras_kd.compression.trainer import BestEpoch, FineTuner
from keras_kd.teachers.targets import unpack

_TITLES = {"prune": "Pruning", "cluster": "Clustering", "quantize": "Quantization-aware training"}
_DEFAULT_LEARNING_RATE = 1e-3
_SENSITIVITY_BATCHES = 20


def run(
    student: Any, x: Any, y: Any, teacher: Any, validation_data: Any, settings: Settings
) -> tuple[Any, Any, CompressionReport, Any]:
    """Compresses; arguments as for `compress`.

    Returns:
      The tf_keras model, the same before quantization, the report, and the calibration sample.
    """
    recipe = settings.recipe
    if not isinstance(recipe, CompressionRecipe):
        raise ValueError(f"recipe must be a CompressionRecipe or its name, got {type(recipe).__name__}")
    both = private_copy(student, seed=settings.seed)
    model = both.model
    phases = phases_of(recipe)
    training = prepare(both, x, y, teacher, validation_data, settings, phases)
    calibration = batches.calibration_sample(x, seed=settings.seed)
    notes: list[str] = []
    admitted, refusal = None, None
    if recipe.pruning is not None and recipe.pruning.policy == "xnnpack":
        admitted, refusal = tfmot.xnnpack_prunable(model)
        if refusal:
            raise ValueError(
                f"Pruning(policy='xnnpack'): XNNPACK's sparse kernels do not fit this model. {refusal}"
            )
    auto = None
    if recipe.pruning is not None and recipe.pruning.per_layer == "auto":
        auto, note = _allocated(model, recipe.pruning, admitted, training)
        notes.append(note)
    plans = plan_layers(model, recipe.pruning, recipe.clustering, policy_layers=admitted, auto=auto)

    def check(stage: Any, when: str, wrappers: Mapping[str, Any] | None = None) -> None:
        check_finite(model, when=when)
        if recipe.pruning is not None:
            check_sparsity(stage, plans, recipe.pruning, when=when, wrappers=wrappers)
        if recipe.clustering is not None and when != "after pruning":
            check_clusters(stage, plans, when=when, wrappers=wrappers)

    if recipe.pruning is not None:
        model = _prune(model, recipe.pruning, plans, training)
        check(model, "after pruning")
    if recipe.clustering is not None:
        model = _cluster(model, plans, training, keep_zeros=recipe.pruning is not None)
        check(model, "after clustering")
    float_reasons: dict[str, str] = {}
    plain = model
    if recipe.quantization == "int8_qat":
        model, float_reasons = quantize(
            model, keep_zeros=recipe.pruning is not None, keep_clusters=recipe.clustering is not None
        )
        _fit("quantize", model, training)
        check(plain, "after quantization-aware training", tfmot.wrappers(model))
    if recipe.equalize:
        notes.append(f"cross-layer equalization of {equalize(model)} pairs of layers")
    if recipe.correct_bias:
        notes.append(f"bias correction of {correct_bias(model, calibration)} layers")
    training.backup.clear(phases)
    rows = layer_rows(plain, model, plans, recipe, float_reasons)
    notes += island_note(plain, float_reasons) + converter_notes(plain, recipe.quantization)
    report = CompressionReport(str(recipe), rows, training.history, training.best, tuple(notes))
    return model, plain, report, calibration


def _allocated(
    model: Any, pruning: Pruning, admitted: set[str] | None, training: Training
) -> tuple[dict[str, float], str]:
    """Sparsity per layer from a measurement on the first batches of training data."""
    data = training.data
    assert data is not None  # prepare made sure: pruning is a phase
    if not data.has_labels or len(model.outputs) != 1:
        raise ValueError(
            "Pruning(per_layer='auto') measures the labels' loss: it needs labels and one output"
        )
    uniform = plan_layers(model, dataclasses.replace(pruning, per_layer=None), None, policy_layers=admitted)
    layers = [name for name, plan in uniform.items() if plan.sparsity is not None]
    few = list(data.dataset(0).take(min(data.steps, _SENSITIVITY_BATCHES)))
    model.compile(loss=training.loss, jit_compile=False)

    def measure() -> tuple[float, None]:
        losses = [
            float(model.compute_loss(None, y, model(unpack(x)[0], training=False), weight))
            for x, y, weight in few
        ]
        return sum(losses) / len(losses), None

    examples = sum(int(tf.nest.flatten(x)[0].shape[0]) for x, _, _ in few)
    found = measure_layers(model, measure, sparsities=AUTO_SPARSITIES, layers=layers, examples=examples)
    chosen = found.allocate(pruning.sparsity or 0.0)
    shown = ", ".join(f"{name} {100 * value:.0f} %" for name, value in chosen.items())
    return chosen, f"sparsity per layer by sensitivity on {examples} training examples: {shown}"


def _prune(model: Any, pruning: Pruning, plans: Mapping[str, LayerPlan], training: Training) -> Any:
    if _was_finished("prune", model, training):
        return model
    data = training.data
    assert data is not None  # prepare made sure: pruning is a phase
    steps = pruning_steps(data.steps * training.epochs["prune"], pruning.begin, pruning.end)
    block, two_of_four = block_of(pruning.pattern) or (1, 1), pruning.pattern == "2:4"
    by_tfmot: dict[str, float] = {}
    by_us: list[tuple[Any, float]] = []
    for layer in model.layers:
        sparsity = plans[layer.name].sparsity
        if sparsity is None:
            continue
        flat = all(kernel.shape.rank == 2 for kernel in kernels(layer))
        # TF-MOT sets 2:4 masks at its first step whatever the schedule says, and its blocks need flat
        # kernels.
        if not two_of_four and (flat or block == (1, 1)) and tfmot.can_prune(layer):
            by_tfmot[layer.name] = sparsity
        else:
            by_us += [(kernel, sparsity) for kernel in kernels(layer)]
    wrapped = tfmot.with_pruning(model, by_tfmot, steps, block=block)
    masks = MaskedKernels(by_us, steps, block=block, two_of_four=two_of_four)
    # Only epochs that end at the full sparsity may be chosen as the best one.
    first = -(-steps.end // data.steps) - 1
    _fit("prune", wrapped, training, masks=masks, first=first, extra=[tfmot.pruning_callback()])
    stripped = tfmot.without_pruning(wrapped)
    training.backup.finish("prune", stripped, training.history["prune"], training.best["prune"])
    return stripped


def _cluster(model: Any, plans: Mapping[str, LayerPlan], training: Training, *, keep_zeros: bool) -> Any:
    if _was_finished("cluster", model, training):
        return model
    clusters = {name: plan.clusters for name, plan in plans.items() if plan.clusters is not None}
    wrapped = tfmot.with_clustering(model, clusters, keep_zeros=keep_zeros)
    _fit("cluster", wrapped, training)
    stripped = tfmot.without_clustering(wrapped)
    training.backup.finish("cluster", stripped, training.history["cluster"], training.best["cluster"])
    return stripped


def _was_finished(phase: str, model: Any, training: Training) -> bool:
    """Whether an earlier run finished this phase; its weights are in `model` then."""
    facts = training.backup.finished(phase, model)
    if facts is not None:
        training.history[phase], training.best[phase] = facts["history"], facts["best"]
    return facts is not None


def _fit(
    phase: str,
    model: Any,
    training: Training,
    *,
    masks: MaskedKernels | None = None,
    first: int = 0,
    extra: list[Any] | None = None,
) -> None:
    data, teaching, epochs = training.data, training.teaching, training.epochs[phase]
    assert data is not None
    features: dict[str, Any] = {}
    if teaching:
        tensors = feature_tensors(model, teaching.taps.values())
        features = {name: tensors[layer] for name, layer in teaching.taps.items()}
    tuner = FineTuner(
        model,
        teaching=teaching,
        has_labels=data.has_labels,
        feature_tensors=features,
        masks=masks,
        total_steps=data.steps * epochs,
        output_names=training.output_names,
        keyed=training.keyed_outputs,
    )
    tuner.compile(
        optimizer=_optimizer(training.optimizer, data.steps * epochs),
        loss=training.loss,
        loss_weights=training.loss_weights,
        metrics=adapt.fresh_metrics(training.metrics),
        # Where none is asked for, an empty list: tf_keras warns at every evaluation otherwise.
        weighted_metrics=adapt.fresh_metrics(training.weighted_metrics) or [],
        jit_compile=False,
    )
    if training.fit.get("verbose", "auto") != 0:
        number = list(training.epochs).index(phase) + 1
        print(
            f"{_TITLES[phase]} (phase {number} of {len(training.epochs)}): {epochs} epochs of {data.steps} steps"
        )
    best = BestEpoch(first)
    trained = tfmot.trained_variables(model)
    changing = [*trained, *(teaching.trainable_variables if teaching else [])]
    tuner.optimizer.build(changing)
    variables = [
        *model.variables,
        *(masks.variables if masks else []),
        *changing[len(trained) :],
    ]
    variables += list(tuner.optimizer.variables)
    saved = training.backup.restore(phase, variables, best) or {"history": {}, "epochs": 0}
    # TF-MOT's callback comes first: it puts the masks on before anybody looks at the weights.
    history = tuner.fit(
        data.dataset(saved["epochs"]),
        epochs=epochs,
        initial_epoch=saved["epochs"],
        steps_per_epoch=data.steps,
        validation_data=training.validation,
        callbacks=[
            *(extra or []),
            best,
            *training.backup.callback(phase, variables, best, saved["history"]),
            *training.callbacks,
        ],
        **training.fit,
    )
    training.history[phase] = {
        name: [*saved["history"].get(name, []), *(float(value) for value in values)]
        for name, values in {**dict.fromkeys(saved["history"], ()), **history.history}.items()
    }
    training.best[phase] = best.epoch


def _optimizer(optimizer: Any, steps: int) -> Any:
    if optimizer is not None:
        return adapt.adapt_optimizer(optimizer)
    return tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(_DEFAULT_LEARNING_RATE, steps))
