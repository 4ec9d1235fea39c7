"""The robust loss and its derivatives for a shape that is a number of moderate size: only the cases that it can meet.

With u = x/c, b = |a - 2|, r = sqrt(u^2/b + 1), L = 2 log r:

    loss                 b/a (r^a - 1)  =  (u^2 r^(a-2) + b (r^(a-2) - 1))/a
    derivative by x      u r^(a-2)/c

The first form of the loss is used below a = 1, the second from there on. The exponents are so small that the rounding
error of r does not count.
"""

from __future__ import annotations

import math

from keras import ops

from kriterion.backend import Tensor
from kriterion.losses._floats import Float

_LEAST, _MOST = -2.0, 6.0


def is_moderate(alpha: float) -> bool:
    """Whether `fixed_kernel` is exact for this shape."""
    return _LEAST <= alpha <= _MOST


def fixed_kernel(x: Tensor, a: float, scale: Tensor | float, kind: Float) -> tuple[Tensor, Tensor, Tensor | None]:
    """`(loss, derivative by x, by c)`, a in [-2, 6]; None for the derivative by a scale that is a number."""
    u = ops.clip(x / scale, -kind.largest / 4, kind.largest / 4)
    loss, slope = (u * u / 2, u) if a == 2 else _loss_and_slope(u, a, kind)
    influence = ops.clip(slope / scale, -kind.largest, kind.largest)
    if isinstance(scale, float):
        return loss, influence, None
    return loss, influence, ops.clip(-u * influence, -kind.largest, kind.largest)


def _loss_and_slope(u: Tensor, a: float, kind: Float) -> tuple[Tensor, Tensor]:
    b = max(abs(a - 2), kind.epsilon**2)
    # Where u^2/b overflows, r = |u|/sqrt(b).
    limit = kind.square_limit * min(1.0, math.sqrt(b))
    size = ops.abs(u)
    v = ops.clip(u, -limit, limit)
    q = v * v * (1 / b)
    huge = size > limit
    r = ops.where(huge, size * (1 / math.sqrt(b)), ops.sqrt(q + 1))
    log = ops.log1p(q)
    if a >= 1:
        power = _power(r, a - 2)
        slope = u * power
        growth = _growth(power, a / 2 - 1, log)
        return slope * (u * (1 / a)) + (b / a) * growth, slope
    log = ops.where(huge, 2 * ops.log(r), log)
    power = _power(r, a)
    slope = u / r / r * power
    # Closer to 0 than the rounding of 1, b/a need not be representable.
    return (log * (b / 2) if abs(a) < kind.epsilon**2 else (b / a) * _growth(power, a / 2, log)), slope


def _power(r: Tensor, exponent: float) -> Tensor:
    """r^exponent, r >= 1; a whole exponent by products, which cost a tenth."""
    if not exponent.is_integer():
        return ops.power(r, exponent)
    product = ops.ones_like(r)
    for _ in range(abs(int(exponent))):
        product = product * r
    return product if exponent >= 0 else 1 / product


def _growth(power: Tensor, exponent: float, log: Tensor) -> Tensor:
    """The power less 1; its logarithm is exponent * log."""
    growth = ops.expm1(exponent * log)
    return growth if exponent <= 0 else ops.where(growth > 1, power - 1, growth)
