"""Transforms: `reference(problem, w)` gives the objective, or its expectation, of a least-squares problem."""

import keras
import numpy as np
from scipy import stats

from minimand.optimizers import IVON, MSVAG
from minimand.transforms import (
    Fishr,
    GradientNormPenalty,
    GradientVariancePenalty,
    IVONNoise,
    MeasureGradient,
    MiniBatchVariance,
    ScaleMixturePrior,
    SharpnessAware,
    VariationalWeightNoise,
    WeightNoise,
    WeightPenalty,
)
from tests.parts._part import Part


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


def variance_between_domains(problem, w):
    """Examples are of two domains in turn."""
    g = problem.example_gradients(w)
    variances = np.stack([g[domain::2].var(axis=0, ddof=1) for domain in (0, 1)])
    return np.mean(np.sum((variances - variances.mean(axis=0)) ** 2, axis=1))


@keras.saving.register_keras_serializable(package="tests")
def domains_in_turn(batch):
    return keras.ops.arange(keras.ops.shape(keras.tree.flatten(batch.x)[0])[0]) % 2


def unchanged(problem, w):
    return problem.value(w)


TRANSFORMS = {
    "weight_noise": Part(
        lambda: WeightNoise(0.1, mode="relative", seed=3),
        lambda problem, w: under_noise(problem, w, (0.1 * w) ** 2),
        {"draws": 200},
    ),
    "noise_until_a_step": Part(
        lambda: WeightNoise(0.1, antithetic=True, stop=250, seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2),
        {"draws": 200},
    ),
    "example_noise": Part(
        lambda: WeightNoise(0.1, select="all", per="example", seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2),
        {"draws": 200},
    ),
    "learned_noise": Part(
        lambda: VariationalWeightNoise(kl_weight=0.01, init=0.1, seed=3),
        lambda problem, w: under_noise(problem, w, 0.1**2) + 0.01 * divergence(w, 0.1, 1.0),
        {"draws": 200},
    ),
    "scale_mixture": Part(
        lambda: VariationalWeightNoise(
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
        lambda: GradientVariancePenalty(0.01),
        lambda problem, w: problem.value(w) + 0.01 * example_variance(problem, w),
    ),
    "probe_variance_penalty": Part(
        lambda: GradientVariancePenalty(0.01, estimator="probe", seed=3),
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
    "fishr": Part(
        lambda: Fishr(0.01, domains_in_turn, 2),
        lambda problem, w: problem.value(w) + 0.01 * variance_between_domains(problem, w),
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
            "optimizer": lambda self, rate: MSVAG(rate, variance="mini_batch"),
        },
    ),
}
