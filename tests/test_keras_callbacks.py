"""Keras's own callbacks and ways of calling a model, with a `Trainer`: what they do to weights, they do to all variables."""

import copy
import io
import math
import pickle

import keras
import numpy as np
import pytest

import minimand
from minimand.transforms import VariationalWeightNoise, WeightNoise
from tests.helpers import assert_same, data, network, numpy, weights_of

# Each test trains.
pytestmark = pytest.mark.slow

callbacks = keras.callbacks


def trainer_of(learned=True, *, optimizer=None, transforms=None, **arguments):
    """Of a loss and, if `learned`, of noise that have variables of their own."""
    transforms = transforms or [VariationalWeightNoise(seed=1) if learned else WeightNoise(0.1, seed=1)]
    trainer = minimand.Trainer(network())
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    trainer.compile(optimizer, minimand.losses.AdaptiveRobust(), transforms=transforms, **arguments)
    return trainer


def fit(trainer, x, y, *, epochs=1, **arguments):
    return trainer.fit(x, y, batch_size=35, epochs=epochs, shuffle=False, verbose=0, **arguments).history


def trained(trainer):
    """The variables that training changes, as they are now."""
    return [numpy(variable).copy() for variable in trainer.trainable_variables]


class Snapshots(callbacks.Callback):
    """All variables at the end of each epoch, and the learning rates in it."""

    def __init__(self):
        super().__init__()
        self.weights, self.rates = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())
        optimizer = self.model.optimizer
        parts = getattr(optimizer, "parts", [optimizer])
        self.rates.append([float(numpy(part.learning_rate)) for part in parts])


class Score(callbacks.Callback):
    """Puts given numbers into the logs, for the callbacks after it."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = self.scores[epoch]


def test_early_stopping_restores_all_variables_of_the_best_epoch(random):
    x, y = data(random)
    trainer, seen = trainer_of(), Snapshots()
    stopping = callbacks.EarlyStopping("score", mode="min", patience=2, restore_best_weights=True)
    fit(trainer, x, y, epochs=9, callbacks=[Score([3.0, 1.0, 2.0, 2.0, 0.0, 0.0]), seen, stopping])
    assert len(seen.weights) == 4
    assert_same(trainer.get_weights(), seen.weights[1])
    # Among them are those of the loss and the noise, which have moved since.
    own = [numpy(variable) for variable in trainer.loss.trainable_variables]
    assert len(own) == 2
    assert any(not np.array_equal(a, b) for a, b in zip(seen.weights[1], seen.weights[3], strict=True))


@pytest.mark.parametrize("ending", [".keras", ".weights.h5"])
def test_checkpoints_are_of_the_epoch_that_was_best(ending, random, tmp_path):
    x, y = data(random)
    trainer, seen = trainer_of(loss_learning_rate=0.05), Snapshots()
    path = tmp_path / f"best{ending}"
    checkpoint = callbacks.ModelCheckpoint(
        path, "score", mode="max", save_best_only=True, save_weights_only=ending == ".weights.h5"
    )
    fit(trainer, x, y, epochs=4, callbacks=[Score([0.1, 0.9, 0.5, 0.2]), seen, checkpoint])
    if ending == ".keras":
        loaded = keras.saving.load_model(path)
    else:
        loaded = trainer_of(loss_learning_rate=0.05)
        fit(loaded, x, y)
        loaded.load_weights(path)
    assert_same(loaded.get_weights(), seen.weights[1])
    # It goes on from there as the first one did.
    again = Snapshots()
    fit(loaded, x, y, callbacks=[again])
    assert_same(again.weights[0], seen.weights[2], rtol=1e-6, atol=1e-7)


def rates(trainer, x, y, callback, scores):
    seen = Snapshots()
    fit(trainer, x, y, epochs=len(scores), callbacks=[Score(scores), seen, callback])
    return np.array(seen.rates)


def test_a_plateau_lowers_the_rate(random):
    x, y = data(random)
    plateau = callbacks.ReduceLROnPlateau("score", mode="min", factor=0.1, patience=1, min_delta=0.0)
    found = rates(trainer_of(), x, y, plateau, [2.0, 1.0, 1.5, 0.5, 0.7])
    np.testing.assert_allclose(found[:, 0], [0.01, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize(
    ("callback", "last"),
    [
        (callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2), 0.01 / 8),
        # A warm-up from 0, which is given without the present rate.
        (callbacks.LearningRateScheduler(lambda epoch: 0.02 * epoch), 0.04),
        (callbacks.ReduceLROnPlateau("score", mode="min", factor=0.5, patience=1, min_delta=0.0), 0.01 / 4),
    ],
)
def test_where_the_loss_has_a_rate_of_its_own_both_are_lowered(callback, last, random):
    x, y = data(random)
    trainer = trainer_of(loss_learning_rate=0.05)
    found = rates(trainer, x, y, callback, [0.0] * 3)
    np.testing.assert_allclose(found[:, 1], 5 * found[:, 0], rtol=1e-6)
    assert float(numpy(trainer.optimizer.learning_rate)) == pytest.approx(last, rel=1e-6)


def test_training_ends_where_the_loss_is_no_number(random):
    x, y = data(random)
    y[40] = np.nan
    trainer, seen = trainer_of(learned=False), Snapshots()
    history = fit(trainer, x, y, epochs=5, callbacks=[seen, callbacks.TerminateOnNaN()])
    assert len(seen.weights) == 1
    assert math.isnan(history["loss"][0])


def test_averages_of_weights_are_the_losss_too(random):
    """With decay m, m a + (1 - m) w after each step, from the first step's w; Keras puts them in at the end of `fit`."""
    x, y = data(random)
    trainer = trainer_of(learned=False, optimizer=keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.75))
    averages = []

    def average(epoch, logs):
        now = trained(trainer)
        averages[:] = [0.75 * a + 0.25 * w for a, w in zip(averages, now, strict=True)] if averages else now

    # A step an epoch.
    fit(trainer, x[:35], y[:35], epochs=4, callbacks=[callbacks.LambdaCallback(on_epoch_end=average)])
    assert len(averages) == len(trainer.model.trainable_variables) + 2
    assert_same(trained(trainer), averages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [None, 0.02], ids=["one rate", "two rates"])
@pytest.mark.parametrize("wrapped", [lambda sgd: sgd, minimand.optimizers.SNRScaling], ids=["plain", "wrapped"])
def test_averages_are_swapped_in_for_validation(wrapped, rate, random):
    x, y = data(random)
    optimizer = wrapped(keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.75))
    trainer = trainer_of(learned=False, optimizer=optimizer, loss_learning_rate=rate)
    steps, validated = [], []
    after = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: steps.append(trained(trainer)))
    after.on_test_begin = lambda logs=None: validated.append(trained(trainer))
    fit(trainer, x[:35], y[:35], epochs=3, validation_data=(x, y), callbacks=[callbacks.SwapEMAWeights(), after])
    average = steps[0]
    for step, of_validation in zip(steps, validated, strict=True):
        average = [0.75 * a + 0.25 * w for a, w in zip(average, step, strict=True)]
        assert_same(of_validation, average, rtol=1e-5, atol=1e-6)


def test_validation_is_the_plain_loss_at_the_clean_weights(random):
    x, y = data(random)
    trainer = trainer_of(learned=False, transforms=[WeightNoise(3.0, seed=1)])
    history = fit(trainer, x, y, epochs=4, validation_data=(x[:20], y[:20]), validation_freq=2)
    assert len(history["val_loss"]) == 2
    expected = numpy(trainer.loss(y[:20], numpy(trainer.model(x[:20], training=False))))
    assert history["val_loss"][-1] == pytest.approx(float(expected), rel=1e-5)
    assert_same([trainer.predict_on_batch(x)], [trainer.model.predict_on_batch(x)])
    for scores in (trainer.test_on_batch(x[:20], y[:20]), trainer.evaluate(x[:20], y[:20], verbose=0)):
        # And the mean of the loss's shapes and scales, each once.
        own = [trainer.loss.alpha.mean(), trainer.loss.scale.mean()]
        np.testing.assert_allclose(scores, [expected, *own], rtol=1e-5)
    assert trainer.metrics_names == ["loss", "adaptive_robust_alpha", "adaptive_robust_scale"]


def test_epochs_go_on_where_they_ended(random):
    x, y = data(random)
    seen = []
    trainer = trainer_of()
    last = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))
    fit(trainer, x, y, epochs=2, callbacks=[last])
    fit(trainer, x, y, epochs=5, initial_epoch=2, callbacks=[last])
    assert seen == [0, 1, 2, 3, 4]


def test_a_summary_counts_the_variables_of_loss_and_transforms(random):
    x, y = data(random)
    trainer = trainer_of()
    fit(trainer, x, y)
    lines = []
    trainer.summary(print_fn=lambda line, **more: lines.append(line))
    text = "\n".join(lines)
    assert trainer.count_params() == trainer.model.count_params() + trainer.objective_state.count_params()
    for name in ("objective", trainer.model.name):
        assert name in text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda trainer: pickle.load(io.BytesIO(pickle.dumps(trainer)))])
def test_copies_train_alike_and_apart(copied, random):
    x, y = data(random)
    trainer = trainer_of(loss_learning_rate=0.05)
    fit(trainer, x, y)
    twin = copied(trainer)
    before = weights_of(trainer)
    assert_same(weights_of(twin), before)
    fit(twin, x, y)
    assert_same(weights_of(trainer), before)
    fit(trainer, x, y)
    assert_same(weights_of(twin), weights_of(trainer), rtol=1e-6, atol=1e-7)
