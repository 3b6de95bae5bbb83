"""Literal values of every public loss, each small enough to be worked out by hand as its comment does."""

import inspect

import keras
import numpy as np
import pytest

from keras_kd import losses

LN2, LN3 = np.log(2.0), np.log(3.0)
A = np.array

# Logits 0 and ln 3 are the probabilities 1/4 and 3/4; all zeros are uniform.
T2, S2 = A([[0.0, LN3]]), A([[0.0, 0.0]])
# ln 4, ln 2, 0 and the same number: 4/7, 2/7, 1/7.
T3, S3 = A([[2 * LN2, LN2, 0.0]]), A([[0.0, 0.0, 0.0]])
KL2 = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)  # of (1/4, 3/4) from uniform: 0.130812
LOG_SCALE = np.log(np.expm1(A([1.0])))  # its softplus is 1

# name: (positional arguments, keyword arguments, expected)
FUNCTIONS = {
    # ln(p/q) under p, times T² = 1.
    "soft_target_kl": ((T2, S2), {}, [0.130812]),
    # The same plus the entropy of (1/4, 3/4), 0.562335: ln 2 under a uniform student.
    "soft_target_crossentropy": ((T2, S2), {}, [0.693147]),
    # Mean 2, sum of squares 2, over n − 1 = 2: std 1.
    "standardize_logits": ((A([[1.0, 2.0, 3.0]]),), {}, [[-1.0, 0.0, 1.0]]),
    # Labelled against rest: (4/7, 3/7) from (1/3, 2/3): 4/7 ln(12/7) + 3/7 ln(9/14) = 0.118640.
    # Rest: (2/3, 1/3) from uniform: 2/3 ln(4/3) + 1/3 ln(2/3) = 0.056633, eight times.
    "decoupled_kl": ((T3, S3, A([0])), {"temperature": 1.0}, [0.118640 + 8 * 0.056633]),
    # 4/7 ln 3 + 1.5 (2/3 + 1/3) ln 2.
    "normalized_kd": ((T3, S3, A([0])), {}, [4 / 7 * LN3 + 1.5 * LN2]),
    # Probabilities 3/4 and 1/4 against logits 0 and ln 3: ln 2 and ln 4 − ln 3 / 4, averaged.
    "soft_target_bce": ((A([[LN3, -LN3]]), A([[0.0, LN3]])), {}, [(LN2 + 2 * LN2 - LN3 / 4) / 2]),
    # Two classes and two examples that the student has the wrong way around: both correlations are −1.
    "correlation_distance": ((A([[1.0, 0.0], [0.0, 1.0]]), A([[0.0, 1.0], [1.0, 0.0]])), {}, 4.0),
    # (0² + 2²) / 2.
    "hint_distance": ((A([[1.0, 2.0]]), A([[1.0, 4.0]])), {}, [2.0]),
    # Channel means of squares 9 and 16, divided by their norm √337.
    "attention_map": ((A([[[3.0], [4.0]]]),), {}, [[9 / np.sqrt(337), 16 / np.sqrt(337)]]),
    # Maps (1, 0) and (0, 1).
    "attention_distance": ((A([[[3.0], [0.0]]]), A([[[0.0, 0.0], [1.0, 1.0]]])), {}, [1.0]),
    # ((1·2 + 3·4)/2, (0·2 + 2·4)/2).
    "flow_matrix": ((A([[[1.0, 0.0], [3.0, 2.0]]]), A([[[2.0], [4.0]]])), {}, [[[7.0], [4.0]]]),
    # Matrices 2 and 1.
    "flow_distance": (
        ((np.ones((1, 4, 1)), np.full((1, 4, 1), 2.0)), (np.ones((1, 4, 1)), np.ones((1, 4, 1)))),
        {},
        [1.0],
    ),
    # 1 + 1 − 2·0 for channels at different places.
    "neuron_selectivity_mmd": ((A([[[1.0], [0.0]]]), A([[[0.0], [2.0]]])), {}, [2.0]),
    # ½ (2²/1 + ln 1).
    "gaussian_nll": ((A([[3.0]]), A([[1.0]]), LOG_SCALE), {}, [2.0]),
    # Rows (1, 0) and (1, 1)/√2: each differs by (1 − 1/√2)² + ½, over the 4 entries twice.
    "similarity_distance": ((np.eye(2), np.ones((2, 1))), {}, ((1 - np.sqrt(0.5)) ** 2 + 0.5) / 2),
    # Distances 1, 1, 2 and 1, 2, 3 over their means: (¾, ¾, 1½) and (½, 1, 1½); 4 of 9 entries differ by ¼.
    # On a line all cosines are ±1 or 0, and the order is the same.
    "relational_distance": (
        (A([[0.0], [1.0], [2.0]]), A([[0.0], [1.0], [3.0]])),
        {},
        25 * (4 / 9) * 0.5 / 16,
    ),
    # Rows (1, ½)/1.5 from (½, ½): (2/3 ln 4/3 + 1/3 ln 2/3) / 2.
    "cosine_kernel_kl": ((np.eye(2), np.ones((2, 1))), {}, 0.056633 / 2),
}

TAPS = ("teacher_layer", "student_layer")


def spread_of_one(mean):
    return mean, LOG_SCALE


# name: (the loss, arguments of compute_loss, keyword arguments, expected)
CLASSES = {
    "LogitsDistillation": (losses.LogitsDistillation(temperature=1.0), (T2, S2), {}, [0.130812]),
    "DecoupledDistillation": (
        losses.DecoupledDistillation(temperature=1.0),
        (T3, S3),
        {"labels": A([0])},
        [0.118640 + 8 * 0.056633],
    ),
    "NormalizedDistillation": (
        losses.NormalizedDistillation(),
        (T3, S3),
        {"labels": A([[1.0, 0.0, 0.0]])},
        [4 / 7 * LN3 + 1.5 * LN2],
    ),
    "CorrelationDistillation": (
        losses.CorrelationDistillation(beta=2.0),
        (A([[1.0, 0.0], [0.0, 1.0]]), A([[0.0, 1.0], [1.0, 0.0]])),
        {},
        6.0,
    ),
    "BinaryLogitsDistillation": (
        losses.BinaryLogitsDistillation(),
        (A([[LN3, -LN3]]), A([[0.0, LN3]])),
        {},
        [(LN2 + 2 * LN2 - LN3 / 4) / 2],
    ),
    "RegressionDistillation": (
        losses.RegressionDistillation("mae"),
        (A([[1.0, 5.0]]), A([[2.0, 2.0]])),
        {},
        [2.0],
    ),
    "FeatureDistillation": (losses.FeatureDistillation(), (A([[1.0, 2.0]]), A([[1.0, 4.0]])), {}, [2.0]),
    "AttentionTransfer": (
        losses.AttentionTransfer(*TAPS),
        (A([[[3.0], [0.0]]]), A([[[0.0, 0.0], [1.0, 1.0]]])),
        {},
        [1.0],
    ),
    "FlowDistillation": (
        losses.FlowDistillation(("a", "b"), ("c", "d")),
        FUNCTIONS["flow_distance"][0],
        {},
        [1.0],
    ),
    "NeuronSelectivityTransfer": (
        losses.NeuronSelectivityTransfer(*TAPS),
        (A([[[1.0], [0.0]]]), A([[[0.0], [2.0]]])),
        {},
        [2.0],
    ),
    "SimilarityPreserving": (
        losses.SimilarityPreserving(*TAPS),
        (np.eye(2), np.ones((2, 1))),
        {},
        ((1 - np.sqrt(0.5)) ** 2 + 0.5) / 2,
    ),
    "RelationalDistillation": (
        losses.RelationalDistillation(*TAPS, distance_weight=9.0),
        (A([[0.0], [1.0], [2.0]]), A([[0.0], [1.0], [3.0]])),
        {},
        9 * (4 / 9) * 0.5 / 16,
    ),
    "ProbabilisticTransfer": (
        losses.ProbabilisticTransfer(*TAPS),
        (np.eye(2), np.ones((2, 1))),
        {},
        0.056633 / 2,
    ),
    "VariationalInformation": (
        losses.VariationalInformation(*TAPS),
        (A([[3.0]]), A([[1.0]])),
        {"adapter": spread_of_one},
        [2.0],
    ),
}


def values(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor), "float64")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    arguments, keywords, expected = FUNCTIONS[name]
    # 1e-5: `gaussian_nll` adds 1e-5 to its variance; constants above are written to six places.
    np.testing.assert_allclose(values(getattr(losses, name)(*arguments, **keywords)), expected, atol=3e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    loss, arguments, keywords, expected = CLASSES[name]
    assert type(loss) is getattr(losses, name)
    result = loss.compute_loss(*arguments, **keywords)
    np.testing.assert_allclose(values(result), expected, atol=3e-5)
    assert len(result.shape) == (1 if loss.per_example else 0)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_survive_their_configuration(name):
    loss, arguments, keywords, expected = CLASSES[name]
    serialized = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(loss) and again.get_config() == loss.get_config()
    np.testing.assert_allclose(values(again.compute_loss(*arguments, **keywords)), expected, atol=3e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_take_half_precision_and_return_single(name):
    loss, arguments, keywords, expected = CLASSES[name]
    halves = keras.tree.map_structure(lambda array: keras.ops.cast(array, "float16"), arguments)
    result = loss.compute_loss(*halves, **keywords)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    # Ten bits of fraction in the arguments, and sums of up to eight of them.
    np.testing.assert_allclose(values(result), expected, rtol=5e-3)


# Functions that make losses and compute nothing themselves.
BUILDERS = {"auto"}


def test_every_public_loss_has_a_literal_value():
    public = {name: getattr(losses, name) for name in losses.__all__}
    functions = {name for name, value in public.items() if inspect.isfunction(value)}
    classes = {name for name, value in public.items() if inspect.isclass(value)} - {"DistillationLoss"}
    assert functions | classes | {"DistillationLoss"} == set(public)
    assert functions - BUILDERS == set(FUNCTIONS)
    assert classes == set(CLASSES)


def test_every_public_loss_documents_what_it_is():
    for name in losses.__all__:
        text = inspect.getdoc(getattr(losses, name)) or ""
        if name == "DistillationLoss" or name in BUILDERS:
            continue
        assert "Args:" in text and "Example:" in text and "Source:" in text, name
