"""Barron's general robust loss and its log partition function, as pure functions.

Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 8 (the loss), 15 and 16 (the
density). The forms below are the same function, arranged so that nothing cancels.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from kriterion.backend import Tensor


def general_robust(residual: Tensor, alpha: Tensor | float, scale: Tensor | float) -> Tensor:
    """rho(x) = b/a ((x^2/(c^2 b) + 1)^(a/2) - 1), b = |a - 2|, continued to a = 0, 2 and infinite floats.

    Args:
        residual: tensor x.
        alpha: shape a: 2 squared error, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch. A float, or a
            finite tensor that broadcasts.
        scale: c > 0, in the residual's units, a float or a tensor that broadcasts.

    Returns:
        Non-negative losses, of the shape that the arguments broadcast to. Differentiable in all three; at a = 2,
        where the derivative by a is infinite, a large finite number stands for it.
    """
    squared = ops.square(residual / scale)
    if isinstance(alpha, (int, float)) and math.isinf(alpha):
        return ops.expm1(squared / 2) if alpha > 0 else -ops.expm1(-squared / 2)
    alpha = ops.cast(alpha, squared.dtype)
    distance = _at_least(ops.abs(alpha - 2), _epsilon(squared.dtype))
    log_term = ops.log1p(squared / distance) / 2
    near_two = distance < 0.5
    # Away from 2: b L phi(a L) with L = log(1 + x^2/b)/2; a = 0 is no special case.
    away = distance * log_term * _relative_expm1(ops.where(near_two, 0.0, alpha) * log_term)
    # Near 2: w = +-b L tends to 0 and the power to 1; a = 2 is no special case.
    growth = ops.where(near_two, ops.where(alpha >= 2, 1.0, -1.0) * distance, 0.0) * log_term
    near = (squared * ops.exp(growth) + distance * ops.expm1(growth)) / ops.where(near_two, alpha, 2.0)
    return ops.where(near_two, near, away)


def _epsilon(dtype: str) -> float:
    return {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[
        keras.backend.standardize_dtype(dtype)
    ]


def _at_least(value: Tensor, bound: float) -> Tensor:
    # `ops.maximum` would give up float64.
    return ops.where(value > bound, value, bound)


_INVERSE_FACTORIALS = tuple(1 / math.factorial(n) for n in range(1, 14))


def _relative_expm1(z: Tensor) -> Tensor:
    """(e^z - 1)/z with value 1 at 0; by its Taylor series near 0, where the quotient's derivative cancels."""
    small = ops.abs(z) < 0.5
    safe = ops.where(small, 1.0, z)
    series = ops.zeros_like(z)
    bounded = ops.where(small, z, 0.0)
    for coefficient in reversed(_INVERSE_FACTORIALS):
        series = series * bounded + coefficient
    return ops.where(small, series, ops.expm1(safe) / safe)


def log_partition(alpha: Tensor) -> Tensor:
    """Log Z(a), Z(a) = integral of exp(-rho(x; a, 1)) dx, for a in [0, 2], to 1e-10.

    Args:
        alpha: tensor with values in [0, 2].

    Returns:
        Tensor of alpha's shape, by Chebyshev series in sqrt(a) on [0, 1] and (2 - a)^(1/6) on [1, 2] (log Z has a
        logarithmic singularity at 2).
    """
    low = alpha < 1
    tiny = _epsilon(alpha.dtype) ** 2
    root = ops.sqrt(_at_least(ops.where(low, alpha, 0.5), tiny))
    sixth_root = ops.power(_at_least(ops.where(low, 1.5, 2 - alpha), tiny), 1 / 6)
    return ops.where(low, _chebyshev(_LOG_Z_LOW, root), _chebyshev(_LOG_Z_HIGH, sixth_root))


def _chebyshev(coefficients: tuple[float, ...], v: Tensor) -> Tensor:
    """Clenshaw's recurrence for a Chebyshev series on [0, 1]."""
    t = 2 * v - 1
    older = newer = ops.zeros_like(v)
    for coefficient in reversed(coefficients[1:]):
        older, newer = newer, 2 * t * newer - older + coefficient
    return t * newer - older + coefficients[0]


# Interpolation at Chebyshev nodes of log Z, integrated with 30 digits by mpmath (the tests integrate it again).
_LOG_Z_LOW = (
    1.3541258518680668,
    -0.15928912384883975,
    -0.012850053791001684,
    0.005924632639368525,
    -0.0028760393549072828,
    0.0005284182435904068,
    -3.449745410363249e-05,
    -5.62925147057021e-05,
    3.20482002640333e-05,
    -1.2163192228899962e-05,
    2.639601288874234e-06,
    8.534751307460812e-08,
    -4.766841861521603e-07,
    2.9591800000974714e-07,
    -1.2108768204402087e-07,
    3.223274300820763e-08,
    -1.3403189615264637e-09,
    -4.857066820549137e-09,
    3.73223565215056e-09,
    -1.8109258324474125e-09,
    6.229792216228748e-10,
    -1.1313587539922725e-10,
    -3.778421253092214e-11,
    5.1529749205349066e-11,
    -3.199685395854419e-11,
    1.4239728970878747e-11,
    -4.5119971356291046e-12,
    6.600342913651138e-13,
    2.2023962103660013e-13,
)
_LOG_Z_HIGH = (
    0.9918497836741782,
    0.1168774353403966,
    0.058089308762499445,
    0.015476789409808464,
    0.001432333388957517,
    0.0005840287832913168,
    0.0007550038758774803,
    0.0002971416549382062,
    6.73148817663451e-05,
    3.334430890388095e-05,
    1.922153040656769e-05,
    7.836463629031018e-06,
    3.0889417252594795e-06,
    1.4042049445947617e-06,
    6.628366276017245e-07,
    2.943133326224422e-07,
    1.302967677572806e-07,
    5.928534042709277e-08,
    2.7326470764332207e-08,
    1.2465681688387651e-08,
    5.710288677445902e-09,
    2.625181695014115e-09,
    1.217145818970674e-09,
    5.61964120511826e-10,
    2.6148371582242765e-10,
    1.2113578259013522e-10,
    5.676690319175712e-11,
    2.6335899775337863e-11,
    1.242014637145521e-11,
    5.745162732183535e-12,
    2.7130433821085723e-12,
    1.2031828301403743e-12,
    4.739104143648544e-13,
)
