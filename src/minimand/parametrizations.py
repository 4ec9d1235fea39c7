"""Bijections from unconstrained numbers, which an optimizer may move anywhere, to the sets of constrained values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from minimand._validation import check_float
from minimand.backend import Tensor

__all__ = ["Bounded", "CholeskyFactor", "Parametrization", "Positive", "PositiveDefinite", "Simplex", "UnitInterval"]


class Parametrization:
    """The base class of bijections u -> v between R^n and the values that a parameter may have.

    Pass a parametrization to `minimand.losses.TrainableLoss.add_weight` when the value of a variable is constrained. A
    subclass has `constrain` and `unconstrain`, and `latent_shape` if u and v differ in shape.

    Source: `docs/trainable-losses.md`.

    Examples:
        >>> import numpy as np, minimand
        >>> class Odd(minimand.parametrizations.Parametrization):
        ...     "v = u^3"
        ...     def constrain(self, latent):
        ...         return latent**3
        ...     def unconstrain(self, value):
        ...         return np.cbrt(value)
        >>> float(Odd().constrain(Odd().unconstrain(8.0)))
        8.0
    """

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of u for a v of this shape."""
        return shape

    def constrain(self, latent: Tensor) -> Tensor:
        """Return the value v of a tensor u."""
        raise NotImplementedError(f"{type(self).__name__} must implement `constrain(self, latent)`.")

    def unconstrain(self, value: Any) -> np.ndarray:
        """Return the u (a float64 NumPy array) of a value v, or raise a `ValueError` if no u has this v."""
        raise NotImplementedError(f"{type(self).__name__} must implement `unconstrain(self, value)`.")

    def _check(self, holds: Any, rule: str, value: Any) -> None:
        if not np.all(holds):
            raise ValueError(f"{type(self).__name__}: the value must be {rule}. Received: value={value!r}")


class Positive(Parametrization):
    """The positive numbers, as v = exp(u).

    Use this parametrization for scales: a step of u changes v by a fraction of v, whatever the unit of v.

    Raises:
        ValueError: `unconstrain` receives a number that is not positive and finite.

    Source: the logarithm, as usual for scale parameters.

    Examples:
        >>> import minimand
        >>> float(minimand.parametrizations.Positive().unconstrain(1.0))
        0.0
    """

    def constrain(self, latent: Tensor) -> Tensor:
        return ops.exp(latent)

    def unconstrain(self, value: Any) -> np.ndarray:
        value = np.asarray(value, "float64")
        self._check((value > 0) & np.isfinite(value), "positive and finite", value)
        return np.log(value)


class Bounded(Parametrization):
    """The numbers between two bounds, as v = low + (high - low) sigmoid(u), or with `log` the same for log v.

    Use this parametrization for values that would run away without bounds; use `log` if v spans orders of magnitude.

    Args:
        low: lower bound, which v does not reach.
        high: upper bound, which v does not reach.
        log: whether log v, instead of v, is a sigmoid of u; the bounds must then be positive.

    Raises:
        ValueError: the bounds do not increase, or `low` is not positive although `log` is true, or `unconstrain`
            receives a number outside the bounds.

    Source: the logistic function.

    Examples:
        >>> import minimand
        >>> float(minimand.parametrizations.Bounded(0.01, 100.0, log=True).unconstrain(1.0))
        0.0
    """

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        owner = type(self).__name__
        self.low = check_float(owner, "low", low, above=0.0 if log else -math.inf)
        self.high = check_float(owner, "high", high, above=self.low)
        self.log = log
        self._ends = (math.log(low), math.log(high)) if log else (self.low, self.high)

    def constrain(self, latent: Tensor) -> Tensor:
        first, last = self._ends
        position = first + (last - first) * ops.sigmoid(latent)
        return ops.exp(position) if self.log else position

    def unconstrain(self, value: Any) -> np.ndarray:
        value = np.asarray(value, "float64")
        self._check((value > self.low) & (value < self.high), f"between {self.low:g} and {self.high:g}", value)
        first, last = self._ends
        position = np.log(value) if self.log else value
        return np.log(position - first) - np.log(last - position)


class UnitInterval(Bounded):
    """The numbers between 0 and 1, as v = sigmoid(u).

    Use this parametrization for probabilities and thresholds of probabilities.

    Raises:
        ValueError: `unconstrain` receives a number outside (0, 1).

    Source: the logistic function.

    Examples:
        >>> import minimand
        >>> float(minimand.parametrizations.UnitInterval().unconstrain(0.5))
        0.0
    """

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


class Simplex(Parametrization):
    """The positive numbers with sum 1 along the last axis, as v = softmax(H u); u has one number fewer than v.

    Use this parametrization for mixture weights. The n - 1 columns of H are orthonormal and orthogonal to (1, ..., 1),
    so all components are treated alike. A weighted sum of losses has its minimum over v in a corner, so do not train
    weights of losses this way; see `minimand.losses.LearnedClassWeights`.

    Raises:
        ValueError: `unconstrain` receives numbers that are not positive, or whose sum is not 1.

    Source: Egozcue, Pawlowsky-Glahn, Mateu-Figueras, Barcelo-Vidal, "Isometric logratio transformations for
    compositional data analysis", Mathematical Geology 35, 2003, section 4.

    Examples:
        >>> import minimand
        >>> minimand.parametrizations.Simplex().unconstrain([0.25, 0.25, 0.25, 0.25]).shape
        (3,)
    """

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or shape[-1] < 2:
            raise ValueError(
                f"Simplex: `shape` must have 2 entries or more in its last axis. Received: shape={shape!r}"
            )
        return (*shape[:-1], shape[-1] - 1)

    def constrain(self, latent: Tensor) -> Tensor:
        basis = ops.convert_to_tensor(_contrasts(latent.shape[-1] + 1).T, latent.dtype)
        return ops.softmax(ops.matmul(latent, basis), axis=-1)

    def unconstrain(self, value: Any) -> np.ndarray:
        value = np.asarray(value, "float64")
        near_one = np.abs(value.sum(axis=-1, keepdims=True) - 1) < 1e-5
        self._check((value > 0) & near_one, "positive, with sum 1 along the last axis", value)
        return np.log(value) @ _contrasts(value.shape[-1])


def _contrasts(count: int) -> np.ndarray:
    """Return `count - 1` orthonormal columns orthogonal to (1, ..., 1), the Helmert contrasts."""
    columns = np.arange(1, count)
    rows = np.arange(count)[:, None]
    matrix = np.where(rows < columns, 1.0, np.where(rows == columns, -columns, 0.0))
    return matrix / np.sqrt(columns * (columns + 1.0))


class CholeskyFactor(Parametrization):
    """The lower triangular (d, d) matrices with a positive diagonal v_ii = exp(u_ii), from d (d + 1) / 2 numbers.

    Use this parametrization for the Cholesky factor of a covariance or precision matrix.

    Raises:
        ValueError: `unconstrain` receives a matrix that is not lower triangular with a positive diagonal.

    Source: Pinheiro, Bates, "Unconstrained parametrizations for variance-covariance matrices", Statistics and
    Computing 6, 1996, section 2.2 (log-Cholesky).

    Examples:
        >>> import minimand
        >>> minimand.parametrizations.CholeskyFactor().latent_shape((4, 4))
        (10,)
    """

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ValueError(f"{type(self).__name__}: `shape` must be (d, d). Received: shape={shape!r}")
        return (shape[0] * (shape[0] + 1) // 2,)

    def constrain(self, latent: Tensor) -> Tensor:
        size = (math.isqrt(8 * latent.shape[0] + 1) - 1) // 2
        places = np.stack(np.tril_indices(size), axis=-1)
        matrix = ops.scatter(ops.convert_to_tensor(places), latent, (size, size))
        diagonal = ops.convert_to_tensor(np.eye(size), latent.dtype)
        # Off the diagonal the exponential could overflow.
        return matrix * (1 - diagonal) + ops.exp(matrix * diagonal) * diagonal

    def unconstrain(self, value: Any) -> np.ndarray:
        latent = np.array(value, "float64")
        holds = np.all(np.triu(latent, 1) == 0) and np.all(np.diag(latent) > 0) and np.all(np.isfinite(latent))
        self._check(holds, "a lower triangular matrix with a positive diagonal", value)
        np.fill_diagonal(latent, np.log(np.diag(latent)))
        return latent[np.tril_indices(len(latent))]


class PositiveDefinite(CholeskyFactor):
    """The symmetric positive definite (d, d) matrices, as v = A A' with A as in `CholeskyFactor`.

    Use this parametrization for a covariance or precision matrix.

    Raises:
        ValueError: `unconstrain` receives a matrix that is not symmetric and positive definite.

    Source: as `CholeskyFactor`.

    Examples:
        >>> import numpy as np, minimand
        >>> minimand.parametrizations.PositiveDefinite().unconstrain(np.eye(2)).tolist()
        [0.0, 0.0, 0.0]
    """

    def constrain(self, latent: Tensor) -> Tensor:
        factor = super().constrain(latent)
        return ops.matmul(factor, ops.transpose(factor))

    def unconstrain(self, value: Any) -> np.ndarray:
        value = np.asarray(value, "float64")
        self._check(np.allclose(value, value.T, rtol=1e-6), "a symmetric matrix", value)
        try:
            factor = np.linalg.cholesky(value)
        except np.linalg.LinAlgError:
            self._check(False, "a positive definite matrix", value)
        return super().unconstrain(factor)
