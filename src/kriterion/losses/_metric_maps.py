"""Linear maps whose squared Euclidean norms are learned metrics."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kriterion.backend import Tensor
from kriterion.losses.base import TrainableLoss
from kriterion.parametrizations import CholeskyFactor, Positive


class MetricMap:
    """x -> z(x) with ||z||^2 = x' P x, for a precision P with trained parameters."""

    def transform(self, x: Tensor) -> Tensor:
        """The vector z of each x (..., d)."""
        return self.transform_and_log_determinant(x)[0]

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors z, and half the logarithm of the determinant of P."""
        raise NotImplementedError

    def trace(self) -> Tensor:
        """The trace of P."""
        raise NotImplementedError


def _product(factor: Tensor, x: Tensor) -> Tensor:
    """A x for each vector x (..., d)."""
    return ops.matmul(x, ops.transpose(ops.cast(factor, x.dtype)))


class TriangularMap(MetricMap):
    """z = A x, P = A'A, A lower triangular with a positive diagonal, the identity at first."""

    def __init__(self, loss: TrainableLoss, dim: int) -> None:
        shape = (dim, dim)
        self._factor = loss.add_weight(
            shape, np.eye(dim), parametrization=CholeskyFactor(), logged=False, name="factor"
        )

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self._factor.value
        return _product(factor, x), ops.sum(ops.log(ops.diagonal(factor)))


class RectangularMap(MetricMap):
    """z = A x, P = A'A, A any (rank, d) matrix; at first the first rows of the identity."""

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._factor = loss.add_weight((rank, dim), keras.initializers.Identity(), logged=False, name="factor")

    def transform(self, x: Tensor) -> Tensor:
        return _product(self._factor.value, x)

    def trace(self) -> Tensor:
        return ops.sum(ops.square(self._factor.value))


class LowRankMap(MetricMap):
    """P = (D + U U')^-1, D diagonal and U (d, rank): by Woodbury's identity only d x rank matrices are factored.

    With V = D^-1/2 U and y = D^-1/2 x, x'Px = min over f of ||y - V f||^2 + ||f||^2, which is the least squares problem
    of the matrix [V; I] = Q R: z is its residual, [y; 0] - Q Q'[y; 0]. R'R = I + V'V is never formed, because where V
    is large it is singular in floating point; [V; I] has full rank whatever V is.
    """

    def __init__(self, loss: TrainableLoss, dim: int, rank: int) -> None:
        self._spread = loss.add_weight(dim, 1.0, parametrization=Positive(), logged=False, name="spread")
        # Not zero, where the gradient by U is.
        first = keras.initializers.Orthogonal(gain=0.1, seed=0)
        self._loadings = loss.add_weight((dim, rank), first, logged=False, name="loadings")

    def transform_and_log_determinant(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spread = self._spread.value
        loadings = self._loadings.value / spread[:, None]
        stacked = ops.concatenate([loadings, ops.eye(loadings.shape[1], dtype=loadings.dtype)], axis=0)
        basis, triangle = ops.qr(stacked, mode="reduced")
        log_determinant = -ops.sum(ops.log(spread)) - ops.sum(ops.log(ops.abs(ops.diagonal(triangle))))
        scaled, basis = x / ops.cast(spread, x.dtype), ops.cast(basis, x.dtype)
        inside = ops.matmul(ops.matmul(scaled, basis[: x.shape[-1]]), ops.transpose(basis))
        padded = ops.concatenate([scaled, ops.zeros_like(inside[..., x.shape[-1] :])], axis=-1)
        return padded - inside, log_determinant
