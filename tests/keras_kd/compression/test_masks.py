"""Our masks against plain NumPy, and against TF-MOT where TF-MOT has the same pattern."""

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.compression import tfmot
from keras_kd.compression.masks import MaskedKernels, magnitude_mask, two_of_four_mask
from keras_kd.compression.schedule import PruningSteps


def random_kernel(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(12, 8), (3, 3, 8, 4), (5, 6, 7)])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.75, 0.99])
def test_unstructured_masks_zero_exactly_the_smallest(shape, sparsity):
    kernel = random_kernel(*shape)
    mask = magnitude_mask(tf.constant(kernel), sparsity).numpy()
    keep = max(1, round(kernel.size * (1 - sparsity)))
    assert mask.sum() == keep
    if keep < kernel.size:
        assert np.abs(kernel)[mask == 1].min() > np.abs(kernel)[mask == 0].max()


def test_equal_magnitudes_do_not_change_how_many_stay():
    assert magnitude_mask(tf.ones([10, 10]), 0.7).numpy().sum() == 30


@pytest.mark.parametrize("block", [(4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("shape", [(8, 8), (3, 3, 8, 4)])
def test_blocks_go_whole_and_the_weakest_go(shape, block):
    kernel = random_kernel(*shape)
    mask = magnitude_mask(tf.constant(kernel), 0.5, block=block).numpy()
    rows = kernel.reshape(-1, shape[-2] // block[0], block[0], shape[-1] // block[1], block[1])
    means = np.abs(rows).mean(axis=(2, 4))
    per_block = mask.reshape(rows.shape).mean(axis=(2, 4))
    assert set(np.unique(per_block)) == {0.0, 1.0}
    assert per_block.sum() == per_block.size / 2
    assert means[per_block == 1].min() > means[per_block == 0].max()


def test_a_partial_block_is_judged_by_the_weights_it_has():
    # Blocks of the only column: [1, 1, 1, 1], [1, 1, 1, 1], [3]; a mean over four would drop the 3.
    kernel = np.array([[1.0]] * 8 + [[3.0]], "float32")
    mask = magnitude_mask(tf.constant(kernel), 2 / 3, block=(4, 1)).numpy().ravel()
    np.testing.assert_array_equal(mask, [0] * 8 + [1])


def tfmot_mask(kernel, **kwargs):
    """What TF-MOT zeroes in a Dense layer in one training step."""
    import tf_keras

    layer = tf_keras.layers.Dense(kernel.shape[1], use_bias=False, name="layer")
    model = tf_keras.Sequential([tf_keras.layers.Input((kernel.shape[0],)), layer])
    layer.set_weights([kernel])
    wrapped = tfmot.with_pruning(model, {"layer": 0.5}, PruningSteps(1, 1, 1), **kwargs)
    wrapped.compile(tf_keras.optimizers.SGD(0.0), "mse")
    wrapped.fit(
        np.zeros((1, kernel.shape[0])),
        np.zeros((1, kernel.shape[1])),
        verbose=0,
        callbacks=[tfmot.pruning_callback()],
    )
    return (tfmot.without_pruning(wrapped).get_weights()[0] != 0).astype("float32")


@pytest.mark.parametrize("block", [(4, 1), (1, 4)])
def test_blocks_agree_with_tfmot_where_it_has_them(block):
    kernel = random_kernel(16, 8)
    np.testing.assert_array_equal(
        magnitude_mask(tf.constant(kernel), 0.5, block=block).numpy(), tfmot_mask(kernel, block=block)
    )


def test_two_of_four_agrees_with_tfmot():
    kernel = random_kernel(16, 8)
    np.testing.assert_array_equal(
        two_of_four_mask(tf.constant(kernel)).numpy(), tfmot_mask(kernel, two_of_four=True)
    )


def test_two_of_four_in_a_convolution_holds_in_every_group_of_inputs():
    mask = two_of_four_mask(tf.constant(random_kernel(3, 3, 8, 5))).numpy()
    np.testing.assert_array_equal(mask.reshape(3, 3, 2, 4, 5).sum(axis=3), 2)


def test_two_of_four_keeps_the_larger_half_of_a_rest():
    mask = two_of_four_mask(tf.constant(random_kernel(7, 6))).numpy()
    np.testing.assert_array_equal(mask[:4].sum(axis=0), 2)
    np.testing.assert_array_equal(mask[4:].sum(axis=0), 2)


def test_masked_kernels_follow_the_schedule_and_stay_zero():
    kernel = tf.Variable(random_kernel(3, 3, 8, 8))
    steps = PruningSteps(begin=2, end=10, frequency=4)
    masks = MaskedKernels([(kernel, 0.5)], steps)
    apply = tf.function(masks.apply)
    found = []
    for step in range(1, 13):
        kernel.assign_add(tf.ones_like(kernel) * 1e-3)  # an optimizer that moves every weight
        apply(tf.constant(step, tf.int64))
        found.append(float(np.mean(kernel.numpy() == 0)))
    asked = [steps.sparsity_at(2 + (step - 2) // 4 * 4, 0.5) if step >= 2 else 0.0 for step in range(1, 13)]
    # One of 576 weights is 0.0017.
    np.testing.assert_allclose(found, asked, atol=0.0018)
    assert found[-1] == 0.5
