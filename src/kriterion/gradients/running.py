"""Running mean and variance of a gradient over the steps of a hand-written loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from kriterion._running_moments import updated
from kriterion._validation import check_float
from kriterion.backend import Tensor


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
        >>> import numpy as np, kriterion
        >>> moments = kriterion.gradients.RunningMoments.start([np.zeros(2, "float32")], beta=0.5)
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
