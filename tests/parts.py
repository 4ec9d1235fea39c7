"""Every part of the library once, with a float64 reference: what the conformance suites and other tests run over.

A new part is one line here (and a formula, if it is longer than that).
"""

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy import fft, special, stats

from kriterion.losses import (
    AdaptiveImage,
    AdaptiveRobust,
    AdaptiveStudentT,
    BatchAdaptive,
    ConfidenceWeighted,
    CVaR,
    ErrorWeighted,
    GeneralRobust,
    LearnedClassWeights,
    LearnedThreshold,
    LogitAdjusted,
    Mahalanobis,
    QuantileThreshold,
    SoftBoundary,
    TaskUncertainty,
    TemperatureScaled,
)
from kriterion.optimizers import IVON, AdaBelief, Proximal, VarianceAware, VarianceScaling
from kriterion.regularizers import (
    DistanceToInitial,
    ElasticWeights,
    GroupSparsity,
    Range,
    SparseGroupSparsity,
    TotalVariation,
)
from kriterion.testing import finite_difference
from kriterion.transforms import (
    GradientNormPenalty,
    GradientVariancePenalty,
    IVONNoise,
    LearnedWeightNoise,
    MeasureGradient,
    MiniBatchVariance,
    ScaleMixturePrior,
    SharpnessAware,
    WeightNoise,
    WeightPenalty,
)


class Part(NamedTuple):
    """How to make it, its reference, and attributes of the suite."""

    make: Any
    reference: Any
    attributes: dict[str, Any] = {}  # noqa: RUF012


def suite_of(suite, part, **attributes):
    """The suite of a part, as a third party would write it."""
    given = {"make": staticmethod(part.make), "reference": staticmethod(part.reference), **part.attributes}
    return type("Test", (suite,), {**given, **attributes})


# Losses: `reference(loss, y_true, y_pred)` gives the value of each example.

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


def density(loss, y, p):
    values = half_squared(y, p)
    bins = np.clip(np.floor(-np.expm1(-values) * 10), 0, 9).astype(int)
    fractions = loss.statistic.numpy().astype("float64")[bins]
    return values * np.where(fractions > 0, 1 / (10 * np.where(fractions > 0, fractions, 1)), 1)


def standardised(loss, y, p):
    values = half_squared(y, p)
    return values / (values / (2 * loss.statistic.numpy()) ** 2 / 2 + 1)


def hardest(loss, y, p):
    values = half_squared(y, p)
    count = int(np.ceil(0.5 * values.size))
    return values * (values >= np.sort(values.ravel())[-count])


def tail(values, threshold, share):
    return threshold + np.maximum(values - threshold, 0) / share


def quantile(loss, y, p):
    above = half_squared(y, p) - loss.threshold
    return half_squared(y, p) + np.maximum(0.7 * above, -0.3 * above)


def sphere(loss, y, p):
    return tail(((p - loss.center.numpy()) ** 2).sum(axis=-1), loss.threshold, 0.2)


def rates(loss, y, p):
    decisions = special.expit((special.logit(p) - special.logit(loss.threshold)) / loss.temperature)
    return (y * decisions).mean(), ((1 - y) * decisions).mean(), y.mean()


def soft_f1(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    return np.broadcast_to(1 - 2 * tp / (tp + fp + positives), y.shape[:-1])


def precision_at_recall(loss, y, p):
    tp, fp, positives = rates(loss, y, p)
    violation = 0.8 - (tp / positives if positives else 0.0)
    multiplier = float(loss.multiplier.numpy())
    false_alarms = fp / (1 - positives) if positives < 1 else 0.0
    priced = (max(multiplier + 10 * violation, 0) ** 2 - multiplier**2) / 20
    return np.broadcast_to(false_alarms + priced, y.shape[:-1])


def class_weighted(strength):
    def value(loss, y, p):
        weights = loss.class_weights.astype("float64")[y.astype(int)]
        return weights * entropy(y, p) - strength * np.log(weights)

    return value


def adversarial(loss, y, p):
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
    "confidence_weighted": Part(
        lambda **kwargs: ConfidenceWeighted(HALF_SQUARED, differentiate=True, **kwargs),
        lambda loss, y, p: np.expm1(-half_squared(y, p)) ** 2 * half_squared(y, p),
    ),
    "easy_examples": Part(
        lambda **kwargs: ConfidenceWeighted(SPARSE, gamma=0.7, emphasis="easy", differentiate=True, **kwargs),
        lambda loss, y, p: np.exp(-0.7 * entropy(y, p)) * entropy(y, p),
        CLASSES,
    ),
    "error_weighted": Part(
        lambda **kwargs: ErrorWeighted(HALF_SQUARED, differentiate=True, **kwargs),
        lambda loss, y, p: half_squared(y, p) / (half_squared(y, p) / 2 + 1),
    ),
    "hardest_examples": Part(
        lambda **kwargs: ErrorWeighted(HALF_SQUARED, hardest=0.5, **kwargs), hardest, {"coupled": True}
    ),
    "batch_adaptive": Part(lambda **kwargs: BatchAdaptive(HALF_SQUARED, **kwargs), density),
    "self_paced": Part(
        lambda **kwargs: BatchAdaptive(HALF_SQUARED, "self_paced", **kwargs),
        lambda loss, y, p: half_squared(y, p) * (half_squared(y, p) <= loss.statistic.numpy()),
    ),
    "standardised": Part(
        lambda **kwargs: BatchAdaptive(HALF_SQUARED, "standardised", differentiate=True, **kwargs), standardised
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
    "soft_boundary": Part(
        # A centre that is found has no coordinate near 0, and so jumps with a rounding.
        lambda **kwargs: SoftBoundary(0.2, center=[0.5, -0.5, 1.0], **kwargs),
        sphere,
        {"rescaled": True, "uses_targets": False},
    ),
    "task_uncertainty": Part(
        lambda **kwargs: TaskUncertainty(HALF_SQUARED, **kwargs),
        lambda loss, y, p: np.exp(-loss.log_variance) * half_squared(y, p) / 2 + loss.log_variance / 2,
    ),
    "soft_f1": Part(
        lambda **kwargs: LearnedThreshold(**kwargs),
        soft_f1,
        {"targets": "binary", "shape": (1,), "coupled": True},
    ),
    "precision_at_recall": Part(
        lambda **kwargs: LearnedThreshold("precision_at_recall", target=0.8, **kwargs),
        precision_at_recall,
        {"targets": "binary", "shape": (1,), "coupled": True},
    ),
    "barrier": Part(lambda **kwargs: LearnedClassWeights(3, "barrier", SPARSE, **kwargs), class_weighted(1.0), CLASSES),
    "uncertainty": Part(
        lambda **kwargs: LearnedClassWeights(3, "uncertainty", SPARSE, **kwargs), class_weighted(0.5), CLASSES
    ),
    "adversarial": Part(lambda **kwargs: LearnedClassWeights(3, "adversarial", SPARSE, **kwargs), adversarial, CLASSES),
    "logit_adjusted": Part(lambda **kwargs: LogitAdjusted([5, 3, 1], **kwargs), logit_adjusted, CLASSES),
    "temperature_scaled": Part(
        lambda **kwargs: TemperatureScaled(SPARSE, **kwargs),
        lambda loss, y, p: entropy(y, p ** (1 / loss.temperature)),
        CLASSES,
    ),
    "gaussian": Part(lambda **kwargs: Mahalanobis(3, **kwargs), gaussian, {"rtol": 1e-4}),
    "low_rank": Part(lambda **kwargs: Mahalanobis(3, 1, **kwargs), gaussian, {"rtol": 1e-4}),
    "class_gaussian": Part(
        lambda **kwargs: Mahalanobis(3, form="class_gaussian", num_classes=3, strength=0.3, **kwargs),
        class_gaussian,
        {"targets": "embeddings", "rtol": 1e-4},
    ),
    "nearest_neighbour": Part(
        lambda **kwargs: Mahalanobis(3, 2, "nca", num_classes=3, **kwargs), nearest_neighbour, PAIRS
    ),
    "large_margin": Part(
        lambda **kwargs: Mahalanobis(3, form="lmnn", num_classes=3, neighbors=2, **kwargs), large_margin, PAIRS
    ),
}


# Regularizers: `reference(w)` gives R for strength 1.


def total_variation(w, axes=(0,)):
    total = 0.0
    for axis, index in itertools.product(axes, np.ndindex(w.shape)):
        after = tuple(i + (k == axis) for k, i in enumerate(index))
        if after[axis] < w.shape[axis]:
            total += abs(w[after] - w[index])
    return total


def out_of_range(w, power=2):
    return sum(max(v - 0.4, -0.2 - v, 0.0) ** power for v in w.ravel())


def norms(key, weight_by_size=True):
    """The group lasso; `key` gives the group of an index, or None."""

    def value(w):
        found = {}
        for index in np.ndindex(w.shape):
            found.setdefault(key(index, w.shape), []).append(w[index])
        found.pop(None, None)
        return sum((len(g) if weight_by_size else 1) ** 0.5 * sum(v * v for v in g) ** 0.5 for g in found.values())

    return value


def sparse_group(w):
    return 0.4 * np.abs(w).sum() + 0.6 * norms(lambda i, s: i[-1])(w)


FISHER = np.arange(12.0).reshape(3, 4)
ANCHORED: dict[str, Any] = {"shapes": ((3, 4),), "zero_at_zero": False}
REGULARIZERS = {
    "total_variation": Part(lambda strength=0.3: TotalVariation(strength, axis=0), total_variation),
    "range": Part(lambda strength=0.3: Range(strength, -0.2, 0.4), out_of_range),
    "hard_range": Part(lambda strength=0.3: Range(strength, -0.2, 0.4, power=1), lambda w: out_of_range(w, 1)),
    "group_sparsity_output": Part(lambda strength=0.3: GroupSparsity(strength), norms(lambda i, s: i[-1])),
    "group_sparsity_input": Part(
        lambda strength=0.3: GroupSparsity(strength, groups="input"), norms(lambda i, s: i[-2])
    ),
    "sparse_group_sparsity": Part(lambda strength=0.3: SparseGroupSparsity(strength, 0.4), sparse_group),
    "distance_to_initial": Part(
        lambda strength=0.3: DistanceToInitial(strength, np.ones((3, 4))), lambda w: ((w - 1) ** 2).sum(), ANCHORED
    ),
    "elastic_weights": Part(
        lambda strength=0.3: ElasticWeights(strength, FISHER, np.ones((3, 4))),
        lambda w: (FISHER * (w - 1) ** 2).sum() / 2,
        ANCHORED,
    ),
}


# Optimizers: `reference(learning_rate, weights, gradients)` gives the weights after each gradient.


def moments(gradients, beta):
    """(mean, unbiased variance, rho) after each gradient, from the weights of the running mean."""
    gradients = np.asarray(gradients, dtype="float64")
    for t in range(1, len(gradients) + 1):
        weights = beta ** np.arange(t)[::-1] * (1 - beta) / (1 - beta**t)
        mean = np.tensordot(weights, gradients[:t], axes=1)
        spread = np.tensordot(weights, (gradients[:t] - mean) ** 2, axes=1)
        rho = np.sum(weights**2)
        yield mean, (spread / (1 - rho) if t > 1 else 0 * spread), rho


def variance_scaled(rate, w, gradients, of_tensor=np.asarray):
    path = []
    for g, (mean, s, rho) in zip(gradients, moments(gradients, 0.8), strict=True):
        w = w - rate * g * of_tensor(mean**2) / of_tensor(mean**2 + rho * s)
        path.append(w)
    return np.array(path)


def variance_aware(form):
    """Algorithm 1 of the paper, with m and v that start at 0, their corrections, and s = (v - m^2) / (1 - rho)."""

    def path(rate, w, gradients):
        m, v, found = np.zeros_like(w), np.zeros_like(w), []
        for t, g in enumerate(gradients, start=1):
            m, v = 0.8 * m + 0.2 * g, 0.8 * v + 0.2 * g * g
            mean, square = m / (1 - 0.8**t), v / (1 - 0.8**t)
            rho = (1 - 0.8) * (1 + 0.8**t) / ((1 + 0.8) * (1 - 0.8**t))
            s = (square - mean**2) / (1 - rho) if t > 1 else 0.0 * g
            gamma = mean**2 / (mean**2 + (rho * s if form == "m-svag" else s))
            w = w - rate * gamma * (mean if form == "m-svag" else g)
            found.append(w)
        return np.array(found)

    return path


def ada_belief(rate, w, gradients):
    found, squares = [], []
    before = [(np.zeros_like(w), None, 0.0), *moments(gradients, 0.8)]
    for t, g in enumerate(gradients, start=1):
        mean, _, rho = before[t - 1]
        squares.append((g - mean) ** 2 / (1 + rho))
        weights = 0.95 ** np.arange(t)[::-1] * 0.05 / (1 - 0.95**t)
        w = w - rate * before[t][0] / (np.sqrt(weights @ np.array(squares)) + 1e-4)
        found.append(w)
    return np.array(found)


def soft_thresholded(rate, w, gradients):
    found = []
    for g in gradients:
        v = w - rate * g
        w = np.sign(v) * np.maximum(np.abs(v) - 0.2 * rate, 0.0)
        found.append(w)
    return np.array(found)


def nothing():
    """Of an optimizer that works with its transform only: see the tests of its own."""


OPTIMIZERS = {
    "variance_scaling": Part(
        lambda rate, **kwargs: VarianceScaling(keras.optimizers.SGD(rate, **kwargs), beta=0.8), variance_scaled
    ),
    "scaling_of_tensors": Part(
        lambda rate, **kwargs: VarianceScaling(keras.optimizers.SGD(rate, **kwargs), beta=0.8, granularity="tensor"),
        lambda rate, w, gradients: variance_scaled(rate, w, gradients, np.sum),
    ),
    "momentum_svag": Part(lambda rate, **kwargs: VarianceAware(rate, beta=0.8, **kwargs), variance_aware("m-svag")),
    "svag": Part(lambda rate, **kwargs: VarianceAware(rate, beta=0.8, form="svag", **kwargs), variance_aware("svag")),
    "svag_of_batches": Part(
        lambda rate, **kwargs: VarianceAware(rate, variance="mini_batch", **kwargs),
        nothing,
        {"alone": False, "transforms": lambda self: [MiniBatchVariance(seed=1)]},
    ),
    "ada_belief": Part(
        lambda rate, **kwargs: AdaBelief(rate, beta_1=0.8, beta_2=0.95, epsilon=1e-4, **kwargs), ada_belief
    ),
    "proximal": Part(
        lambda rate, **kwargs: Proximal(keras.optimizers.SGD(rate, **kwargs), keras.regularizers.L1(0.2), select="all"),
        soft_thresholded,
        {"rests": False, "averages": False},
    ),
    "ivon": Part(
        lambda rate, **kwargs: IVON(rate, **kwargs),
        nothing,
        {"alone": False, "transforms": lambda self: [IVONNoise(seed=1)]},
    ),
}


# Transforms: `reference(problem, w)` gives the objective, or its expectation, of a least-squares problem.


def under_noise(problem, w, variances):
    """E L(w + e) = L(w) + tr(H C) / 2 for a covariance C = diag(variances)."""
    return problem.value(w) + np.sum(np.diag(problem.hessian()) * variances) / 2


def divergence(w, stddev, prior):
    return np.sum(np.log(prior / stddev) + (stddev**2 + w**2) / (2 * prior**2) - 0.5)


def mixture_divergence(w, stddev):
    """KL from N(w, s^2) to the mixture, by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    draws = w[:, None] + stddev * nodes
    mixture = 0.5 * stats.norm.pdf(draws, scale=1.0) + 0.5 * stats.norm.pdf(draws, scale=0.1)
    entropies = stats.norm.logpdf(draws, loc=w[:, None], scale=stddev) - np.log(mixture)
    return np.sum(entropies * weights) / np.sqrt(2 * np.pi)


def perturbed(problem, w, adaptive=False):
    g, scale = problem.gradient(w), np.abs(w) if adaptive else 1.0
    return w + 0.1 * scale**2 * g / np.linalg.norm(scale * g)


def sharpness(adaptive=False):
    """The gradient at the perturbed weights, which are constants to it."""
    return {"reference_gradient": lambda self, problem, w: problem.gradient(perturbed(problem, w, adaptive))}


def micro_batch_variance(problem, w):
    means = problem.example_gradients(w).reshape(3, 4, -1).mean(axis=1)
    return 4 * means.var(axis=0, ddof=1).sum()


def example_variance(problem, w):
    return problem.example_gradients(w).var(axis=0, ddof=1).sum()


def unchanged(problem, w):
    return problem.value(w)


TRANSFORMS = {
    "weight_noise": Part(
        lambda: WeightNoise(0.1, mode="relative", seed=3),
        lambda problem, w: under_noise(problem, w, (0.1 * w) ** 2),
        {"draws": 200},
    ),
    "noise_of_a_table": Part(
        lambda: WeightNoise(0.1, draws="table", antithetic=True, stop=250, seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2),
        {"draws": 200},
    ),
    "example_noise": Part(
        lambda: WeightNoise(0.1, select="all", per="example", seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2),
        {"draws": 200},
    ),
    "learned_noise": Part(
        lambda: LearnedWeightNoise(kl_weight=0.01, init=0.1, seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2) + 0.01 * divergence(w, 0.1, 1.0),
        {"draws": 200},
    ),
    "scale_mixture": Part(
        lambda: LearnedWeightNoise(
            prior=ScaleMixturePrior(1.0, 0.1), kl_weight=0.01, init=0.1, antithetic=True, seed=3
        ),
        lambda problem, w: under_noise(problem, w, 0.1**2) + 0.01 * mixture_divergence(w, 0.1),
        {"draws": 200},
    ),
    "ivon_noise": Part(
        lambda: IVONNoise(examples=100.0, seed=3),
        lambda problem, w: under_noise(problem, w, 1 / (100 * (1 + 1e-4))),
        {"draws": 200, "changes": None, "optimizer": lambda self, rate: IVON(rate)},
    ),
    "sharpness_aware": Part(
        lambda: SharpnessAware(0.1), lambda problem, w: problem.value(perturbed(problem, w)), sharpness()
    ),
    "adaptive_sharpness": Part(
        lambda: SharpnessAware(0.1, adaptive=True),
        lambda problem, w: problem.value(perturbed(problem, w, adaptive=True)),
        sharpness(adaptive=True),
    ),
    "weight_penalty": Part(
        lambda: WeightPenalty(keras.regularizers.L2(0.01)),
        lambda problem, w: problem.value(w) + 0.01 * np.sum(w**2),
    ),
    "gradient_variance_penalty": Part(
        lambda: GradientVariancePenalty(0.01, seed=3),
        lambda problem, w: problem.value(w) + 0.01 * example_variance(problem, w),
        {"draws": 200, "refuses": ("batch normalisation",)},
    ),
    "micro_batch_penalty": Part(
        lambda: GradientVariancePenalty(0.01, estimator="micro_batch", micro_batches=3),
        lambda problem, w: problem.value(w) + 0.01 * micro_batch_variance(problem, w),
    ),
    "exact_variance_penalty": Part(
        lambda: GradientVariancePenalty(0.01, estimator="exact"),
        lambda problem, w: problem.value(w) + 0.01 * example_variance(problem, w),
        {"refuses": ("batch normalisation", "earlier transforms")},
    ),
    "gradient_norm_penalty": Part(
        lambda: GradientNormPenalty(0.01),
        lambda problem, w: problem.value(w) + 0.01 * np.sum(problem.gradient(w) ** 2),
    ),
    "measure_gradient": Part(
        lambda: MeasureGradient(every=2, seed=3), unchanged, {"changes": False, "refuses": ("batch normalisation",)}
    ),
    "mini_batch_variance": Part(
        lambda: MiniBatchVariance(seed=3),
        unchanged,
        {
            "changes": None,
            "optimizer": lambda self, rate: VarianceAware(rate, variance="mini_batch"),
            "refuses": ("batch normalisation",),
        },
    ),
}
