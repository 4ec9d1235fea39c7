"""Running mean and variance of a gradient over the steps of a hand-written loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from minimand._validation import check_float
from minimand.backend import Tensor

# Running mean and variance of a gradient over steps, without bias and without cancellation.


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


# Running mean and variance of a gradient over the steps of a hand-written loop.


class RunningMoments(NamedTuple):
    """Running mean and unbiased variance of a gradient, both bias-corrected, over the steps of a hand-written loop.

    mean = sum_i w_i g_i, variance = sum_i w_i (g_i - mean)^2 / (1 - rho), w_i ~ beta^(t - i), rho = sum_i w_i^2

    The variance is that of the gradients that are given, those of batches; while their expectation stays, it is
    unbiased from the second on. It is never negative: no squares are subtracted. It is a tuple of tensors, so that
    `jax.jit` takes it; `start` makes it, `updated` the next one.

    Attributes:
        beta: decay.
        terms: effective number of gradients, the sum of beta^(t - i).
        rho: sum of the squared weights; rho times the variance is the variance of the mean.
        mean: the mean, by weight tensor.
        spread: (1 - rho) times the variance, by weight tensor.

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
    spread: list[Tensor]

    @classmethod
    def start(cls, weights: Sequence[Tensor], beta: float = 0.9) -> RunningMoments:
        """Before the first gradient, of these shapes and types; 0 < beta < 1."""
        beta = check_float("RunningMoments", "beta", beta, above=0.0, below=1.0)
        zeros = [ops.zeros_like(ops.convert_to_tensor(weight)) for weight in weights]
        return cls(beta, ops.zeros(()), ops.ones(()), zeros, zeros)

    def updated(self, gradients: Sequence[Tensor]) -> RunningMoments:
        """With one more gradient."""
        terms = 1.0 + self.beta * self.terms
        weight = 1.0 / terms
        triples = zip(self.mean, self.spread, gradients, strict=True)
        pairs = [updated(mean, spread, ops.convert_to_tensor(g), weight) for mean, spread, g in triples]
        rho = ops.square(1.0 - weight) * self.rho + ops.square(weight)
        return RunningMoments(self.beta, terms, rho, [mean for mean, _ in pairs], [spread for _, spread in pairs])

    @property
    def variance(self) -> list[Tensor]:
        """The unbiased variance; infinite after one gradient, which has none."""
        known = self.rho < 1.0
        factor = 1.0 / ops.where(known, 1.0 - self.rho, 1.0)
        return [ops.where(known, ops.cast(factor, s.dtype) * s, np.inf) for s in self.spread]
