"""What is sent to the workers of a cluster is there what it was here."""

import pickle

import keras
import numpy as np
import pytest

import keras_kd

pytest.importorskip("ray", reason="labelling on a cluster needs the extra 'ray'")

from keras_kd.teachers.ray_parcel import classes_of, pickled_teacher


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(3)]
    )


def test_an_ensemble_is_opened_as_it_was_packed():
    ensemble = keras_kd.TeacherEnsemble(
        [network(1), network(2)], [3, 1], preprocessing=[None, lambda batch: -batch]
    )
    with keras.saving.custom_object_scope(classes_of(ensemble)):
        opened = pickle.loads(pickled_teacher(ensemble))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    assert opened.weights_of_members == (0.75, 0.25)
    for one, other in zip(ensemble.member_outputs(x).outputs, opened.member_outputs(x).outputs, strict=True):
        np.testing.assert_array_equal(one, other)
