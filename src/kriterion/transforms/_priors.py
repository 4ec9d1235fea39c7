"""Priors of weights, and how far a normal posterior is from them."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor


def normal_divergence(mean: Tensor, log_stddev: Tensor, prior_stddev: float) -> Tensor:
    """KL(N(m, s^2) || N(0, p^2)) = sum of log(p / s) + (s^2 + m^2) / (2 p^2) - 1/2."""
    squares = ops.square(mean) + ops.exp(2.0 * log_stddev)
    return ops.sum(math.log(prior_stddev) - 0.5 - log_stddev + squares / (2.0 * prior_stddev**2))


def empirical_bayes_divergence(mean: Tensor, log_stddev: Tensor) -> Tensor:
    """The least KL(N(m, s^2) || N(0, p^2)) of all p, which is that of p^2 = mean(m^2 + s^2).

    The derivative by p is 0 there, so that the gradient is that at fixed p.
    """
    count = math.prod(mean.shape)
    best = ops.sum(ops.square(mean) + ops.exp(2.0 * log_stddev)) / count
    return 0.5 * count * ops.log(best) - ops.sum(log_stddev)


@keras.saving.register_keras_serializable(package="kriterion")
class ScaleMixturePrior:
    """A prior of two normal laws, a wide and a narrow one, for each weight.

    p(w) = a N(w; 0, s1^2) + (1 - a) N(w; 0, s2^2)

    Args:
        wide: standard deviation s1 > 0.
        narrow: standard deviation s2 > 0.
        share: probability 0 < a < 1 of the wide one.

    Raises:
        ValueError: a number is out of its range.

    Source: Blundell et al., "Weight uncertainty in neural networks", ICML 2015, equation 7.

    Examples:
        >>> import kriterion
        >>> prior = kriterion.transforms.ScaleMixturePrior(1.0, 0.01, share=0.25)
    """

    def __init__(self, wide: float = 1.0, narrow: float = 0.0025, *, share: float = 0.5) -> None:
        self.wide = check_float("ScaleMixturePrior", "wide", wide, above=0.0)
        self.narrow = check_float("ScaleMixturePrior", "narrow", narrow, above=0.0)
        self.share = check_float("ScaleMixturePrior", "share", share, above=0.0, below=1.0)

    def divergence(self, mean: Tensor, noise: Tensor, log_stddev: Tensor) -> Tensor:
        """Log q(w) - log p(w) at a draw w = m + s e: an unbiased estimate of KL(q || p)."""
        value = mean + ops.exp(log_stddev) * noise
        log_posterior = -0.5 * ops.square(noise) - log_stddev
        parts = [
            np.float32(math.log(share / stddev)) - ops.square(value) / (2.0 * stddev**2)
            for share, stddev in ((self.share, self.wide), (1.0 - self.share, self.narrow))
        ]
        return ops.sum(log_posterior - ops.logaddexp(*parts))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal prior."""
        return {"wide": self.wide, "narrow": self.narrow, "share": self.share}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaleMixturePrior:
        """A prior made from `get_config()`."""
        return cls(**config)
