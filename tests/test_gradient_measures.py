"""Transforms that measure the gradient's variance between examples, for the logs and for the optimizer."""

import keras
import numpy as np
import pytest

from minimand.gradients import evidence, gradient_moments
from minimand.optimizers import MSVAG
from minimand.transforms import MeasureGradient, MiniBatchVariance
from minimand.transforms._gradient_measures import GradientStatistics
from tests.helpers import data, dtype_policy, network, numpy
from tests.small_networks import batch_for, small_network, squares, trainer_of

# MeasureGradient


def test_without_a_measurement_there_is_no_number():
    found = GradientStatistics("g", tensors=2, evidence=True).result()
    assert list(found) == ["g_norm", "g_variance", "g_signal_to_noise", "g_noise_scale", "g_evidence"]
    assert np.isnan([numpy(value) for value in found.values()]).all()


@pytest.mark.parametrize("estimator", ["probe", "micro_batch", "exact"])
def test_what_is_measured(estimator, random):
    """An epoch of one measured step: the keys are functions of that batch's moments."""
    model = small_network()
    x, y = (part.astype("float32") for part in batch_for(model, random, rows=12))
    exact = gradient_moments(trainer_of(model), x, y)
    measure = MeasureGradient(every=3, estimator=estimator, micro_batches=12, seed=1)
    trainer = trainer_of(model, measure, optimizer=keras.optimizers.SGD(0.0), steps_per_execution=1)
    logs = trainer.fit(x, y, batch_size=12, epochs=1, verbose=0).history
    squared_norm = sum(np.sum(np.square(m)) for m in exact.mean)
    assert logs["gradient_norm"][0] == pytest.approx(np.sqrt(squared_norm), rel=1e-5)
    trace = logs["gradient_variance"][0]
    if estimator != "probe":
        assert trace == pytest.approx(exact.trace, rel=1e-5)
    signal = squared_norm - trace / 12
    assert logs["gradient_signal_to_noise"][0] == pytest.approx(max(signal, 0) / trace, rel=1e-4)
    assert logs["gradient_noise_scale"][0] == pytest.approx(trace / signal if signal > 0 else np.inf, rel=1e-4)
    assert ("gradient_evidence" in logs) == (estimator == "exact")
    if estimator == "exact":
        assert logs["gradient_evidence"][0] == pytest.approx(evidence(exact), rel=1e-4)
    by_tensor = measure.statistics.by_tensor()
    assert by_tensor[1].sum() == pytest.approx(trace, rel=1e-5)
    assert by_tensor[0] == pytest.approx([np.sum(np.square(m)) for m in exact.mean], rel=1e-4)


@pytest.mark.slow
def test_measuring_changes_nothing_and_happens_when_it_should(random):
    """The same losses and weights; sums over the measured steps of an epoch; `evaluate` leaves the keys out."""
    x, y = data(random, rows=64)
    histories, weights = [], []
    for transforms in ([], [MeasureGradient(every=3, estimator="micro_batch", micro_batches=2)]):
        model = network()
        trainer = trainer_of(model, *transforms, optimizer=keras.optimizers.Adam(0.01))
        histories.append(trainer.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, validation_data=(x, y)))
        weights.append([v.numpy() for v in model.trainable_variables])
        assert not any("gradient" in key for key in trainer.evaluate(x, y, verbose=0, return_dict=True))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    plain, measured = (h.history for h in histories)
    np.testing.assert_allclose(measured["loss"], plain["loss"], rtol=1e-5)
    assert {key for key in measured if key not in plain} == {
        f"gradient_{key}" for key in ("norm", "variance", "signal_to_noise", "noise_scale")
    }
    # Of 12 steps, 0, 3, 6 and 9 are measured: two in the first epoch, one in the others.
    assert int(measure_count(trainer)) == 1
    assert len(set(measured["gradient_variance"])) == 3


def measure_count(trainer):
    return numpy(trainer.transforms[0].statistics.others)[1]


@pytest.mark.parametrize("mode", [{"steps_per_execution": 3}, {"jit_compile": False}, {"run_eagerly": True}], ids=str)
@pytest.mark.slow
def test_measuring_in_every_mode_of_execution(mode, random):
    """The same values as by default, from the same seeds."""
    if keras.backend.backend() == "torch" and "steps_per_execution" in mode:
        pytest.skip("Keras has no steps_per_execution on PyTorch")
    x, y = (part.astype("float32") for part in batch_for(small_network(), random, rows=96))
    histories = []
    for arguments in ({}, mode):
        trainer = trainer_of(small_network(), MeasureGradient(every=4, seed=1), **arguments)
        histories.append(trainer.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history)
    for key in ("gradient_norm", "gradient_variance"):
        assert histories[1][key] == pytest.approx(histories[0][key], rel=1e-4), key


def test_weights_that_are_frozen_between_trainings_are_left_out(random):
    x, y = (part.astype("float32") for part in batch_for(small_network(), random, rows=32))
    measure = MeasureGradient(every=1, estimator="exact")
    trainer = trainer_of(small_network(), measure)
    trainer.fit(x, y, verbose=0)
    trainer.model.layers[0].trainable = False
    trainer.compile(keras.optimizers.SGD(0.0), squares, transforms=[measure])
    found = trainer.fit(x, y, batch_size=32, verbose=0).history
    assert measure.statistics.by_tensor().shape == (3, 2)
    assert found["gradient_variance"][0] == pytest.approx(gradient_moments(trainer, x, y).trace, rel=1e-5)


def test_an_epoch_without_a_measurement_repeats_the_last(random):
    x, y = data(random, rows=32)
    trainer = trainer_of(network(), MeasureGradient(every=5, estimator="micro_batch", micro_batches=2))
    found = trainer.fit(x, y, batch_size=16, epochs=3, verbose=0).history["gradient_variance"]
    assert found[0] == found[1] > 0
    assert found[2] != found[1]


def test_measurements_are_restored_from_a_file_and_used_by_callbacks(random, tmp_path):
    x, y = data(random, rows=64)
    model = small_network()
    x = x[:, :3]
    trainer = trainer_of(model, MeasureGradient(every=2, seed=1))
    stop = keras.callbacks.EarlyStopping("gradient_signal_to_noise", mode="max", patience=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    trainer.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[stop, log])
    assert "gradient_noise_scale" in (tmp_path / "log.csv").read_text().splitlines()[0]
    trainer.save(tmp_path / "t.keras")
    loaded = keras.saving.load_model(tmp_path / "t.keras")
    histories = [t.fit(x, y, batch_size=16, verbose=0, shuffle=False).history for t in (trainer, loaded)]
    for key, value in histories[0].items():
        assert histories[1][key] == pytest.approx(value, rel=1e-5), key


def test_loss_scaling_has_no_part_in_what_is_measured(random):
    """In mixed precision the variance is that of float32, to float16's rounding."""
    x, y = (part.astype("float32") for part in batch_for(small_network(), random, rows=16))
    found = []
    for policy in ("float32", "mixed_float16"):
        with dtype_policy(policy):
            model = small_network()
        trainer = trainer_of(model, MeasureGradient(every=1, estimator="exact"))
        assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer) == (policy != "float32")
        found.append(trainer.fit(x, y, batch_size=16, verbose=0).history)
    for key in ("gradient_variance", "gradient_norm"):
        assert found[1][key] == pytest.approx(found[0][key], rel=0.02)


# MiniBatchVariance


def test_the_optimizer_gets_the_variance_of_the_batch(random):
    """M-SVAG equals a NumPy transcription over five batches; the default variance is exact for Dense layers."""
    model = small_network()
    x, y = (part.astype("float32") for part in batch_for(model, random, rows=40))
    reference = trainer_of(small_network())
    optimizer = MSVAG(0.1, beta=0.8, variance="mini_batch", clipvalue=100.0)
    trainer = trainer_of(model, MiniBatchVariance(), optimizer=optimizer)
    w = [v.numpy().astype("float64") for v in model.trainable_variables]
    m, noise = [0.0 * v for v in w], [0.0 * v for v in w]
    for step in range(5):
        rows = slice(8 * step, 8 * step + 8)
        for variable, value in zip(reference.model.trainable_variables, w, strict=True):
            variable.assign(value)
        moments = gradient_moments(reference, x[rows], y[rows])
        trainer.train_on_batch(x[rows], y[rows])
        total = 1 - 0.8 ** (step + 1)
        for k in range(len(w)):
            m[k] = 0.8 * m[k] + 0.2 * moments.mean[k]
            noise[k] = 0.64 * noise[k] + 0.04 * moments.variance[k] / 8
            mean = m[k] / total
            w[k] = w[k] - 0.1 * mean**3 / (mean**2 + noise[k] / total**2)
    for variable, value in zip(model.trainable_variables, w, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_default_of_a_layer_without_a_closed_form_is_micro_batches(random):
    """Each weight of a mixed network has the variance of its own estimator."""
    found = {}
    for estimator in ("auto", "exact", "micro_batch"):
        model = small_network(keras.layers.LayerNormalization())
        measure = MiniBatchVariance(estimator=estimator)
        trainer = trainer_of(model, measure, optimizer=MSVAG(0.1, beta=0.5, variance="mini_batch"))
        trainer.train_on_batch(*batch_for(model, np.random.default_rng(0), rows=16))
        found[estimator] = [numpy(measure.variable_of(weight, "noise")) for weight in model.trainable_variables]
        chosen = ["exact"] * 2 + ["micro_batch"] * 2 + ["exact"] * 2
        assert measure.estimators == (chosen if estimator == "auto" else [estimator] * 6)
    for name, auto, *others in zip(chosen, found["auto"], found["exact"], found["micro_batch"], strict=True):
        np.testing.assert_allclose(auto, others[name == "micro_batch"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("estimator", ["probe", "micro_batch"])
@pytest.mark.slow
def test_mini_batch_variance_in_fit_and_from_a_file(estimator, random, tmp_path):
    x, y = data(random)
    model = network() if estimator == "micro_batch" else small_network()
    x = x if estimator == "micro_batch" else x[:, :3]
    optimizer = MSVAG(0.05, variance="mini_batch", weight_decay=0.01)
    trainer = trainer_of(model, MiniBatchVariance(estimator=estimator, seed=1), optimizer=optimizer)
    losses = trainer.fit(x, y, batch_size=16, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    trainer.save(tmp_path / "t.keras")
    loaded = keras.saving.load_model(tmp_path / "t.keras")
    again = [t.fit(x, y, batch_size=16, shuffle=False, verbose=0).history["loss"] for t in (trainer, loaded)]
    assert again[1] == pytest.approx(again[0], rel=1e-5)
