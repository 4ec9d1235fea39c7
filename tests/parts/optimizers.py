"""Optimizers: `reference(learning_rate, weights, gradients)` gives the weights after each gradient."""

import keras
import numpy as np

from minimand.optimizers import IVON, MSVAG, SVAG, AdaBelief, Proximal, SNRScaling
from minimand.transforms import (
    IVONNoise,
    MiniBatchVariance,
)
from tests.parts._part import Part


def moments(gradients, beta):
    """(mean, unbiased variance, rho) after each gradient, from the weights of the running mean."""
    gradients = np.asarray(gradients, dtype="float64")
    for t in range(1, len(gradients) + 1):
        weights = beta ** np.arange(t)[::-1] * (1 - beta) / (1 - beta**t)
        mean = np.tensordot(weights, gradients[:t], axes=1)
        squared_deviation = np.tensordot(weights, (gradients[:t] - mean) ** 2, axes=1)
        rho = np.sum(weights**2)
        yield mean, (squared_deviation / (1 - rho) if t > 1 else 0 * squared_deviation), rho


def variance_scaled(rate, w, gradients, of_tensor=np.asarray):
    path = []
    for g, (mean, s, rho) in zip(gradients, moments(gradients, 0.8), strict=True):
        w = w - rate * g * of_tensor(mean**2) / of_tensor(mean**2 + rho * s)
        path.append(w)
    return np.array(path)


def variance_aware(form):
    """Algorithm 1 of the paper, with m and v from 0, bias corrections, and s = (v - m^2) / (1 - rho)."""

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
    """The reference of an optimizer that works only with its transform, which has tests of its own."""


OPTIMIZERS = {
    "snr_scaling": Part(
        lambda rate, **kwargs: SNRScaling(keras.optimizers.SGD(rate, **kwargs), beta=0.8), variance_scaled
    ),
    "scaling_of_tensors": Part(
        lambda rate, **kwargs: SNRScaling(keras.optimizers.SGD(rate, **kwargs), beta=0.8, granularity="tensor"),
        lambda rate, w, gradients: variance_scaled(rate, w, gradients, np.sum),
    ),
    "msvag": Part(lambda rate, **kwargs: MSVAG(rate, beta=0.8, **kwargs), variance_aware("m-svag")),
    "svag": Part(lambda rate, **kwargs: SVAG(rate, beta=0.8, **kwargs), variance_aware("svag")),
    "msvag_of_batches": Part(
        lambda rate, **kwargs: MSVAG(rate, variance="mini_batch", **kwargs),
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
