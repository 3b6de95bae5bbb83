"""The ready-made augmentations do what their names say, and no more."""

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.teachers.augmentations import (
    CutMix,
    Jitter,
    Mixup,
    RandomColor,
    RandomCrop,
    RandomFlip,
    RandomScale,
    RandomShift,
    RandomTimeShift,
)

SEEDS = [tf.constant([5, number]) for number in range(40)]
IMAGE = np.random.default_rng(0).integers(1, 256, (8, 10, 3)).astype("uint8")  # no black pixel
SERIES = np.random.default_rng(1).normal(size=(12, 3)).astype("float32")


def results(augment, example):
    return [augment(tf.constant(example), seed).numpy() for seed in SEEDS]


@pytest.mark.parametrize("vertical", [False, True])
def test_flips_are_the_image_or_its_mirror_images(vertical):
    kinds = {IMAGE.tobytes(), IMAGE[:, ::-1].tobytes()}
    if vertical:
        kinds |= {IMAGE[::-1].tobytes(), IMAGE[::-1, ::-1].tobytes()}
    assert {image.tobytes() for image in results(RandomFlip(vertical), IMAGE)} == kinds


def test_shifts_reach_as_far_as_they_are_allowed_to():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    places = {
        padded[row : row + 8, column : column + 10].tobytes(): (row - 2, column - 2)
        for row in range(5)
        for column in range(5)
    }
    found = {places[image.tobytes()] for image in results(RandomShift(2), IMAGE)}
    assert {row for row, _ in found} == {column for _, column in found} == {-2, -1, 0, 1, 2}


def test_crops_show_parts_of_the_image():
    # Height and width are told apart by two ramps, so that the corners of a crop can be read off it.
    rows, columns = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")
    ramps = np.stack([rows, columns, rows], axis=-1).astype("float32")
    areas = []
    for image in results(RandomCrop(least_area=0.25, least_ratio=0.75), ramps):
        assert image.shape == ramps.shape and image.min() >= 0.0 and image.max() <= 63.0
        # An enlarged ramp of n pixels goes from about its first value to its last: n - 1 steps at most.
        height, width = np.ptp(image[..., 0]) + 1.0, np.ptp(image[..., 1]) + 1.0
        areas.append(height * width / 64**2)
        assert 0.75 * 0.9 < width / height < 1.1 / 0.75  # whole pixels
    # Half a pixel is lost at each border where the image is made larger.
    assert min(areas) > 0.2 and max(areas) <= 1.0 and np.ptp(areas) > 0.3


def test_colors_keep_the_place_of_things_and_the_range():
    gray = np.full((4, 4, 1), 100, "uint8")
    brightness = RandomColor(brightness=0.2, contrast=0.0, saturation=0.0, hue=0.0)
    values = results(brightness, gray)
    assert all(np.ptp(image) == 0 for image in values)
    shifts = np.array([int(image[0, 0, 0]) - 100 for image in values])
    # 0.2 of 255 is 51, and rounding.
    assert np.abs(shifts).max() <= 52 and shifts.min() < -25 and shifts.max() > 25
    colored = results(RandomColor(), IMAGE)
    assert all(image.dtype == np.uint8 and image.shape == IMAGE.shape for image in colored)
    assert len({image.tobytes() for image in colored}) == len(SEEDS)
    nothing = RandomColor(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    assert all(np.array_equal(image, IMAGE) for image in results(nothing, IMAGE))


def test_series_get_noise_factors_and_shifts():
    noise = np.concatenate([result - SERIES for result in results(Jitter(0.1), SERIES)])
    # 40 series of 36 values: 0.1 / sqrt(2 * 1440) is 0.002.
    assert abs(noise.std() - 0.1) < 0.01 and abs(noise.mean()) < 0.01
    factors = np.stack([result / SERIES for result in results(RandomScale(0.2), SERIES)])
    np.testing.assert_allclose(factors, factors[:, :1].repeat(12, axis=1), rtol=1e-5)  # one for each channel
    assert 0.8 <= factors.min() < 0.85 and 1.15 < factors.max() <= 1.2 + 1e-6
    places = np.arange(12)
    shifted = {SERIES[np.clip(places + step, 0, 11)].tobytes(): step for step in range(-3, 4)}
    found = {shifted[result.tobytes()] for result in results(RandomTimeShift(3), SERIES)}
    assert found == set(range(-3, 4))


def test_cutmix_cuts_one_rectangle_whose_area_is_the_share():
    shares = []
    for seed in SEEDS:
        mixed, share = CutMix()(tf.zeros((8, 10, 3)), tf.ones((8, 10, 3)), seed)
        cut = mixed.numpy()[..., 0]
        rows, columns = np.flatnonzero(cut.any(axis=1)), np.flatnonzero(cut.any(axis=0))
        if len(rows):
            assert cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert float(share) == pytest.approx(1.0 - cut.mean(), abs=1e-6)
        shares.append(float(share))
    assert min(shares) < 0.5 and max(shares) > 0.9


@pytest.mark.parametrize(("alpha", "spread"), [(0.2, 0.42), (8.0, 0.12)])
def test_mixup_takes_its_share_from_a_beta_distribution(alpha, spread):
    """The standard deviation of Beta(a, a) is 1 / sqrt(8 a + 4)."""
    seeds = [tf.constant([6, number]) for number in range(150)]
    shares = np.array([float(Mixup(alpha)(tf.ones((2,)), tf.zeros((2,)), seed)[1]) for seed in seeds])
    assert abs(shares.mean() - 0.5) < 0.12  # three standard errors of 0.42 / sqrt(150)
    assert abs(shares.std() - spread) < 0.05
    mixed, share = Mixup(alpha)(tf.constant([2.0, 4.0]), tf.zeros((2,)), seeds[0])
    np.testing.assert_allclose(mixed, float(share) * np.array([2.0, 4.0]), rtol=1e-6)
