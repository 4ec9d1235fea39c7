"""Scores and calibration against loops, integrals and known distributions; metrics against the functions."""

import keras
import numpy as np
import pytest
from keras.src.backend import set_keras_mask
from scipy import integrate, stats

import minimand
from minimand import metrics
from tests.helpers import mostly_slow, numpy, told


def probabilities_of(random, rows, classes=3):
    p = random.dirichlet(np.ones(classes), size=rows)
    return random.integers(classes, size=rows), p.astype("float32")


def crps_by_quadrature(y, *law):
    """The integral of (F(t) - 1[y <= t])^2, on both sides of y."""
    below = integrate.quad(lambda t: stats.norm.cdf(t, *law) ** 2, -np.inf, y, epsrel=1e-12)[0]
    return below + integrate.quad(lambda t: stats.norm.sf(t, *law) ** 2, y, np.inf, epsrel=1e-12)[0]


def test_gaussian_scores(random, float64):
    y, m, s = random.normal(size=20), random.normal(size=20), random.uniform(0.2, 3.0, size=20)
    np.testing.assert_allclose(numpy(metrics.gaussian_nll(y, m, s)), -stats.norm.logpdf(y, m, s), rtol=1e-12)
    np.testing.assert_allclose(numpy(metrics.gaussian_pit(y, m, s)), stats.norm.cdf(y, m, s), rtol=1e-12)
    expected = [crps_by_quadrature(*numbers) for numbers in zip(y, m, s, strict=True)]
    np.testing.assert_allclose(numpy(metrics.gaussian_crps(y, m, s)), expected, rtol=1e-10)


@pytest.mark.parametrize("score", [metrics.gaussian_nll, metrics.gaussian_crps])
def test_the_truth_has_the_least_expected_score(score):
    """y ~ N(1, 2^2), and the expectation is a quadrature at 2,001 quantiles."""
    y = stats.norm.ppf((np.arange(2001) + 0.5) / 2001, 1.0, 2.0)[:, None]
    m, s = (grid.ravel() for grid in np.meshgrid([0.5, 1.0, 1.5], [1.6, 2.0, 2.5]))
    expected = numpy(score(y, m, s)).mean(axis=0)
    assert (m[expected.argmin()], s[expected.argmin()]) == (1.0, 2.0)


def test_sample_scores_against_loops(random, float64):
    y, x = random.normal(size=(4, 2)), random.normal(size=(7, 4, 2))
    likelihood = stats.norm.pdf(y, x, 0.5).prod(axis=-1).mean(axis=0)
    np.testing.assert_allclose(numpy(metrics.sample_nll(y, x, 0.5)), -np.log(likelihood), rtol=1e-12)
    distance = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / 2
    for fair, pairs in ((True, 7 * 6), (False, 49)):
        expected = np.abs(x - y).mean(axis=0) - distance / pairs
        np.testing.assert_allclose(numpy(metrics.sample_crps(y, x, fair=fair)), expected, rtol=1e-5)


def test_fair_scores_of_few_samples_are_unbiased(random):
    """The mean over 20,000 pairs from N(0, 1) is the score of N(0, 1), within 4 standard errors."""
    scores = numpy(metrics.sample_crps(0.3, random.normal(size=(2, 20000))))
    exact = float(numpy(metrics.gaussian_crps(0.3, 0.0, 1.0)))
    assert abs(scores.mean() - exact) < 4 * scores.std() / np.sqrt(20000)


def test_brier_score(random):
    classes, p = probabilities_of(random, 20)
    expected = [sum((p[i, c] - (c == classes[i])) ** 2 for c in range(3)) for i in range(20)]
    np.testing.assert_allclose(numpy(metrics.brier(classes, p)), expected, rtol=1e-5)
    for y_true in (np.eye(3)[classes], classes[:, None]):
        np.testing.assert_allclose(numpy(metrics.brier(y_true, p)), expected, rtol=1e-5)


@pytest.mark.parametrize("rows", mostly_slow([1, 7, 500], 7))
def test_calibration_errors_against_loops(rows, random):
    classes, p = probabilities_of(random, rows)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == classes
    by_width = sum(
        abs(np.sum(right[inside]) - np.sum(confidence[inside], dtype="float64"))
        for inside in (np.minimum(np.floor(confidence * np.float32(10)), 9) == b for b in range(10))
    )
    assert float(metrics.expected_calibration_error(classes, p, bins=10)) == pytest.approx(by_width / rows, rel=1e-4)
    gaps, bins = (right - confidence)[np.argsort(confidence)], min(10, rows)
    by_count = sum(abs(np.sum(gaps[k * rows // bins : (k + 1) * rows // bins])) for k in range(bins))
    actual = float(metrics.adaptive_calibration_error(classes, p, bins=10))
    assert actual == pytest.approx(by_count / rows, rel=1e-4)


@pytest.mark.slow
def test_calibration_errors_by_hand():
    """Ten predictions at 0.9 have error 0 if nine are right, and 0.9 if all are wrong."""
    p = np.full((10, 2), [0.9, 0.1])
    for error in (metrics.expected_calibration_error, metrics.adaptive_calibration_error):
        # A bin holds all that is equal only where bins go by width.
        bins = {"bins": 10} if error is metrics.expected_calibration_error else {"bins": 1}
        assert float(error([0] * 9 + [1], p, **bins)) == pytest.approx(0.0, abs=1e-6)
        assert float(error([1] * 10, p, **bins)) == pytest.approx(0.9, rel=1e-6)


@pytest.mark.slow
def test_calibrated_classes_have_a_small_error(random):
    """Classes drawn from the predicted probabilities leave a sampling error of at most sqrt(15 / n) / 2 on average."""
    p = random.dirichlet(np.ones(3), size=20000)
    classes = (random.uniform(size=(20000, 1)) > p.cumsum(axis=1)).sum(axis=1)
    for error in (metrics.expected_calibration_error, metrics.adaptive_calibration_error):
        assert float(error(classes, p)) < np.sqrt(15 / 20000)
        assert float(error((classes + 1) % 3, p)) > 0.2


def test_intervals():
    y, low, high = [0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.5]
    np.testing.assert_array_equal(numpy(metrics.interval_coverage(y, low, high)), [1, 1, 1, 0])
    np.testing.assert_array_equal(numpy(metrics.interval_width(np.subtract(low, 1.0), high)), np.add(high, 1.0))


@pytest.mark.parametrize("ties", [False, True])
def test_the_transform_of_draws_of_the_truth_is_uniform(ties, random):
    """The Kolmogorov-Smirnov statistic of 4,000 targets is below its 99.99 % quantile, also with ties."""
    draws = random.normal(size=(6, 4000))
    draws = np.round(draws) if ties else draws
    transform = numpy(metrics.sample_pit(draws[0], draws[1:], seed=1))
    assert stats.kstest(transform, "uniform").statistic < 2.225 / np.sqrt(4000)


METRICS = {
    "brier": (metrics.Brier, metrics.brier, "classes"),
    "ece": (metrics.ExpectedCalibrationError, metrics.expected_calibration_error, "classes"),
    "nll": (metrics.GaussianNLL, lambda y, p: metrics.gaussian_nll(y[:, 0], p[:, 0], p[:, 1]), "pairs"),
    "crps": (metrics.GaussianCRPS, lambda y, p: metrics.gaussian_crps(y[:, 0], p[:, 0], p[:, 1]), "pairs"),
    "coverage": (
        metrics.IntervalCoverage, lambda y, p: metrics.interval_coverage(y[:, 0], p[:, 0], p[:, 1]), "pairs",
    ),
    "width": (metrics.IntervalWidth, lambda y, p: metrics.interval_width(p[:, 0], p[:, 1]), "pairs"),
}  # fmt: skip


@pytest.mark.parametrize("name", mostly_slow(METRICS, "brier", "ece", "crps"))
def test_metrics_of_batches_are_the_functions_of_all(name, random):
    make, function, kind = METRICS[name]
    if kind == "classes":
        y, p = probabilities_of(random, 50)
    else:
        y = random.normal(size=(50, 1)).astype("float32")
        p = np.sort(random.uniform(-1.0, 1.0, size=(50, 2)), axis=1).astype("float32")
        p += 1.5 * (name in ("nll", "crps"))
    metric = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(make()))
    model = keras.Sequential([keras.Input(p.shape[1:]), keras.layers.Identity()])
    model.compile(loss=lambda y_true, y_pred: keras.ops.sum(y_pred, axis=-1), metrics=[metric])
    actual = model.evaluate(p, y, batch_size=16, verbose=0, return_dict=True)[metric.name]
    assert actual == pytest.approx(float(numpy(function(y, p)).mean()), rel=1e-4)
    # A weight of 0 leaves out, of 2 counts twice.
    metric.reset_state()
    metric.update_state(y, p, sample_weight=np.array([0.0, 1.0, 2.0] + [0.0] * 47, "float32"))
    rows = [1, 2, 2]
    assert float(metric.result()) == pytest.approx(float(numpy(function(y[rows], p[rows])).mean()), rel=1e-4)


def test_metrics_say_which_predictions_they_need():
    with told(ValueError, ["GaussianNLL", "(..., 2)", "(4, 3)"]):
        metrics.GaussianNLL().update_state(np.zeros(4), np.zeros((4, 3)))


def test_weights_of_other_axes_are_refused():
    with told(ValueError, ["`sample_weight`", "(3,)", "(3, 2)"]):
        metrics.ExpectedCalibrationError().update_state(np.zeros(3, "int32"), np.full((3, 2), 0.5), np.ones((3, 2)))


def test_summary_of_regression(random):
    f = random.normal(size=(200, 3, 2))
    found = minimand.uncertainty.summary(f, "regression", quantiles=(0.1, 0.5))
    np.testing.assert_allclose(found["quantiles"], np.quantile(f, [0.1, 0.5], axis=0))
    np.testing.assert_allclose(found["stddev"], f.std(axis=0))
    noisy = minimand.uncertainty.summary(f, "regression", quantiles=(0.0, 0.1, 0.9), noise_stddev=[0.5, 0.0])
    np.testing.assert_allclose(noisy["stddev"] ** 2, noisy["aleatoric"] ** 2 + noisy["epistemic"] ** 2)
    below = stats.norm.cdf(noisy["quantiles"][:, None, :, 0], f[None, :, :, 0], 0.5).mean(axis=1)
    np.testing.assert_allclose(below, np.broadcast_to([[0.0], [0.1], [0.9]], below.shape), atol=1e-5)
    np.testing.assert_allclose(noisy["quantiles"][:, :, 1], np.quantile(f[:, :, 1], [0.0, 0.1, 0.9], axis=0))


def test_summary_of_classification(random):
    p = random.dirichlet(np.ones(4), size=(50, 6))
    p[0, 0] = [1.0, 0.0, 0.0, 0.0]
    found = minimand.uncertainty.summary(p, "classification")
    mean = p.mean(axis=0)
    np.testing.assert_allclose(found["entropy"], [stats.entropy(row) for row in mean])
    # The mutual information is the mean divergence of the samples from their mean.
    divergence = np.mean([[stats.entropy(row, m) for row, m in zip(sample, mean, strict=True)] for sample in p], axis=0)
    np.testing.assert_allclose(found["mutual_information"], divergence, rtol=1e-6)
    np.testing.assert_allclose(found["aleatoric"] + found["mutual_information"], found["entropy"])
    certain = minimand.uncertainty.summary(np.tile(np.eye(4), (5, 1, 1)), "classification")
    assert not certain["entropy"].any()
    assert not certain["stddev"].any()


@pytest.mark.slow
def test_positions_count_as_rows_do(random):
    """Classes (rows, steps) may be indices, have a last axis of 1, or be one-hot."""
    flat, flat_p = probabilities_of(random, 24)
    p = flat_p.reshape(4, 6, 3)
    for classes in (flat.reshape(4, 6), flat.reshape(4, 6, 1), np.eye(3)[flat].reshape(4, 6, 3)):
        expected = numpy(metrics.brier(flat, flat_p)).reshape(4, 6)
        np.testing.assert_allclose(numpy(metrics.brier(classes, p)), expected, rtol=1e-5)
        for error in (metrics.expected_calibration_error, metrics.adaptive_calibration_error):
            assert float(error(classes, p)) == pytest.approx(float(error(flat, flat_p)), rel=1e-5)
    y, pairs = random.normal(size=(4, 6, 1)), random.uniform(0.5, 2.0, size=(4, 6, 2))
    for metric in (metrics.GaussianNLL(), metrics.IntervalCoverage()):
        metric.update_state(y, pairs)
        of_positions = float(metric.result())
        metric.reset_state()
        metric.update_state(y.reshape(24, 1), pairs.reshape(24, 2))
        assert of_positions == pytest.approx(float(metric.result()), rel=1e-5)


@pytest.mark.parametrize("shape", mostly_slow([(4,), (4, 1), (4, 6), (4, 6, 1)], (4, 6)))
@pytest.mark.slow
def test_weights_of_rows_and_of_positions_and_masks(shape, random):
    """A weight counts a position as often as it says, and a mask leaves positions out."""
    classes, p = (each.reshape(4, 6, *each.shape[1:]) for each in probabilities_of(random, 24))
    weights = random.integers(0, 3, size=shape)
    mask = random.integers(0, 2, size=(4, 6)).astype(bool)
    predictions = keras.ops.convert_to_tensor(p)
    set_keras_mask(predictions, keras.ops.convert_to_tensor(mask))
    metric = metrics.ExpectedCalibrationError()
    metric.update_state(classes, predictions, sample_weight=weights)
    of_each = np.broadcast_to(weights.reshape(*shape[:2], *[1] * (2 - len(shape))), (4, 6)) * mask
    times = np.repeat(np.arange(24), of_each.ravel())
    expected = metrics.expected_calibration_error(classes.ravel()[times], p.reshape(24, 3)[times])
    assert float(metric.result()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "score", [metrics.brier, metrics.expected_calibration_error, metrics.adaptive_calibration_error]
)
@pytest.mark.parametrize("shape", [(1,), (4,), (5, 2), (5, 3, 3), (5, 1, 1), (1, 3)])
def test_targets_of_other_rows_or_classes_are_refused(score, shape):
    """Some of these shapes would broadcast."""
    with told(ValueError, ["class indices (5,)", "(5, 3)", "3 classes", str(shape)]):
        score(np.zeros(shape, "int32"), np.full((5, 3), 1 / 3))


@pytest.mark.parametrize("stddev", [-1.0, 0.0])
@pytest.mark.parametrize("score", [metrics.gaussian_nll, metrics.gaussian_crps, metrics.gaussian_pit])
def test_a_standard_deviation_that_is_not_positive_has_no_score(score, stddev):
    found = numpy(score([0.5, 0.5], 0.0, [stddev, 1.0]))
    assert np.isnan(found[0]) or (score is metrics.gaussian_nll and found[0] == np.inf)
    assert found[1] == pytest.approx(float(score(0.5, 0.0, 1.0)))


def test_logits_have_no_score():
    """Numbers outside of [0, 1] have no score either, unless rounding explains them."""
    p = np.array([[2.0, -1.0], [0.3, 1.2], [1.0005, 0.0]])
    np.testing.assert_array_equal(np.isnan(numpy(metrics.brier([0, 1, 0], p))), [True, True, False])
    for error in (metrics.expected_calibration_error, metrics.adaptive_calibration_error):
        assert np.isnan(float(error([0, 1, 0], p)))
        assert np.isfinite(float(error([0], p[2:])))
