"""The collapse test: at fixed predictions, each loss is least at finite values of its variables, where it should be."""

import keras
import numpy as np
import pytest
from scipy import optimize, special

from minimand.losses import (
    LMNN,
    NCA,
    ClassMahalanobis,
    CostThreshold,
    CVaR,
    DeepSVDD,
    F1Threshold,
    GroupDRO,
    LearnedClassWeights,
    Mahalanobis,
    QuantileThreshold,
    TaskUncertainty,
    TemperatureScaled,
)
from tests.helpers import minimise_variables, numpy

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]


def ready(loss, y, p):
    """Built and, where it measures something in the first batch, started; from there on nothing but the trained moves."""
    loss.build_once((None, *np.shape(y)[1:]), (None, *np.shape(p)[1:]))
    loss(y, p)
    loss.training = False
    return loss


@pytest.fixture
def labels(random):
    return random.integers(3, size=60)


@pytest.fixture
def logits(random, labels):
    return random.normal(size=(60, 3)) + 1.5 * np.eye(3)[labels]


def class_losses(labels, logits):
    each = -special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels]
    return np.array([each[labels == c].mean() for c in range(3)])


SPARSE = "sparse_categorical_crossentropy"


def softmax(logits):
    return special.softmax(logits, axis=-1)


@pytest.mark.parametrize(("form", "factor"), [("regression", 1), ("classification", 2)])
def test_task_uncertainty(form, factor, random):
    y = random.normal(size=(50, 2))
    loss = ready(TaskUncertainty("mean_squared_error", form), y, 0 * y)
    least = minimise_variables(loss, y, 0 * y)
    mean = (y**2).mean()
    assert loss.log_variance == pytest.approx(np.log(factor * mean), abs=1e-6)
    assert loss.weight == pytest.approx(1 / (2 * mean), rel=1e-6)
    assert least == pytest.approx((1 + np.log(factor * mean)) / 2, rel=1e-6)


def test_a_loss_of_zero_or_less_stays_within_the_bounds(random):
    loss = TaskUncertainty("cosine_similarity", log_variance_range=(-3.0, 3.0))
    y = random.normal(size=(5, 2))
    ready(loss, y, y)
    assert minimise_variables(loss, y, y) >= (-np.exp(3) - 3) / 2
    assert -3 <= loss.log_variance < -2.9


@pytest.mark.parametrize("strength", [1, 0.5, [0.5, 1, 2]])
def test_class_weights(strength, labels, logits):
    p = softmax(logits)
    loss = ready(LearnedClassWeights(3, SPARSE, strength=strength), labels, p)
    minimise_variables(loss, labels, p)
    np.testing.assert_allclose(loss.class_weights, strength / class_losses(labels, logits), rtol=1e-5)


def test_class_weights_of_an_adversary(labels, logits):
    """q_c = p_c exp(L_c / tau), normalised."""
    p = softmax(logits)
    loss = ready(GroupDRO(3, SPARSE, step=0.2, tau=1.0), labels, p)
    loss.training = True
    for _ in range(80):
        loss(labels, p)
    # (1 - 0.2)^80 < 1e-7
    np.testing.assert_allclose(loss.class_weights, special.softmax(class_losses(labels, logits)), atol=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_value_at_risk(level, random):
    """A finite sample's: t is a quantile, the least value the mean of the worst."""
    y = random.exponential(size=(200, 1))
    loss = ready(CVaR("mean_absolute_error", level), y, 0 * y)
    least = minimise_variables(loss, y, 0 * y, smooth=False)
    worst = np.sort(y[:, 0])[::-1][: round(200 * (1 - level))]
    assert least == pytest.approx(worst.mean(), rel=1e-4)
    assert np.sum(y > loss.threshold + 1e-5) <= len(worst) <= np.sum(y >= loss.threshold - 1e-5)


@pytest.mark.parametrize("wrapped", [None, "mean_absolute_error"])
def test_quantile(wrapped, random):
    y = random.exponential(size=(201, 1))
    loss = QuantileThreshold(0.8, wrapped)
    loss.build_once((None, 1), (None, 1))
    # A first batch that says something else.
    targets, scores = (0 * y, y) if wrapped is None else (y, 0 * y)
    loss(targets[:9], 3 * scores[:9])
    loss.training = False
    minimise_variables(loss, targets, scores, smooth=False)
    assert loss.threshold == pytest.approx(np.quantile(y, 0.8, method="inverted_cdf"), abs=1e-5)


def test_radius(random):
    p = random.normal(size=(201, 3))
    loss = ready(DeepSVDD(0.2, center=[1.0, 0.0, -1.0]), np.zeros(201), p)
    minimise_variables(loss, np.zeros(201), p, smooth=False)
    squares = ((p - [1.0, 0.0, -1.0]) ** 2).sum(axis=-1)
    assert loss.threshold == pytest.approx(np.quantile(squares, 0.8, method="inverted_cdf"), abs=1e-5)
    assert loss.radius == pytest.approx(loss.threshold**0.5)


def test_precision_is_the_inverse_covariance(random):
    residuals = random.normal(size=(100, 4)) @ random.normal(size=(4, 4)) + 0.3
    y = random.normal(size=(100, 4))
    loss = ready(Mahalanobis(4), y, y - residuals)
    least = minimise_variables(loss, y, y - residuals)
    covariance = residuals.T @ residuals / 100
    # The value is flat at its least: half the digits of its products, which Keras forms in float32 on PyTorch.
    np.testing.assert_allclose(loss.precision @ covariance, np.eye(4), atol=2e-3)
    entropy = (np.linalg.slogdet(2 * np.pi * covariance)[1] + 4) / 2
    assert least == pytest.approx(entropy, rel=1e-6)


def test_precision_of_low_rank(random):
    """Residuals whose covariance is exactly diagonal plus rank 2."""
    loadings = random.normal(size=(6, 2)) * [3.0, 1.0]
    covariance = np.diag(random.uniform(0.2, 2, size=6)) + loadings @ loadings.T
    white = random.normal(size=(80, 6))
    white = white @ np.linalg.inv(np.linalg.cholesky(white.T @ white / 80)).T
    residuals = white @ np.linalg.cholesky(covariance).T
    loss = ready(Mahalanobis(6, rank=2), residuals, 0 * residuals)
    least = minimise_variables(loss, residuals, 0 * residuals)
    assert least == pytest.approx((np.linalg.slogdet(2 * np.pi * covariance)[1] + 6) / 2, rel=1e-5)
    np.testing.assert_allclose(loss.precision @ covariance, np.eye(6), atol=1e-2)


def test_class_centres(labels, random):
    """Against SciPy on the formula in NumPy; the classes are far apart, where plain logits would grow for ever."""
    x = random.normal(size=(60, 2)) + 8 * np.eye(3)[labels][:, :2]
    loss = ready(ClassMahalanobis(2, 3, strength=0.2), labels, x)

    def objective(flat):
        factor, centers = flat[:4].reshape(2, 2), flat[4:].reshape(3, 2)
        halves = (((x[:, None] - centers) @ factor.T) ** 2).sum(axis=-1) / 2
        own = halves[np.arange(60), labels]
        return np.mean(0.2 * own - special.log_softmax(-halves, axis=-1)[np.arange(60), labels])

    start = np.concatenate([np.eye(2).ravel(), np.zeros(6)])
    expected = optimize.minimize(objective, start, method="BFGS").fun
    assert minimise_variables(loss, labels, x) == pytest.approx(expected, rel=1e-4)


def test_neighbourhood_components_stay_finite(labels, random):
    """At the minimum strength tr(P) is at most the value at P = 0, and 1 even where all neighbours are right."""
    x = random.normal(size=(60, 3)) + 8 * np.eye(3)[labels]
    loss = ready(NCA(3, 3, strength=0.01), labels, x)
    least = minimise_variables(loss, labels, x)
    same = labels[:, None] == labels
    at_zero = 1 - np.mean((same.sum(axis=1) - 1) / 59)
    assert 0 < 0.01 * np.trace(loss.precision) < least < at_zero


def test_large_margins_stay_finite(labels, random):
    x = random.normal(size=(60, 3)) + 2 * np.eye(3)[labels]
    loss = ready(LMNN(3, 3), labels, x)
    least = minimise_variables(loss, labels, x)
    others = (labels[:, None] != labels).sum(axis=1)
    assert 0 < least < 0.5 * others.mean()
    assert np.isfinite(loss.precision).all()


@pytest.mark.parametrize("from_logits", [True, False])
def test_temperature(from_logits, labels, logits):
    sharp = 5 * logits
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    loss = TemperatureScaled(entropy)
    # Keras clips probabilities at 1e-7.
    p = sharp if from_logits else softmax(sharp)
    limited = sharp if from_logits else np.log(np.clip(p, 1e-7, 1 - 1e-7))
    ready(loss, labels, p)
    minimise_variables(loss, labels, p)
    expected = optimize.minimize_scalar(
        lambda t: -special.log_softmax(limited / t, axis=-1)[np.arange(60), labels].mean(),
        bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert loss.temperature == pytest.approx(expected.x, rel=1e-4)


def test_temperature_of_several_labels(random):
    p = random.uniform(size=(8, 3))
    y = (random.uniform(size=p.shape) < p).astype("float64")
    scaled = special.expit(special.logit(p) / 2)
    check_at_two("binary_crossentropy", y, p, -(special.xlogy(y, scaled) + special.xlogy(1 - y, 1 - scaled)).mean())


def test_temperature_of_classes_along_another_axis(random):
    p = special.softmax(random.normal(size=(4, 3, 2)), axis=1)
    y = np.eye(3)[random.integers(3, size=(4, 2))].swapaxes(1, 2)
    expected = -(y * special.log_softmax(np.log(p) / 2, axis=1)).sum(axis=1).mean()
    check_at_two(keras.losses.CategoricalCrossentropy(axis=1), y, p, expected)


def check_at_two(entropy, y, p, expected):
    """The loss at temperature 2."""
    loss = ready(TemperatureScaled(entropy), y, p)
    loss._temperature.assign(2.0)
    assert numpy(loss(y, p)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "costs", "value"),
    [
        (F1Threshold, {}, lambda tp, fp, p: 1 - 2 * tp / (tp + fp + p)),
        (
            CostThreshold,
            {"false_positive_cost": 3.0, "false_negative_cost": 0.5},
            lambda tp, fp, p: 3 * fp + 0.5 * (p - tp),
        ),
    ],
)
def test_decision_threshold(make, costs, value, random):
    """Against a sweep of the soft objective."""
    y = (random.uniform(size=(400, 1)) < 0.3).astype("float64")
    s = special.expit(random.normal(size=(400, 1)) + 2 * y - 1)
    # Sharper decisions about 400 examples would have several minima.
    loss = ready(make(temperature=0.5, **costs), y, s)
    least = minimise_variables(loss, y, s)
    grid = np.linspace(0.001, 0.999, 999)
    soft = special.expit((special.logit(s) - special.logit(grid)) / 0.5)
    values = value((y * soft).mean(axis=0), ((1 - y) * soft).mean(axis=0), y.mean())
    assert least == pytest.approx(values.min(), rel=1e-4)
    assert loss.threshold == pytest.approx(grid[np.argmin(values)], abs=2e-3)
    assert numpy(loss(y, s)) == pytest.approx(least)
