"""Losses: `reference(loss, y_true, y_pred)` gives the value of each example."""

from functools import lru_cache
from typing import Any

import keras
import numpy as np
from scipy import fft, special, stats

from minimand.losses import (
    IRLS,
    LMNN,
    NCA,
    AdaptiveImage,
    AdaptiveRobust,
    AdaptiveStudentT,
    ClassMahalanobis,
    CostThreshold,
    CVaR,
    DeepSVDD,
    F1Threshold,
    Focal,
    GeneralizedCrossEntropy,
    GeneralRobust,
    GradientHarmonized,
    GroupDRO,
    HardExampleMining,
    LearnedClassWeights,
    LogitAdjusted,
    Mahalanobis,
    PrecisionAtRecallThreshold,
    QuantileThreshold,
    RecallAtPrecisionThreshold,
    SelfPaced,
    StandardizedIRLS,
    TaskUncertainty,
    TemperatureScaled,
)
from minimand.testing import finite_difference
from tests.parts._part import Part

HALF_SQUARED = GeneralRobust(alpha=2.0)
SPARSE = keras.losses.SparseCategoricalCrossentropy()


def robust(x, alpha, scale):
    """Barron's rho for a shape other than 0 and 2."""
    size = np.abs(alpha - 2)
    return size / alpha * (((x / scale) ** 2 / size + 1) ** (alpha / 2) - 1)


@lru_cache
def log_partition(alpha):
    """log of the integral of exp(-rho), by the trapezoidal rule in u with x = sinh u."""
    u = np.linspace(-25, 25, 5001)
    return np.log(np.sum(np.exp(-robust(np.sinh(u), alpha, 1.0)) * np.cosh(u)) * (u[1] - u[0]))


def robust_likelihood(x, alpha, scale):
    return robust(x, alpha, scale) + np.log(scale) + np.vectorize(log_partition)(alpha)


def half_squared(y, p):
    return ((p - y) ** 2 / 2).mean(axis=-1)


def entropy(y, p):
    """Of class indices and probabilities that need not have the sum 1."""
    p = p / p.sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(p, y.astype(int)[..., None], axis=-1)[..., 0])


def focal_of_temperature(loss, y, p):
    values = entropy(y, p ** (1 / loss.loss.temperature))
    return (1 - np.exp(-values)) * values


def gradient_harmonized(loss, y, p):
    values = half_squared(y, p)
    bins = np.clip(np.floor(-np.expm1(-values) * 10), 0, 9).astype(int)
    fractions = loss.statistic.numpy().astype("float64")[bins]
    return values * np.where(fractions > 0, 1 / (10 * np.where(fractions > 0, fractions, 1)), 1)


def standardized_irls(loss, y, p):
    values = half_squared(y, p)
    return values / (values / (2 * loss.statistic.numpy()) ** 2 / 2 + 1)


def hard_example_mining(loss, y, p):
    values = half_squared(y, p)
    count = int(np.ceil(0.5 * values.size))
    return values * (values >= np.sort(values.ravel())[-count])


def tail(values, threshold, share):
    return threshold + np.maximum(values - threshold, 0) / share


def quantile(loss, y, p):
    above = half_squared(y, p) - loss.threshold
    return half_squared(y, p) + np.maximum(0.7 * above, -0.3 * above)


def sphere(loss, y, p):
    return tail(((p - loss.sphere_center) ** 2).sum(axis=-1), loss.threshold, 0.2)


def rates(loss, y, p):
    decisions = special.expit((special.logit(p) - special.logit(loss.threshold)) / loss.temperature)
    return (y * decisions).mean(), ((1 - y) * decisions).mean(), y.mean()


def soft_f1(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    return np.broadcast_to(1 - 2 * tp / (tp + fp + positives), y.shape[:-1])


def cost(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    return np.broadcast_to(2 * fp + 5 * (positives - tp), y.shape[:-1])


def lagrangian(loss, minimised, violation):
    multiplier = float(loss.multiplier.numpy())
    return minimised + (max(multiplier + 10 * violation, 0) ** 2 - multiplier**2) / 20


def precision_at_recall(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    violation = 0.8 - (tp / positives if positives else 0.0)
    false_alarms = fp / (1 - positives) if positives < 1 else 0.0
    return np.broadcast_to(lagrangian(loss, false_alarms, violation), y.shape[:-1])


def recall_at_precision(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    violation = (0.7 * fp - 0.3 * tp) / positives if positives else 0.0
    misses = 1 - (tp / positives if positives else 0.0)
    return np.broadcast_to(lagrangian(loss, misses, violation), y.shape[:-1])


def learned_class_weights(loss, y, p):
    weights = loss.class_weights.astype("float64")[y.astype(int)]
    return weights * entropy(y, p) - 0.5 * np.log(weights)


def group_dro(loss, y, p):
    counts = loss.counts.numpy().astype("float64")
    return (loss.class_weights * counts.sum() / counts)[y.astype(int)] * entropy(y, p)


def logit_adjusted(loss, y, p):
    return entropy(y, p * np.array([5, 3, 1]))


def gaussian(loss, y, p):
    precision = loss.precision.astype("float64")
    squares = np.einsum("...i,ij,...j", p - y, precision, p - y)
    return squares / 2 - np.linalg.slogdet(precision)[1] / 2 + p.shape[-1] / 2 * np.log(2 * np.pi)


def class_gaussian(loss, y, p):
    offsets = p[..., None, :] - loss.centers.numpy()
    halves = np.einsum("...i,ij,...j", offsets, loss.precision.astype("float64"), offsets) / 2
    own = np.take_along_axis(halves, y.astype(int)[..., None], axis=-1)[..., 0]
    return 0.3 * own + own + special.logsumexp(-halves, axis=-1)


def squared_distances(loss, p):
    offsets = p[:, None] - p
    return np.einsum("...i,ij,...j", offsets, loss.precision.astype("float64"), offsets)


def nearest_neighbour(loss, y, p):
    nearness = np.exp(-squared_distances(loss, p)) * (1 - np.eye(len(p)))
    right = (nearness * (y[:, None] == y)).sum(axis=1) / np.maximum(nearness.sum(axis=1), 1e-30)
    return (1 - right if len(p) > 1 else np.ones(1)) + 1e-3 * np.trace(loss.precision)


def large_margin(loss, y, p):
    distances, result = squared_distances(loss, p), np.zeros(len(p))
    for i in range(len(p)):
        same = [j for j in range(len(p)) if j != i and y[j] == y[i]]
        targets = sorted(same, key=lambda j: ((p[i] - p[j]) ** 2).sum())[:2]
        for j in targets:
            pushed = sum(max(0.0, 1 + distances[i, j] - distances[i, k]) for k in range(len(p)) if y[k] != y[i])
            result[i] += (0.5 * distances[i, j] + 0.5 * pushed) / len(targets)
    return result


def image(loss, y, p):
    coefficients = fft.dctn(p - y, axes=(-3, -2), norm="ortho")
    return robust_likelihood(coefficients, loss.alpha, loss.scale).mean(axis=(-3, -2, -1))


def of_half_squared(self, loss, y_true, y_pred):
    """The gradient of a loss whose threshold the predictions are not to see."""
    return finite_difference(lambda p: half_squared(y_true, p).sum(), y_pred)


CLASSES: dict[str, Any] = {"targets": "classes"}
BINARY: dict[str, Any] = {"targets": "binary", "shape": (1,), "coupled": True}
PAIRS: dict[str, Any] = {"targets": "embeddings", "any_rank": False, "coupled": True, "rtol": 1e-4}
LOSSES = {
    "general_robust": Part(
        lambda **kwargs: GeneralRobust(alpha=0.5, scale=0.7, **kwargs),
        lambda loss, y, p: robust(p - y, 0.5, 0.7).mean(axis=-1),
    ),
    "adaptive_robust": Part(
        lambda **kwargs: AdaptiveRobust(scale_init=0.7, **kwargs),
        lambda loss, y, p: robust_likelihood(p - y, loss.alpha, loss.scale).mean(axis=-1),
    ),
    "adaptive_student_t": Part(
        lambda **kwargs: AdaptiveStudentT(df_init=3.0, scale_init=0.7, **kwargs),
        lambda loss, y, p: -stats.t.logpdf(p - y, loss.df, scale=loss.scale).mean(axis=-1),
    ),
    "adaptive_image": Part(
        lambda **kwargs: AdaptiveImage("dct", init="reference", **kwargs),
        image,
        {"shape": (4, 3, 1), "any_rank": False, "rtol": 1e-4},
    ),
    "focal": Part(
        lambda **kwargs: Focal(HALF_SQUARED, **kwargs),
        lambda loss, y, p: np.expm1(-half_squared(y, p)) ** 2 * half_squared(y, p),
    ),
    "focal_of_temperature": Part(
        # A loss without variables of a loss with variables.
        lambda **kwargs: Focal(TemperatureScaled(SPARSE), gamma=1.0, **kwargs),
        focal_of_temperature,
        CLASSES,
    ),
    "generalized_cross_entropy": Part(
        lambda **kwargs: GeneralizedCrossEntropy(SPARSE, q=0.6, **kwargs),
        lambda loss, y, p: (1 - np.exp(-0.6 * entropy(y, p))) / 0.6,
        CLASSES,
    ),
    "irls": Part(
        lambda **kwargs: IRLS(HALF_SQUARED, differentiate=True, **kwargs),
        lambda loss, y, p: half_squared(y, p) / (half_squared(y, p) / 2 + 1),
    ),
    "hard_example_mining": Part(
        lambda **kwargs: HardExampleMining(HALF_SQUARED, 0.5, **kwargs), hard_example_mining, {"coupled": True}
    ),
    "gradient_harmonized": Part(lambda **kwargs: GradientHarmonized(HALF_SQUARED, **kwargs), gradient_harmonized),
    "self_paced": Part(
        lambda **kwargs: SelfPaced(HALF_SQUARED, **kwargs),
        lambda loss, y, p: half_squared(y, p) * (half_squared(y, p) <= loss.statistic.numpy()),
    ),
    "standardized_irls": Part(
        lambda **kwargs: StandardizedIRLS(HALF_SQUARED, differentiate=True, **kwargs), standardized_irls
    ),
    "cvar": Part(
        lambda **kwargs: CVaR(HALF_SQUARED, 0.3, **kwargs),
        lambda loss, y, p: tail(half_squared(y, p), loss.threshold, 0.7),
        {"rescaled": True},
    ),
    "quantile_threshold": Part(
        lambda **kwargs: QuantileThreshold(0.7, HALF_SQUARED, **kwargs),
        quantile,
        {"rescaled": True, "reference_gradient": of_half_squared},
    ),
    "deep_svdd": Part(
        # A centre that is found has no coordinate near 0, and so jumps with a rounding.
        lambda **kwargs: DeepSVDD(0.2, center=[0.5, -0.5, 1.0], **kwargs),
        sphere,
        {"rescaled": True, "uses_targets": False},
    ),
    "task_uncertainty": Part(
        lambda **kwargs: TaskUncertainty(HALF_SQUARED, **kwargs),
        lambda loss, y, p: np.exp(-loss.log_variance) * half_squared(y, p) / 2 + loss.log_variance / 2,
    ),
    "f1_threshold": Part(lambda **kwargs: F1Threshold(**kwargs), soft_f1, BINARY),
    "cost_threshold": Part(
        lambda **kwargs: CostThreshold(false_positive_cost=2.0, false_negative_cost=5.0, **kwargs), cost, BINARY
    ),
    "precision_at_recall_threshold": Part(
        lambda **kwargs: PrecisionAtRecallThreshold(0.8, **kwargs), precision_at_recall, BINARY
    ),
    "recall_at_precision_threshold": Part(
        lambda **kwargs: RecallAtPrecisionThreshold(0.7, **kwargs), recall_at_precision, BINARY
    ),
    "learned_class_weights": Part(
        lambda **kwargs: LearnedClassWeights(3, SPARSE, strength=0.5, **kwargs), learned_class_weights, CLASSES
    ),
    "group_dro": Part(lambda **kwargs: GroupDRO(3, SPARSE, **kwargs), group_dro, CLASSES),
    "logit_adjusted": Part(lambda **kwargs: LogitAdjusted([5, 3, 1], **kwargs), logit_adjusted, CLASSES),
    "temperature_scaled": Part(
        lambda **kwargs: TemperatureScaled(SPARSE, **kwargs),
        lambda loss, y, p: entropy(y, p ** (1 / loss.temperature)),
        CLASSES,
    ),
    "mahalanobis": Part(lambda **kwargs: Mahalanobis(3, **kwargs), gaussian, {"rtol": 1e-4}),
    "mahalanobis_of_low_rank": Part(lambda **kwargs: Mahalanobis(3, 1, **kwargs), gaussian, {"rtol": 1e-4}),
    "class_mahalanobis": Part(
        lambda **kwargs: ClassMahalanobis(3, 3, strength=0.3, **kwargs),
        class_gaussian,
        {"targets": "embeddings", "rtol": 1e-4},
    ),
    "nca": Part(lambda **kwargs: NCA(3, 3, rank=2, **kwargs), nearest_neighbour, PAIRS),
    "lmnn": Part(lambda **kwargs: LMNN(3, 3, neighbors=2, **kwargs), large_margin, PAIRS),
}
