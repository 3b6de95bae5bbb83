"""Recipes: values, names that read back, refusals with the reason."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_kd.compression.recipe import Clustering, CompressionRecipe, Pruning, block_of

NAMES = [
    "float32",
    "int8",
    "prune75-int8",
    "prune75",
    "prune50@2:4-float16",
    "prune33.3@4x1@10..80+ends-cluster16-dynamic",
    "prune75+xnnpack",
    "prune75[auto]-int8",
    "prune75[conv-1=50,dense%2cb=0]-int8",
    "cluster16+ends-int8",
    "int8_ptq+equalize+correct_bias",
    "int16x8",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reads_back_as_itself(name):
    recipe = CompressionRecipe.from_name(name)
    assert str(recipe) == name
    assert CompressionRecipe.from_name(str(recipe)) == recipe


fractions = st.floats(0, 1, exclude_max=True, allow_nan=False)


@given(
    sparsity=fractions,
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    pattern=st.sampled_from(["unstructured", "4x1", "1x4", "16x2"]),
    per_layer=st.none()
    | st.just("auto")
    | st.dictionaries(st.text("ab-/[]=,%_é ", min_size=1), fractions, max_size=3),
    prune_ends=st.booleans(),
    # Pruned kernels need three clusters or more: one of them is zero.
    clustering=st.none() | st.builds(Clustering, st.integers(3, 255), st.booleans()),
    quantization=st.sampled_from([None, "int8_qat", "int16x8", "float16", "dynamic"]),
)
def test_every_recipe_survives_its_name(
    sparsity, span, pattern, per_layer, prune_ends, clustering, quantization
):
    pruning = Pruning(sparsity, pattern, span[0], span[1], per_layer, prune_ends)
    recipe = CompressionRecipe(pruning, clustering, quantization)
    assert CompressionRecipe.from_name(str(recipe)) == recipe


def test_the_defaults_are_the_documented_ones():
    pruning = Pruning()
    assert (pruning.sparsity, pruning.pattern, pruning.begin, pruning.end) == (0.75, "unstructured", 0.0, 0.6)
    assert CompressionRecipe().quantization == "int8_qat"
    assert CompressionRecipe(quantization="int8") == CompressionRecipe(quantization="int8_qat")
    assert Clustering().number_of_clusters == 16


def test_a_recipe_is_a_frozen_value():
    layers = {"a": 0.5}
    pruning = Pruning(0.75, per_layer=layers)
    layers["a"] = 0.9
    assert pruning.per_layer["a"] == 0.5
    assert pickle.loads(pickle.dumps(pruning)) == copy.deepcopy(pruning) == pruning
    assert len({pruning, Pruning(0.75, per_layer={"a": 0.5})}) == 1
    with pytest.raises(AttributeError):
        pruning.sparsity = 0.1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Pruning(1.0), ["sparsity", "1.0"]),
        (lambda: Pruning(0.75, "2:4"), ["2:4", "half", "0.75"]),
        (lambda: Pruning(pattern="diagonal"), ["pattern", "diagonal"]),
        (lambda: Pruning(begin=0.7, end=0.6), ["begin", "end", "0.7"]),
        (lambda: Pruning(per_layer={"a": 2.0}), ["per_layer", "2.0"]),
        (lambda: Pruning(per_layer="magic"), ["per_layer", "magic"]),
        (lambda: Pruning(pattern="2:4", per_layer="auto"), ["auto", "2:4"]),
        (lambda: Pruning(pattern="4x1", policy="xnnpack"), ["xnnpack", "4x1"]),
        (lambda: Clustering(1), ["number_of_clusters", "1"]),
        (lambda: CompressionRecipe(quantization="int4"), ["quantization", "int4", "int8_ptq"]),
        (lambda: CompressionRecipe(equalize=True), ["equalize", "int8_ptq"]),
        (lambda: CompressionRecipe(clustering=Clustering(300)), ["255", "300"]),
        (lambda: CompressionRecipe(None, Clustering(), "int8_ptq", equalize=True), ["equalize", "clusters"]),
        (lambda: CompressionRecipe.from_name("prune75-int3"), ["int3", "int8"]),
        (lambda: CompressionRecipe.from_name("int8-float16"), ["quantization", "twice"]),
        (lambda: CompressionRecipe.from_name("prune"), ["prune<percent>"]),
        (lambda: CompressionRecipe.from_name("prune75+sideways"), ["+ends"]),
        (lambda: CompressionRecipe.from_name(""), ["prune75-int8"]),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(build, words):
    with pytest.raises(ValueError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_all_problems_come_at_once():
    with pytest.raises(ValueError) as error:
        Pruning(1.5, "spiral", begin=-1)
    assert all(word in str(error.value) for word in ("sparsity", "pattern", "begin"))


def test_blocks_are_read_as_inputs_by_outputs():
    assert block_of("16x2") == (16, 2)
    assert block_of("unstructured") is None
    assert block_of("0x4") is None
