"""Running mean and variance of a gradient over steps, without bias and without cancellation.

With weights w_i ~ beta^(t - i) that sum to 1, over the gradients g_1, ..., g_t:

    mean = sum w_i g_i, spread = sum w_i (g_i - mean)^2, rho = sum w_i^2, E[spread] = (1 - rho) Var g

so spread / (1 - rho) is the unbiased variance of a gradient, and rho times that the variance of the mean.
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from kriterion.backend import Tensor


def newest_weight(beta: float, count: Tensor) -> Tensor:
    """The weight of the newest of `count` >= 1 gradients."""
    # Rounding must not make it more than 1, and a spread negative.
    return ops.minimum((1 - beta) / one_minus_power(beta, count), 1.0)


def sum_of_squared_weights(beta: float, count: Tensor) -> Tensor:
    """Rho, after `count` >= 1 gradients."""
    weight = one_minus_power(beta, count)
    return (1 - beta) * (2 - weight) / ((1 + beta) * weight)


def variance_per_spread(beta: float, count: Tensor) -> Tensor:
    """1 / (1 - rho), or 1 after one gradient, whose spread is 0."""
    # 1 - rho = 2 beta (1 - beta^(t - 1)) / ((1 + beta) (1 - beta^t))
    several = ops.where(count > 1, 2 * beta * one_minus_power(beta, count - 1), 1.0)
    return ops.where(count > 1, (1 + beta) * one_minus_power(beta, count) / several, 1.0)


def updated(mean: Tensor, spread: Tensor, gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`(mean, spread)` with one more gradient, which gets this weight."""
    gradient = ops.cast(gradient, mean.dtype)
    weight = ops.cast(weight, mean.dtype)
    difference = gradient - mean
    # In this order, so that the square of a huge first gradient, with weight 1, is 0 and not 0 * inf.
    return mean + weight * difference, (1 - weight) * spread + ((1 - weight) * weight * difference) * difference


def shrinkage(mean: Tensor, noise: Tensor, *, by_tensor: bool = False) -> Tensor:
    """mean^2 / (mean^2 + noise): the factor that brings a noisy mean nearest to the true one; 1 where both are 0.

    Args:
        mean: an estimate.
        noise: its variance.
        by_tensor: whether the factor is one for the whole tensor, of sums.
    """
    # The bounds keep 0 / 0 and inf / inf away.
    float16 = keras.backend.standardize_dtype(mean.dtype) == "float16"
    limits = np.finfo("float16" if float16 else "float32")
    squared = ops.square(mean)
    if by_tensor:
        squared, noise = ops.sum(squared), ops.sum(noise)
    squared = ops.clip(squared, float(limits.tiny), float(limits.max))
    return squared / (squared + noise)


def one_minus_power(beta: float, count: Tensor) -> Tensor:
    """1 - beta^count, without cancellation."""
    return -ops.expm1(math.log(beta) * ops.cast(count, "float32"))
