"""Losses with thresholds: where these end in `fit`, what they minimise, and the models that decide by them."""

import keras
import numpy as np
import pytest
from scipy import special

import minimand
from minimand.losses import (
    CostThreshold,
    CVaR,
    DeepSVDD,
    F1Threshold,
    PrecisionAtRecallThreshold,
    QuantileThreshold,
    RecallAtPrecisionThreshold,
)
from tests.helpers import identity, steps


def test_value_at_risk_has_no_bias_of_small_batches(random):
    """Exponential losses: 1 + log 10 = 3.3026, where the batches' own worst tenths have 3.17.

    The standard error of the mean of t + 10 (l - t)+ over 64000 is sqrt(1900 - ...)/253 < 0.018; t adds its wandering.
    """
    y = random.exponential(size=(64000, 1)).astype("float32")
    loss = CVaR("mean_absolute_error", 0.9)
    trainer = minimand.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.005), loss, steps_per_execution=steps(50))
    history = trainer.fit(0 * y, y, batch_size=64, verbose=0)
    assert history.history["loss"][0] == pytest.approx(1 + np.log(10), abs=0.07)
    assert loss.threshold == pytest.approx(np.log(10), abs=0.15)


def test_a_threshold_follows_scores_that_fall_by_orders_of_magnitude(random):
    y = random.exponential(size=(64 * 800, 1)).astype("float32")
    factor = np.exp(-np.linspace(0, 5, len(y)))[:, None].astype("float32")
    loss = QuantileThreshold(0.8)
    trainer = minimand.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.02), loss, steps_per_execution=steps(50))
    trainer.fit(100 * y * factor, y, batch_size=64, shuffle=False, verbose=0)
    assert loss.threshold == pytest.approx(100 * np.exp(-5) * np.log(5), rel=0.25)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (F1Threshold, {}),
        (CostThreshold, {"false_negative_cost": 3.0}),
        (PrecisionAtRecallThreshold, {"recall": 0.8}),
        (RecallAtPrecisionThreshold, {"precision": 0.7}),
    ],
)
def test_the_threshold_is_at_the_sweeps_optimum(make, arguments, random):
    """Hard decisions at the trained threshold are as good as those at the best one, to 2 points."""
    y = (random.uniform(size=(8192, 1)) < 0.3).astype("float32")
    s = special.expit(random.normal(size=y.shape) + 2 * y - 1.8).astype("float32")
    loss = make(loss="binary_crossentropy", **arguments)
    trainer = minimand.Trainer(identity())
    trainer.compile(keras.optimizers.Adam(0.02), loss, steps_per_execution=steps(32))
    trainer.fit(s, y, batch_size=256, epochs=6, verbose=0)
    grid = np.append(np.linspace(0.01, 0.99, 197), loss.threshold)
    decisions = s >= grid
    tp, fp, p = (decisions * y).mean(axis=0), (decisions * (1 - y)).mean(axis=0), y.mean()
    recall, precision = tp / p, tp / np.maximum(tp + fp, 1e-9)
    merit, limit, target = {
        F1Threshold: (2 * tp / (tp + fp + p), recall, 0.0),
        CostThreshold: (-fp - 3 * (p - tp), recall, 0.0),
        PrecisionAtRecallThreshold: (precision, recall, 0.8),
        RecallAtPrecisionThreshold: (recall, precision, 0.7),
    }[make]
    assert limit[-1] > target - 0.02
    assert merit[-1] > merit[limit >= target].max() - 0.02


# The function that each loss minimises, and the violation of its constraint, as in the docstrings.
STATED = {
    F1Threshold: ({}, lambda tp, fp, p: (1 - 2 * tp / (tp + fp + p), None)),
    CostThreshold: (
        {"false_positive_cost": 2.0, "false_negative_cost": 5.0},
        lambda tp, fp, p: (2 * fp + 5 * (p - tp), None),
    ),
    PrecisionAtRecallThreshold: ({"recall": 0.9}, lambda tp, fp, p: (fp / (1 - p), 0.9 - tp / p)),
    RecallAtPrecisionThreshold: ({"precision": 0.8}, lambda tp, fp, p: (1 - tp / p, (0.8 * (tp + fp) - tp) / p)),
}


@pytest.mark.parametrize("make", STATED)
def test_a_threshold_minimises_the_stated_lagrangian(make, random):
    """In training, with running means and the multiplier of each step; the third batch's weights are 0."""
    arguments, stated = STATED[make]
    loss = make(temperature=0.5, momentum=0.6, **arguments)
    trainer = minimand.Trainer(identity())
    trainer.compile(keras.optimizers.SGD(0.0), loss)
    running, multiplier = None, 0.0
    for step in range(5):
        y = (random.uniform(size=(16, 1)) < 0.4).astype("float32")
        s = random.uniform(0.05, 0.95, size=(16, 1)).astype("float32")
        weights = random.integers(1, 3, size=16).astype("float32") * (step != 2)
        if step != 2:
            decisions = special.expit((special.logit(s) - special.logit(0.5)) / 0.5)
            of_batch = [np.average(v[:, 0], weights=weights) for v in (y * decisions, (1 - y) * decisions, y)]
            running = np.array(of_batch) if running is None else 0.6 * running + 0.4 * np.array(of_batch)
        expected, violation = stated(*running)
        if violation is not None:
            multiplier = max(multiplier + 0.1 * np.clip(violation, -0.1, 0.1), 0.0)
            expected += (max(multiplier + 10 * violation, 0.0) ** 2 - multiplier**2) / 20
        trainer.reset_metrics()
        found = trainer.train_on_batch(s, y, sample_weight=weights, return_dict=True)["loss"]
        assert found == pytest.approx(expected * weights.mean(), rel=1e-4, abs=1e-6)


def test_deciding_model(random):
    loss = CostThreshold(from_logits=True)
    loss.build_once((None, 1), (None, 1))
    loss._threshold.assign(0.3)
    z = random.normal(size=(20, 1)).astype("float32")
    decided = loss.to_inference(identity()).predict(z, verbose=0)
    np.testing.assert_array_equal(decided, special.expit(z) >= 0.3)


def test_score_is_positive_outside_of_the_sphere():
    loss = DeepSVDD(0.5, center=[1.0, 0.0])
    loss.build_once((None,), (None, 2))
    loss(np.zeros(4), np.float32([[1, 1], [1, 2], [1, 3], [1, 4]]))
    assert loss.radius == pytest.approx(2.0)
    np.testing.assert_allclose(loss.score([[1.0, 0.0], [4.0, 0.0]]), [-4.0, 5.0], rtol=1e-5)


def test_the_first_centre_keeps_off_zero():
    loss = DeepSVDD(0.5)
    loss.build_once((None,), (None, 3))
    p = np.float32([[1.0, 0.02, -0.02], [3.0, 0.02, -0.02], [99.0, 9.0, 9.0]])
    loss(np.zeros(3), p, sample_weight=np.float32([1, 1, 0]))
    np.testing.assert_allclose(loss.sphere_center, [2.0, 0.1, -0.1], rtol=1e-6)
