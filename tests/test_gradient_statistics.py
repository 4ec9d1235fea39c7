"""Running moments, and what follows from moments: noise scale, tests of a batch, evidence, signal to noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimand.gradients import (
    GradientMoments,
    RunningMoments,
    cabs_batch_size,
    critical_batch_size,
    evidence,
    inner_product_test,
    noise_scale,
    noise_scale_of_replicas,
    noise_scale_of_sizes,
    norm_test,
    signal_to_noise,
    training_cost,
)
from tests.helpers import numpy

# Running estimates


def test_running_variance_is_unbiased_from_the_second_step_on(random):
    """G ~ N(1, 0.25), 200,000 weights: within 1 % of the truth from step 2 to 40."""
    moments = RunningMoments.start([np.zeros(200_000, "float32")], beta=0.9)
    assert not np.isfinite(numpy(moments.updated([np.ones(200_000, "float32")]).variance[0])).any()
    for step in range(1, 41):
        moments = moments.updated([random.normal(1.0, 0.5, size=200_000).astype("float32")])
        if step > 1:
            assert numpy(moments.variance[0]).mean() == pytest.approx(0.25, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=12),
    st.floats(0.05, 0.999),
    st.floats(-1e4, 1e4),
)
def test_running_moments_are_the_weighted_sums(values, beta, offset):
    """In float64 by NumPy; never negative, whatever the gradients' offset."""
    gradients = np.float32(np.array(values) + offset).astype("float64")
    moments = RunningMoments.start([np.zeros((), "float32")], beta=beta)
    for gradient in gradients:
        moments = moments.updated([np.float32(gradient)])
    weights = beta ** np.arange(len(gradients))[::-1]
    weights /= weights.sum()
    mean = weights @ gradients
    variance = weights @ (gradients - mean) ** 2 / (1 - weights @ weights)
    scale = np.abs(gradients).max()
    # What is smaller is flushed to 0, in each of a few terms.
    tiny = 100 * np.finfo("float32").tiny
    assert float(numpy(moments.mean[0])) == pytest.approx(mean, rel=1e-5, abs=1e-5 * scale + tiny)
    found = float(numpy(moments.variance[0]))
    assert found >= 0.0
    # A rounding of the mean by 1e-6 of its size, next to differences of the size of the standard deviation.
    assert found == pytest.approx(variance, rel=1e-3, abs=1e-11 * scale**2 + 1e-5 * scale * np.sqrt(variance) + tiny)


# What follows from the moments


def noisy_batches(random, batches=400, n=64, dimension=50, squared_norm=0.5):
    """Gradients of examples with trace `dimension` and |G|^2 = `squared_norm`."""
    true = np.full(dimension, np.sqrt(squared_norm / dimension))
    return [GradientMoments.of_examples([true + random.normal(size=(n, dimension))]) for _ in range(batches)]


def test_noise_scale_of_known_noise(random):
    """B = 50 / 0.5 = 100, by moments, by two batch sizes and by replicas, each within 3 standard errors.

    The error is dominated by |G|^2, whose estimate from a batch of n has the variance 4 |G|^2 / n + 2 D / n^2.
    """
    moments = noisy_batches(random)
    error = 100 * np.sqrt(4 * 0.5 / 64 + 2 * 50 / 64**2) / 0.5 / np.sqrt(400)
    assert noise_scale(moments) == pytest.approx(100, abs=3 * error)
    small, large, replicas = [], [], []
    for _ in range(400):
        parts = np.sqrt(0.5 / 50) + random.normal(size=(8, 8, 50)).mean(axis=1)
        small.append(np.mean(np.sum(parts**2, axis=1)))
        large.append(np.sum(parts.mean(axis=0) ** 2))
        replicas.append([[part] for part in parts])
    assert noise_scale_of_sizes(small, large, 8, 64) == pytest.approx(100, abs=3 * error)
    one = noise_scale_of_replicas(replicas[0], 8)
    assert one == pytest.approx(noise_scale_of_sizes(small[0], large[0], 8, 64))


def test_noise_scale_without_signal_is_infinite():
    moments = GradientMoments.of_examples([np.array([[1.0, -1.0], [-1.0, 1.0]])])
    assert noise_scale(moments) == np.inf
    assert noise_scale_of_sizes(1.0, 0.1, 1, 2) == np.inf


def test_critical_batch_size_is_that_of_the_tradeoff():
    sizes = [16, 64, 256, 1024]
    steps = [300 * training_cost(size, 90.0).steps for size in sizes]
    assert critical_batch_size(sizes, steps) == pytest.approx(90.0)
    assert training_cost(90.0, 90.0) == (2.0, 2.0)
    cost = training_cost(20.0, 90.0)
    assert (cost.steps - 1) * (cost.examples - 1) == pytest.approx(1.0)
    assert critical_batch_size([16, 64], [300, 300]) == pytest.approx(0.0, abs=1e-9)


def test_batch_tests_are_their_formulas(random):
    g = random.normal(1.0, 2.0, size=(40, 6))
    moments = GradientMoments.of_examples([g[:, :2], g[:, 2:].reshape(40, 2, 2)])
    mean = g.mean(axis=0)
    norm = norm_test(moments, theta=0.3)
    assert norm.squared_error == pytest.approx(g.var(axis=0, ddof=1).sum() / 40 / (mean @ mean))
    assert norm.batch_size == pytest.approx(g.var(axis=0, ddof=1).sum() / (mean @ mean) / 0.09)
    product = inner_product_test(moments, theta=0.3)
    assert product.squared_error == pytest.approx(np.var(g @ mean, ddof=1) / 40 / (mean @ mean) ** 2)
    for test in (norm, product):
        assert test.passed == (test.squared_error <= 0.09)
        assert test.passed == (test.batch_size <= 40)
    assert product.squared_error < norm.squared_error
    assert cabs_batch_size(moments, 0.5, 0.1) == pytest.approx(0.2 * g.var(axis=0, ddof=1).sum())


def test_evidence_and_signal_to_noise_have_their_expectations(random):
    """Pure noise: the evidence is 0 on average (n - 1) / (n - 3)'s correction aside, the ratio's numerator too."""
    found, n, dimension = [], 50, 40
    for _ in range(300):
        moments = GradientMoments.of_examples([random.normal(size=(n, dimension))])
        found.append(evidence(moments))
    # n mean^2 / V is an F(1, n - 1) variable.
    expected = 1 - (n - 1) / (n - 3)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(300)
    moments = GradientMoments.of_examples([random.normal(2.0, 0.5, size=(4000, 300))])
    # 2^2 / 0.5^2 = 16, to 4 standard errors of a ratio of 4,000 examples.
    assert np.mean(signal_to_noise(moments)[0]) == pytest.approx(16.0, rel=4 * np.sqrt(2 / 4000) / np.sqrt(300) + 1e-3)
    assert evidence(moments) < 0
