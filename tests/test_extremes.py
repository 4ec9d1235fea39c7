"""NaN, infinities, single examples and floats of all widths: nothing is hidden."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops

import minimand
from minimand import _ops, metrics
from minimand.gradients import GradientMoments, evidence, inner_product_test, noise_scale, norm_test, signal_to_noise
from minimand.testing import LossSuite, TransformSuite
from tests.helpers import dtype_policy, gradient, numpy
from tests.parts import LOSSES, TRANSFORMS, suite_of

eager = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="elsewhere each shape and type takes a program of its own"
)
KEEPING = {
    "at_least": (lambda v: _ops.at_least(v, 1.0), lambda v: max(v, 1.0)),
    "at_most": (lambda v: _ops.at_most(v, 1.0), lambda v: min(v, 1.0)),
    "safe_abs": (_ops.safe_abs, abs),
    "safe_sqrt": (lambda v: _ops.safe_sqrt(v * v), abs),
    "soft_threshold": (lambda v: _ops.soft_threshold(v, 0.5), lambda v: np.sign(v) * max(abs(v) - 0.5, 0.0)),
}


@pytest.mark.parametrize("name", KEEPING)
def test_elementary_functions_keep_nan(name):
    function, reference = KEEPING[name]
    values = np.float32([np.nan, -3.0, 0.0, 0.25, 1.0, 7.0])
    found = numpy(function(ops.convert_to_tensor(values)))
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [reference(v) for v in values[1:]], rtol=1e-6)


# Gradient statistics


def test_statistics_of_nan_are_nan():
    """Not an infinite noise scale, which means that there is no signal."""
    moments = GradientMoments.of_examples([np.array([[1.0, 2.0], [np.nan, 3.0]])])
    assert np.isnan(noise_scale(moments))
    assert np.isnan(evidence(moments))
    assert np.isnan(signal_to_noise(moments)[0]).tolist() == [True, False]
    for test in (norm_test, inner_product_test):
        result = test(moments)
        assert not result.passed
        assert np.isnan(result.squared_error)


def measured(x, y, estimator, batch_size):
    keras.utils.set_random_seed(4)
    measure = minimand.transforms.MeasureGradient(every=1, estimator=estimator, micro_batches=2, seed=5)
    trainer = minimand.Trainer(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    # Weights that stay, so that batches can be compared.
    trainer.compile(keras.optimizers.SGD(0.0), "mse", transforms=[measure])
    history = trainer.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0).history
    return {key: values[0] for key, values in history.items() if key != "loss"}


@pytest.mark.parametrize("estimator", ["exact", "probe", "micro_batch"])
def test_a_batch_of_one_example_is_not_measured(estimator, random):
    x, y = random.normal(size=(9, 4)).astype("float32"), random.normal(size=(9, 2)).astype("float32")
    with_one = measured(x, y, estimator, batch_size=8)
    without = measured(x[:8], y[:8], estimator, batch_size=8)
    assert with_one == pytest.approx(without, rel=1e-5)
    assert not np.isnan(list(without.values())).any()
    assert np.isnan(list(measured(x[:3], y[:3], estimator, batch_size=1).values())).all()


@pytest.mark.parametrize("estimator", ["exact", "probe", "micro_batch"])
def test_measurements_of_nan_are_nan(estimator, random):
    x, y = random.normal(size=(8, 4)).astype("float32"), random.normal(size=(8, 2)).astype("float32")
    x[5, 1] = np.nan
    assert np.isnan(list(measured(x, y, estimator, batch_size=8).values())).all()


# Labels


@pytest.mark.parametrize("label", [-1.0, 3.0, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("name", ["logit_adjusted", "class_mahalanobis"])
def test_a_label_that_is_no_class_is_not_an_example_without_a_loss(name, label, random):
    suite = suite_of(LossSuite, LOSSES[name])()
    loss = suite._settled(reduction=None)
    y, p = suite.examples(random, 4)
    right = numpy(loss(y, p))
    y[1] = label
    values = numpy(loss(y, p))
    assert np.isnan(values).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(values[[0, 2, 3]], right[[0, 2, 3]])


@pytest.mark.parametrize("label", [-1, 2, 0.5, np.nan])
def test_a_label_that_is_no_class_is_not_a_wrong_prediction(label):
    probabilities = np.array([[0.75, 0.25], [0.75, 0.25]])
    assert np.isnan(numpy(metrics.brier([0, label], probabilities))).tolist() == [False, True]
    assert np.isnan(numpy(metrics.expected_calibration_error([0, label], probabilities)))
    assert np.isnan(numpy(metrics.adaptive_calibration_error([0, label], probabilities)))


# Predictions


@pytest.mark.parametrize("what", ["target", "prediction", "width"])
def test_scores_of_nan_are_nan(what, random):
    """And not outside of an interval, or of some rank; the others are as without it."""
    given = {
        "target": random.normal(size=3),
        "prediction": random.normal(size=3),
        "width": random.uniform(1, 2, size=3),
    }
    marked = {
        key: np.where(np.arange(3) == 1, np.nan, values) if key == what else values for key, values in given.items()
    }
    draws = random.normal(size=(6, 3))
    for score in (
        metrics.gaussian_nll,
        metrics.gaussian_crps,
        metrics.gaussian_pit,
        lambda y, mean, width: metrics.interval_coverage(y, mean - width, mean + width),
        lambda y, mean, width: metrics.sample_crps(y, mean + width * draws),
        lambda y, mean, width: metrics.sample_pit(y, mean + width * draws, seed=3),
    ):
        found, right = numpy(score(*marked.values())), numpy(score(*given.values()))
        assert np.isnan(found).tolist() == [False, True, False]
        np.testing.assert_array_equal(found[[0, 2]], right[[0, 2]])


# All parts


@eager
@pytest.mark.parametrize("name", [name for name, part in LOSSES.items() if "targets" not in part.attributes])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_losses_of_extreme_numbers_are_finite(name, data):
    suite = suite_of(LossSuite, LOSSES[name])()
    size = suite.largest / 2
    elements = st.floats(-size, size, width=32) | st.sampled_from([0.0, 1e-38, -1e-45, size, -size])
    shape = (data.draw(st.integers(1, 5)), *suite.shape)
    y, p = (data.draw(arrays("float32", shape, elements=elements)) for _ in range(2))
    loss = suite._settled(reduction=None)
    assert np.isfinite(numpy(loss(y, p))).all()
    assert np.isfinite(gradient(lambda v: ops.sum(loss(y, v)), p)[0]).all()


@eager
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_floats_of_any_width(name, policy, random):
    suite = suite_of(TransformSuite, TRANSFORMS[name])()
    x, y = random.normal(size=(9, 4)), random.normal(size=(9, 2))
    with dtype_policy(policy):
        trainer = minimand.Trainer(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
        )
        trainer.compile(suite.optimizer(0.02), "mse", transforms=[suite.make()])
        losses = trainer.fit(x, y, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert {weight.dtype for weight in trainer.model.weights} == {policy}
    assert np.isfinite(losses).all()
    for weight in trainer.trainable_variables:
        assert np.isfinite(numpy(ops.cast(weight, "float64"))).all(), weight.path
