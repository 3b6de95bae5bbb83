"""The teachers a Distiller takes: other inputs, several of them, moving averages, chains."""

import keras
import numpy as np
import pytest
from distiller_pairs import FROM_LOGITS, X, Y, dense, kl, softmax, train
from keras import layers

from keras_kd import Distiller, TeacherEnsemble
from keras_kd.chain import distill_chain
from keras_kd.losses import FeatureDistillation, LogitsDistillation
from keras_kd.teachers.moving_average import MovingAverageTeacher


@keras.saving.register_keras_serializable("test_distiller_models")
def doubled(x):
    return keras.ops.concatenate([x, x], axis=-1)


def wide_teacher(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((10,)), layers.Dense(3)])


def test_a_teacher_that_wants_another_input():
    teacher, student = wide_teacher(1), dense(4, 2)
    with pytest.raises(ValueError, match=r"\(None, 10\).*\(None, 5\).*teacher_preprocessing"):
        Distiller(teacher, student, LogitsDistillation())
    logs = train(Distiller(teacher, student, LogitsDistillation(), teacher_preprocessing=doubled))
    t, s = np.asarray(teacher(np.concatenate([X, X], -1)), "float64"), np.asarray(student(X), "float64")
    assert logs["distillation_loss"] == pytest.approx(9 * kl(softmax(t, 3), softmax(s, 3)).mean(), rel=1e-4)


def test_an_ensemble_is_the_mean_of_probabilities_at_the_losses_temperature(tmp_path):
    members = [dense(6, 1), wide_teacher(2), dense(5, 3, activation="softmax")]
    ensemble = TeacherEnsemble(members, [2, 1, 1], preprocessing=[None, doubled, None])
    student = dense(4, 4)
    distiller = Distiller(
        ensemble,
        student,
        [LogitsDistillation(temperature=4.0), LogitsDistillation(temperature=1.0, name="cold")],
    )
    logs = train(distiller)
    z = [
        np.asarray(members[0](X), "float64"),
        np.asarray(members[1](np.concatenate([X, X], -1)), "float64"),
        np.log(np.asarray(members[2](X), "float64")),
    ]
    s = np.asarray(student(X), "float64")
    for name, temperature in (("logits_distillation", 4.0), ("cold", 1.0)):
        p = sum(w * softmax(logits, temperature) for w, logits in zip((0.5, 0.25, 0.25), z))
        expected = temperature**2 * kl(p, softmax(s, temperature)).mean()
        assert logs[name] == pytest.approx(expected, rel=1e-4)
    assert not any(member.trainable for member in members)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert train(loaded)["total_loss"] == pytest.approx(logs["total_loss"], rel=1e-5)


def test_a_list_of_teachers_is_an_ensemble_and_cannot_be_tapped():
    distiller = Distiller([dense(6, 1), dense(6, 2)], dense(4, 3), LogitsDistillation())
    assert isinstance(distiller.teacher, TeacherEnsemble)
    with pytest.raises(ValueError, match="cannot be tapped in an ensemble"):
        Distiller([dense(6, 1), dense(6, 2)], dense(4, 3), FeatureDistillation("mse", "hidden", "hidden"))


def test_bad_ensembles_list_everything_that_is_wrong():
    with pytest.raises(ValueError, match="2 problems"):
        TeacherEnsemble([dense(6, 1), "model"], weights=[1.0])
    with pytest.raises(ValueError, match="positive sum"):
        TeacherEnsemble([dense(6, 1)], weights=[0.0])


def test_a_moving_average_teacher_follows_every_step():
    student = dense(4, 2)
    teacher = MovingAverageTeacher(student, momentum=0.9)
    expected = [w.astype("float64") for w in student.get_weights()]
    distiller = Distiller(teacher, student, LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.5), FROM_LOGITS)
    for _ in range(3):
        distiller.fit(X, Y, batch_size=24, verbose=0)
        expected = [0.9 * e + 0.1 * w for e, w in zip(expected, student.get_weights())]
    for average, want in zip(teacher.get_weights(), expected):
        np.testing.assert_allclose(average, want, atol=1e-6)
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(teacher.get_weights(), student.get_weights()))
    with pytest.raises(ValueError, match="MovingAverageTeacher"):
        Distiller(student, student, LogitsDistillation())


def test_a_moving_average_teacher_is_saved_with_its_weights(tmp_path):
    student = dense(4, 2)
    distiller = Distiller(MovingAverageTeacher(student, 0.5), student, LogitsDistillation())
    distiller.compile(keras.optimizers.SGD(0.5), FROM_LOGITS)
    distiller.fit(X, Y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    for a, b in zip(distiller.teacher.get_weights(), loaded.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(student.get_weights(), loaded.student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.teacher.momentum == 0.5


def test_a_chain_returns_every_model_and_history():
    models = [dense(12, 1), dense(6, 2), dense(3, 3)]
    before = [model.get_weights() for model in models]
    seen = []
    stages = distill_chain(
        models,
        X,
        Y,
        loss=FROM_LOGITS,
        epochs=2,
        verbose=0,
        on_stage=lambda i, d: seen.append((i, d.teacher, d.student)),
    )
    assert seen == [(0, models[0], models[1]), (1, models[1], models[2])]
    assert [stage.model for stage in stages] == models
    assert stages[0].history is None and all(len(s.history.history["loss"]) == 2 for s in stages[1:])
    np.testing.assert_array_equal(before[0][0], models[0].get_weights()[0])
    assert np.abs(before[1][0] - models[1].get_weights()[0]).max() > 0
    assert np.abs(before[2][0] - models[2].get_weights()[0]).max() > 0
    with pytest.raises(ValueError, match="at least two"):
        distill_chain(models[:1], X, Y)
