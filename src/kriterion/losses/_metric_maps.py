"""Linear maps whose squared Euclidean norms are learned metrics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion.backend import Tensor
from kriterion.losses.base import TrainableLoss
from kriterion.parametrizations import CholeskyFactor, Positive


class MetricMap:
    """x -> z(x) with ||z||^2 = x' P x, for a precision P with trained parameters."""

    _factor: Any

    def transform(self, x: Tensor) -> Tensor:
        """The vector z of each x (..., d): A x, unless the subclass has no such matrix."""
        return ops.matmul(x, ops.transpose(ops.cast(self._factor.value, x.dtype)))

    def log_determinant(self) -> Tensor:
        """Half the logarithm of the determinant of P."""
        raise NotImplementedError

    def trace(self) -> Tensor:
        """The trace of P."""
        raise NotImplementedError


class TriangularMap(MetricMap):
    """z = A x, P = A'A, A lower triangular with a positive diagonal, the identity at first."""

    def __init__(self, loss: TrainableLoss, dim: int) -> None:
        shape = (dim, dim)
        self._factor = loss.add_weight(
            shape, np.eye(dim), parametrization=CholeskyFactor(), logged=False, name="factor"
        )

    def log_determinant(self) -> Tensor:
        return ops.sum(ops.log(ops.diagonal(self._factor.value)))


class RectangularMap(MetricMap):
    """z = A x, P = A'A, A any (rank, d) matrix; at first the first rows of the identity."""

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._factor = loss.add_weight((rank, dim), keras.initializers.Identity(), logged=False, name="factor")

    def trace(self) -> Tensor:
        return ops.sum(ops.square(self._factor.value))


class LowRankMap(MetricMap):
    """P = (D + U U')^-1, D diagonal and U (d, rank): by Woodbury's identity only rank x rank matrices are factored.

    With V = D^-1/2 U, y = D^-1/2 x and f = (I + V'V)^-1 V'y, x'Px = ||y - V f||^2 + ||f||^2: z are the two together. A
    difference of squares would cancel where U U' is much larger than D. I + V'V is never near singular.
    """

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._spread = loss.add_weight(dim, 1.0, parametrization=Positive(), logged=False, name="spread")
        # Not zero, where the gradient by U is.
        first = keras.initializers.Orthogonal(gain=0.1, seed=0)
        self._loadings = loss.add_weight((dim, rank), first, logged=False, name="loadings")

    def _scaled(self) -> tuple[Tensor, Tensor, Tensor]:
        """D^1/2, V and the Cholesky factor of I + V'V."""
        spread = self._spread.value
        scaled = self._loadings.value / spread[:, None]
        inner = ops.matmul(ops.transpose(scaled), scaled) + ops.eye(scaled.shape[1], dtype=scaled.dtype)
        return spread, scaled, ops.cholesky(inner)

    def transform(self, x: Tensor) -> Tensor:
        spread, scaled, factor = (ops.cast(part, x.dtype) for part in self._scaled())
        flat = ops.reshape(x, (-1, x.shape[-1])) / spread
        half = ops.solve_triangular(factor, ops.matmul(ops.transpose(scaled), ops.transpose(flat)), lower=True)
        common = ops.transpose(ops.solve_triangular(ops.transpose(factor), half, lower=False))
        rest = flat - ops.matmul(common, ops.transpose(scaled))
        together = ops.concatenate([rest, common], axis=-1)
        return ops.reshape(together, (*ops.shape(x)[:-1], together.shape[-1]))

    def log_determinant(self) -> Tensor:
        spread, _, factor = self._scaled()
        return -ops.sum(ops.log(spread)) - ops.sum(ops.log(ops.diagonal(factor)))
