"""Running mean and variance of a gradient over steps, without bias and without cancellation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from minimand._validation import check_float
from minimand.backend import Tensor

# For optimizers, whose weights of the gradients follow from the number of steps.


def newest_weight(beta: float, count: Tensor) -> Tensor:
    """The weight of the newest of `count` >= 1 gradients."""
    # Rounding must not make the weight more than 1, and a squared deviation negative.
    return ops.minimum((1 - beta) / one_minus_power(beta, count), 1.0)


def sum_of_squared_weights(beta: float, count: Tensor) -> Tensor:
    """The sum rho of the squared weights of `count` >= 1 gradients."""
    weight = one_minus_power(beta, count)
    return (1 - beta) * (2 - weight) / ((1 + beta) * weight)


def variance_per_squared_deviation(beta: float, count: Tensor) -> Tensor:
    """1 / (1 - rho); 1 after one gradient, whose squared deviation is 0."""
    # 1 - rho = 2 beta (1 - beta^(t - 1)) / ((1 + beta) (1 - beta^t))
    several = ops.where(count > 1, 2 * beta * one_minus_power(beta, count - 1), 1.0)
    return ops.where(count > 1, (1 + beta) * one_minus_power(beta, count) / several, 1.0)


def updated(mean: Tensor, squared_deviation: Tensor, gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`(mean, squared_deviation)` after one more gradient, which gets this weight.

    The squared deviation is sum_i w_i (g_i - mean)^2.
    """
    gradient = ops.cast(gradient, mean.dtype)
    weight = ops.cast(weight, mean.dtype)
    difference = gradient - mean
    # In this order, the square of a huge first gradient, which has weight 1, is 0 and not 0 * inf.
    added = ((1 - weight) * weight * difference) * difference
    return mean + weight * difference, (1 - weight) * squared_deviation + added


def shrinkage(mean: Tensor, noise: Tensor, *, by_tensor: bool = False) -> Tensor:
    """mean^2 / (mean^2 + noise): the factor that brings a noisy mean nearest to the true one; 1 where both are 0.

    Args:
        mean: an estimate.
        noise: its variance.
        by_tensor: whether the whole tensor has one factor, of sums.
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


# For hand-written loops.


class RunningMoments(NamedTuple):
    """Running mean and unbiased variance of a gradient, both bias-corrected, over the steps of a hand-written loop.

    Use `RunningMoments` to follow the noise of the gradient without a second pass over the examples.

    mean = sum_i w_i g_i, variance = sum_i w_i (g_i - mean)^2 / (1 - rho), w_i ~ beta^(t - i), rho = sum_i w_i^2

    The variance is that of the given gradients, which are usually those of batches. While their expectation stays the
    same, the variance is unbiased from the second gradient on. The variance is never negative, since no squares are
    subtracted. `RunningMoments` is a tuple of tensors, so `jax.jit` accepts it; `start` makes the first tuple, and
    `updated` each next one.

    Attributes:
        beta: decay.
        terms: effective number of gradients, the sum of beta^(t - i).
        rho: sum of the squared weights; rho times the variance is the variance of the mean.
        mean: the mean, by weight tensor.
        squared_deviation: (1 - rho) times the variance, by weight tensor.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    section 4.1.

    Examples:
        >>> import numpy as np, minimand
        >>> moments = minimand.gradients.RunningMoments.start([np.zeros(2, "float32")], beta=0.5)
        >>> for gradient in ([1.0, 5.0], [4.0, 5.0]):
        ...     moments = moments.updated([np.float32(gradient)])
        >>> np.asarray(moments.mean[0]), np.asarray(moments.variance[0])
        (array([3., 5.], dtype=float32), array([4.5, 0. ], dtype=float32))
    """

    beta: float
    terms: Tensor
    rho: Tensor
    mean: list[Tensor]
    squared_deviation: list[Tensor]

    @classmethod
    def start(cls, weights: Sequence[Tensor], beta: float = 0.9) -> RunningMoments:
        """The moments before the first gradient, for weights of these shapes and types; 0 < beta < 1."""
        beta = check_float("RunningMoments", "beta", beta, above=0.0, below=1.0)
        zeros = [ops.zeros_like(ops.convert_to_tensor(weight)) for weight in weights]
        return cls(beta, ops.zeros(()), ops.ones(()), zeros, zeros)

    def updated(self, gradients: Sequence[Tensor]) -> RunningMoments:
        """The moments after one more gradient."""
        terms = 1.0 + self.beta * self.terms
        weight = 1.0 / terms
        triples = zip(self.mean, self.squared_deviation, gradients, strict=True)
        pairs = [updated(mean, squared, ops.convert_to_tensor(g), weight) for mean, squared, g in triples]
        rho = ops.square(1.0 - weight) * self.rho + ops.square(weight)
        return RunningMoments(self.beta, terms, rho, [mean for mean, _ in pairs], [squared for _, squared in pairs])

    @property
    def variance(self) -> list[Tensor]:
        """The unbiased variance; infinite after one gradient, which has no variance."""
        known = self.rho < 1.0
        factor = 1.0 / ops.where(known, 1.0 - self.rho, 1.0)
        return [ops.where(known, ops.cast(factor, s.dtype) * s, np.inf) for s in self.squared_deviation]
