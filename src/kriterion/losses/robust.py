"""Barron's robust family as pure functions: loss, weights, density, its normaliser and samples."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._validation import check_float, is_number
from kriterion.backend import Tensor
from kriterion.losses._fixed_kernel import fixed_kernel, is_moderate
from kriterion.losses._floats import Float, working_float
from kriterion.losses._log_partition import log_partition_kernel
from kriterion.losses._robust_kernel import robust_kernel


def shape_of_power(lam: Tensor | float) -> Tensor | float:
    """The shape a of the power-transform coordinate lambda: the same family, symmetric about squared error.

    a = 2 (1 + lambda) for lambda <= 0, a = 2/(1 - lambda) for 0 <= lambda <= 1

    lambda = 0 is squared error, -1 Cauchy, -1/2 pseudo-Huber, -inf Welsch, 1 the limit a = inf.

    Args:
        lam: lambda in [-inf, 1], a float or a tensor.

    Returns:
        a in [-inf, inf], a float or a tensor as `lam` is.

    Raises:
        ValueError: a float `lam` is above 1 or not a number.

    Source: Barron, "A Power Transform", arXiv 2502.10647 (2025), table 1.

    Examples:
        >>> import kriterion
        >>> [kriterion.losses.shape_of_power(lam) for lam in (-1.0, -0.5, 0.0, 0.5)]
        [0.0, 1.0, 2.0, 4.0]
    """
    if isinstance(lam, (int, float)):
        if math.isnan(lam) or lam > 1:
            raise ValueError(f"shape_of_power: `lam` must be a number <= 1. Received: lam={lam!r}")
        return 2.0 * (1 + lam) if lam <= 0 else (2.0 / (1 - lam) if lam < 1 else math.inf)
    lam = ops.convert_to_tensor(lam)
    return ops.where(lam <= 0, 2 * (1 + lam), 2 / (1 - ops.where(lam > 0, lam, 0.0)))


def _shape(owner: str, alpha: Any, lam: Any, minimum: float = -math.inf) -> Any:
    """The shape from whichever of the two coordinates was given, numbers or tensors."""
    if (alpha is None) == (lam is None):
        raise ValueError(f"{owner}: give either `alpha` or `lam`. Received: alpha={alpha!r}, lam={lam!r}")
    if isinstance(lam if alpha is None else alpha, (int, float)):
        return chosen_shape(owner, alpha, lam, minimum=minimum)
    return shape_of_power(lam) if alpha is None else alpha


def chosen_shape(
    owner: str, alpha: float | None, lam: float | None, *, minimum: float = -math.inf, maximum: float = math.inf
) -> float | None:
    """The shape from whichever of the two coordinates was given, as a float in the range; None if neither was."""
    if lam is not None:
        if alpha is not None:
            raise ValueError(f"{owner}: give at most one of `alpha` and `lam`. Received: alpha={alpha!r}, lam={lam!r}")
        if not is_number(lam):
            raise ValueError(f"{owner}: `lam` must be a number <= 1. Received: lam={lam!r}")
        alpha = shape_of_power(float(lam))
    name = "alpha" if lam is None else f"alpha of lam={lam!r}"
    if alpha is None or (isinstance(alpha, float) and math.isinf(alpha) and minimum <= alpha <= maximum):
        return alpha
    return check_float(owner, name, alpha, minimum=minimum, maximum=maximum)


def _checked(owner: str, residual: Any, alpha: Any, scale: Any) -> tuple[list[Any], Float]:
    """`([residual as a tensor, alpha, scale], the precision to compute in)`, numbers as floats."""
    if isinstance(scale, (int, float)):
        check_float(owner, "scale", scale, above=0.0)
    numbers = [float(value) if isinstance(value, (int, float)) else value for value in (alpha, scale)]
    given = [ops.convert_to_tensor(residual), *numbers]
    return given, working_float(*given)


def _in_format(value: Any, kind: Float) -> Tensor:
    # A float straight into its format: converted without one, it would be rounded to float32 on the way.
    if isinstance(value, float):
        return ops.convert_to_tensor(value, kind.name)
    return ops.cast(ops.convert_to_tensor(value), kind.name)


def _as_given(value: Tensor, given: Tensor) -> Tensor:
    """In the floating point format of the given tensor, if it has one."""
    dtype = keras.backend.standardize_dtype(given.dtype)
    return ops.cast(value, dtype) if "float" in dtype else value


def _derivatives(x: Tensor, alpha: Any, scale: Any, kind: Float, with_slope: bool = False) -> tuple[Any, ...]:
    """`(loss, derivative by x, by alpha if wanted, by scale)` from the cheaper of the exact kernels."""
    if isinstance(alpha, float) and is_moderate(alpha):
        value, influence, by_scale = fixed_kernel(x, alpha, scale, kind)
        return value, influence, None, by_scale
    return robust_kernel(x, _in_format(alpha, kind), _in_format(scale, kind), kind, with_slope)


def _loss(owner: str, residual: Any, alpha: Any, scale: Any) -> Tensor:
    """The loss, with its derivatives by those arguments that are tensors."""
    given, kind = _checked(owner, residual, alpha, scale)
    variable = [index for index, value in enumerate(given) if not isinstance(value, float)]

    def of_tensors(*tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        arguments = list(given)
        for index, tensor in zip(variable, tensors, strict=True):
            arguments[index] = tensor
        x, a, c = arguments
        value, *derivatives = _derivatives(x, a, c, kind, with_slope=1 in variable)
        return value, tuple(derivatives[index] for index in variable)

    tensors = [_in_format(given[index], kind) for index in variable]
    return _as_given(backend.elementwise(of_tensors)(*tensors), given[0])


def general_robust(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """rho(x) = b/a ((x^2/(c^2 b) + 1)^(a/2) - 1), b = |a - 2|, continued to a = 0, 2, -inf and inf.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf]: 2 squared error, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch. A
            float or a tensor.
        scale: c > 0, in the residual's units, a float or a tensor.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`).

    Returns:
        Losses >= 0, of the shape to which the arguments broadcast, correct to a few units of the last place (half
        precision is computed in float32). Differentiable in residual, alpha and scale, at least twice, with finite
        first derivatives everywhere: at a = 2, where the one by a is infinite, a large number stands for it.

    Raises:
        ValueError: both or neither of `alpha` and `lam` are given, or a float is outside of its range.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equation 8.

    Examples:
        >>> import numpy as np, kriterion
        >>> float(kriterion.losses.general_robust(np.float32(3.0), alpha=2.0))
        4.5
    """
    alpha = _shape("general_robust", alpha, lam)
    return _loss("general_robust", residual, alpha, scale)


def robust_weights(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """The weight rho'(x)/x = (x^2/(c^2 b) + 1)^(a/2 - 1)/c^2 of iteratively reweighted least squares.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [-inf, inf].
        scale: c > 0, in the residual's units.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`).

    Returns:
        Positive weights, 1/c^2 at x = 0, decreasing in |x| for a < 2; without a gradient.

    Raises:
        ValueError: as `general_robust`.

    Source: Barron, CVPR 2019, equation 12 (the influence); Holland and Welsch, "Robust regression using iteratively
        reweighted least-squares", 1977.

    Examples:
        >>> import numpy as np, kriterion
        >>> float(kriterion.losses.robust_weights(np.float32(1.0), alpha=0.0))  # 1/(1 + x^2/2)
        0.6666666...
    """
    alpha = _shape("robust_weights", alpha, lam)
    given, kind = _checked("robust_weights", residual, alpha, scale)
    x, a, c = (v if isinstance(v, float) else ops.stop_gradient(_in_format(v, kind)) for v in given)
    at_zero = x == 0
    influence = _derivatives(x, a, c, kind)[1]
    return _as_given(ops.where(at_zero, 1 / (c * c), influence / ops.where(at_zero, 1.0, x)), given[0])


def log_partition(alpha: Tensor | float | None = None, *, lam: Any = None) -> Tensor:
    """Log Z(a), Z(a) = integral of exp(-rho(x; a, 1)) dx: what makes exp(-rho)/(c Z) a density.

    Z(0) = sqrt(2) pi, Z(2) = sqrt(2 pi), log Z(inf) = 0.7052602544

    Args:
        alpha: shape a in [0, inf], a float or a tensor.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Tensor of the shape of `alpha`, to 1e-7 in float32 and 1e-12 in float64; inf for negative entries of a tensor.
        Differentiable; at a = 2, where the derivative is infinite, a large number stands for it.

    Raises:
        ValueError: a float is negative, both or neither argument is given.

    Source: Barron, CVPR 2019, equations 15 and 16; here by Chebyshev series in powers of a and |a - 2|.

    Examples:
        >>> import kriterion
        >>> round(float(kriterion.losses.log_partition(2.0)), 6)  # log(2 pi)/2
        0.918939
    """
    shape = ops.convert_to_tensor(_shape("log_partition", alpha, lam, minimum=0.0))
    kind = working_float(shape)

    def of_tensor(a: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        value, slope = log_partition_kernel(a, kind)
        return value, (slope,)

    return _as_given(backend.elementwise(of_tensor)(ops.cast(shape, kind.name)), shape)


def robust_log_density(
    residual: Tensor, alpha: Tensor | float | None = None, scale: Tensor | float = 1.0, *, lam: Any = None
) -> Tensor:
    """Log p(x) = -rho(x; a, c) - log c - log Z(a), the density whose negative log likelihood is the robust loss.

    Args:
        residual: x, a tensor of any shape.
        alpha: shape a in [0, inf]: 2 the normal density, 0 the Cauchy density, in between heavier tails as a falls.
        scale: c > 0, in the residual's units.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Log densities, of the shape to which the arguments broadcast; they can be positive. Differentiable in all three.

    Raises:
        ValueError: as `general_robust`, and for a negative float `alpha`.

    Source: Barron, CVPR 2019, equations 15 and 16.

    Examples:
        >>> import numpy as np, kriterion
        >>> round(float(kriterion.losses.robust_log_density(np.float32(0.0), alpha=2.0)), 6)
        -0.918939
    """
    alpha = _shape("robust_log_density", alpha, lam, minimum=0.0)
    loss = _loss("robust_log_density", residual, alpha, scale)
    if isinstance(alpha, (int, float)):
        alpha = ops.convert_to_tensor(alpha, loss.dtype)
    log_scale = math.log(scale) if isinstance(scale, (int, float)) else ops.cast(ops.log(scale), loss.dtype)
    return -(loss + ops.cast(log_partition(alpha), loss.dtype) + log_scale)


# At least 45 % of the proposals are accepted (Z(inf)/Z(0)), so that 0.55^40 = 4e-11 of the numbers are not.
_ROUNDS = 40


def sample_robust(
    shape: tuple[int, ...],
    alpha: Tensor | float | None = None,
    scale: Tensor | float = 1.0,
    seed: int | keras.random.SeedGenerator | None = None,
    *,
    lam: Any = None,
) -> Tensor:
    """Independent draws from the density of `robust_log_density`.

    By rejection: a Cauchy draw x of scale sqrt(2) c is kept with probability exp(rho(x; 0, c) - rho(x; a, c)) <= 1.

    Args:
        shape: shape of the result; `alpha` and `scale` broadcast to it.
        alpha: shape a in [0, inf].
        scale: c > 0.
        seed: an integer, for the same draws at each call, or a `keras.random.SeedGenerator`.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].

    Returns:
        Tensor of shape `shape`.

    Raises:
        ValueError: as `robust_log_density`.

    Source: Barron, CVPR 2019, supplement, "Sampling".

    Examples:
        >>> import kriterion
        >>> tuple(kriterion.losses.sample_robust((2, 3), alpha=1.0, scale=0.5, seed=1).shape)
        (2, 3)
    """
    alpha = _shape("sample_robust", alpha, lam, minimum=0.0)
    if isinstance(scale, (int, float)):
        check_float("sample_robust", "scale", scale, above=0.0)
    generator = seed if isinstance(seed, keras.random.SeedGenerator) else keras.random.SeedGenerator(seed)
    kind = working_float(alpha, scale)
    kept = ops.zeros(shape, "bool")
    draws = ops.zeros(shape, kind.name)
    for _ in range(_ROUNDS):
        # The quotient of two normal numbers is a Cauchy number; infinite ones are not kept.
        pair = keras.random.normal((2, *shape), dtype=kind.name, seed=generator)
        proposal = math.sqrt(2) * pair[0] / pair[1]
        log_accepted = general_robust(proposal, 0.0) - general_robust(proposal, alpha)
        level = keras.random.uniform(shape, dtype=kind.name, seed=generator)
        draws = ops.where(kept, draws, proposal)
        kept = kept | (level < ops.exp(log_accepted))
    return draws * (scale if isinstance(scale, (int, float)) else ops.cast(scale, kind.name))
