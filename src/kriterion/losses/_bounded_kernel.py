"""The robust loss and its derivatives for shapes in [0, 2], by one logarithm and one exponential.

The formulas of `_robust_kernel`, as they stand: what is learned from the sum over a batch needs no more than each
term's share in it. Relative error of the loss and of the derivative by x about 1e-6 up to |x/c| = 1e4 and 5e-6 beyond;
absolute error of the derivative by the shape about 1e-6. Residuals beyond 2^50 scales count as 2^50.
"""

from __future__ import annotations

import math

from keras import ops

from kriterion._elementary import at_least
from kriterion.backend import Tensor

# Below this h, (z e^z - (e^z - 1))/h^2 cancels, and z is small enough for a few terms of its series.
_SERIES_BELOW = 0.02
_SERIES = [(n + 1) / math.factorial(n + 2) for n in range(6)]


def bounded_kernel(x: Tensor, alpha: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """`(loss, (derivative by x, by a, by c))`, a in [0, 2]."""
    a = at_least(alpha, 1e-20)
    b = at_least(2 - alpha, 1e-6)
    h = a / 2
    inverse_scale = 1 / scale
    u = ops.clip(x * inverse_scale, -(2.0**50), 2.0**50)
    q = u * u * (1 / b)
    inverse = 1 / (1 + q)
    log = ops.log1p(q)
    z = h * log
    growth = ops.expm1(z)
    power = growth + 1
    influence = u * (power * inverse) * inverse_scale

    series = ops.zeros_like(z) + _SERIES[-1]
    for coefficient in _SERIES[-2::-1]:
        series = series * z + coefficient
    # Two products are cheaper than a choice between tensors of different shapes.
    by_series = ops.cast(h < _SERIES_BELOW, h.dtype)
    by_quotient = (1 - by_series) / at_least(h * h, _SERIES_BELOW**2)
    first = by_series * (log * log * series) + by_quotient * (z * power - growth)
    slope = (first - power * (log - q * inverse)) * 0.5
    return (b / a) * growth, (influence, slope, -u * influence)
