"""The general robust loss and its three derivatives to full accuracy, for any shape and residual.

With u = x/c, b = |a - 2|, y = 1 + u^2/b, L = log y, h = a/2, g = h - 1 (so that hL + (-g)L = L):

    loss                 b/a (y^h - 1)  =  (u^2 y^g + b (y^g - 1))/a
    derivative by x      u y^g / c
    derivative by a      +-L^2/2 y^h (k(hL) - k(L)),  k(t) = (t - 1 + e^-t)/t^2,  + below a = 2, - above

The first form of the loss is exact near a = 0, the second near a = 2. Powers are taken of y with its rounding error
carried along, because y^h has relative error h times that of y.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from keras import ops

from kriterion._elementary import at_least, at_most
from kriterion.backend import Tensor
from kriterion.losses._floats import Float, absolute


class _Shape(NamedTuple):
    """What depends on the shape a alone."""

    offset: Tensor  # a - 2, exact for a > 1
    b: Tensor  # |a - 2|, but not 0
    h: Tensor  # a/2
    g: Tensor  # a/2 - 1, that is +-b/2
    high: Tensor  # a >= 1, where the second form of the loss is used
    divisor: Tensor  # a where it is not small
    exponent: Tensor  # g where high, else h: each is exact there


def _shape(alpha: Tensor, kind: Float) -> _Shape:
    a = ops.clip(alpha, -kind.shape_limit, kind.shape_limit)
    offset = a - 2
    b = at_least(absolute(offset), kind.epsilon**2)
    g = ops.where(offset < 0, -b, b) / 2
    high = a >= 1
    return _Shape(offset, b, a / 2, g, high, ops.where(high, a, 1.0), ops.where(high, g, a / 2))


class _Terms(NamedTuple):
    """What loss and derivatives share."""

    size: Tensor  # |u|
    huge: Tensor  # u^2/b would overflow
    square: Tensor  # u^2, 1 where huge
    y: Tensor
    log: Tensor  # L
    power: Tensor  # e^t, t = gL or hL: y^g or y^h
    growth: Tensor  # e^t - 1
    relative_growth: Tensor  # (e^t - 1)/t
    influence: Tensor  # |u| y^g


def robust_kernel(
    x: Tensor, alpha: Tensor, scale: Tensor, kind: Float, with_slope: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """`(loss, derivative by x, by a, by c)`; the one by a, half of the work, is None unless asked for."""
    shape = _shape(alpha, kind)
    u = ops.clip(x / scale, -kind.largest / 4, kind.largest / 4)
    terms = _terms(x, u, scale, shape, kind)
    influence = ops.clip(ops.where(u < 0, -terms.influence, terms.influence) / scale, -kind.largest, kind.largest)
    by_scale = ops.clip(-u * influence, -kind.largest, kind.largest)
    slope = None
    if with_slope:
        slope = ops.clip(_slope(terms, shape, kind), -kind.largest, kind.largest)
        slope = ops.where(absolute(alpha) < math.inf, slope, 0.0)
    return _loss(terms, shape), influence, slope, by_scale


def _terms(x: Tensor, u: Tensor, scale: Tensor, shape: _Shape, kind: Float) -> _Terms:
    size = absolute(u)
    huge = size > kind.square_limit * ops.where(shape.b < 1, ops.sqrt(shape.b), 1.0)
    v = ops.where(huge, 1.0, size)
    square = v * v
    q = square / shape.b
    y = q + 1
    log = ops.where(huge, 2 * ops.log(ops.where(huge, size, 1.0)) - ops.log(shape.b), ops.log1p(q))
    t = shape.exponent * log
    power = ops.where(huge, ops.exp(t), _power(x, scale, v, square, q, y, shape, kind))
    growth = ops.where(t > 1, power - 1, ops.expm1(t))
    zero = t == 0
    relative_growth = ops.where(zero, 1.0, growth / ops.where(zero, 1.0, t))
    low = ops.where(huge, size * ops.exp(shape.g * log), (v / y) * power)
    influence = ops.where(shape.high, size * power, low)
    return _Terms(size, huge, square, y, log, power, growth, relative_growth, influence)


def _power(
    x: Tensor, scale: Tensor, v: Tensor, square: Tensor, q: Tensor, y: Tensor, shape: _Shape, kind: Float
) -> Tensor:
    """y^exponent, y = 1 + q, q = v^2/b, v = |x|/c, from y and the rounding errors on the way to it."""
    # Where the numbers are too large for their errors to be had, the exponents are too small for these to matter.
    moderate = (v < 2.0**40) & (q < 2.0**80)
    w = ops.where(moderate, v, 1.0)
    product = w * scale
    v_error = ((absolute(x) - product) - _product_error(w, scale, product, kind)) / scale
    product = w * w
    square_error = _product_error(w, w, product, kind) + 2 * w * v_error
    r = ops.where(moderate, q, 1.0)
    product = r * shape.b
    remainder = (ops.where(moderate, square, shape.b) - product) - _product_error(r, shape.b, product, kind)
    # Knuth's sum: y + error = 1 + q. (`(1 + q) - 1` is q to XLA.)
    one = y - q
    y_error = (q - (y - one)) + (1 - one) + (remainder + square_error) / shape.b
    ratio = ops.stop_gradient(ops.where(moderate, y_error, 0.0)) / y
    power = ops.power(y, shape.exponent) * ops.exp(shape.exponent * ratio)

    # For the largest shapes y is 1 to rounding; there the exponent is +-v^2/2 and a small correction.
    flat = shape.b > 2.0**22
    inside = flat & (square < 2.0**12)
    p = ops.where(inside, q, 0.0)
    series = -p * (1 / 2 - p * (1 / 3 - p * (1 / 4 - p / 5)))
    series = ops.where(shape.high, series, series + 2 / ops.where(flat, shape.offset, 1.0) * (1 + series))
    half = shape.g / shape.b
    limit = ops.exp(half * ops.where(flat, square, 0.0))
    correction = ops.where(inside, ops.stop_gradient(square_error) + square * series, 0.0)
    # Not exp * exp, which XLA merges.
    corrected = limit * (1 + ops.expm1(half * correction))
    return ops.where(flat, corrected, power)


def _product_error(left: Tensor, right: Tensor, product: Tensor, kind: Float) -> Tensor:
    """Left * right - product, exactly (Dekker 1971)."""
    t = kind.splitter * left
    left_high = t - (t - left)
    t = kind.splitter * right
    right_high = t - (t - right)
    left_low, right_low = left - left_high, right - right_high
    return ((left_high * right_high - product) + left_high * right_low + left_low * right_high) + left_low * right_low


def _loss(terms: _Terms, shape: _Shape) -> Tensor:
    square_part = ops.where(
        terms.huge, (terms.influence / shape.divisor) * terms.size, (terms.square / shape.divisor) * terms.power
    )
    high = square_part + (shape.b / shape.divisor) * terms.growth
    return ops.where(shape.high, high, shape.b * (terms.log / 2) * terms.relative_growth)


def _slope(terms: _Terms, shape: _Shape, kind: Float) -> Tensor:
    """The derivative by the shape, without cancellation: small L and hL, shapes near 2, and the rest."""
    log, z = terms.log, shape.h * terms.log
    z_size = absolute(z)
    small = (log < 1) & (z_size < 1)
    # k(t) = sum_j (-t)^j/(j + 2)!; dividing its polynomial by (t - L) gives k(L) and (k(z) - k(L))/(z - L) at once.
    log_part, z_part = ops.where(log < 1, log, 0.0), ops.where(z_size < 1, z, 0.0)
    coefficients = [(-1) ** j / math.factorial(j + 2) for j in range(kind.series_terms)]
    quotient = ops.zeros_like(log) + coefficients[-1]
    difference = quotient
    for coefficient in coefficients[-2:0:-1]:
        quotient = quotient * log_part + coefficient
        difference = difference * z_part + quotient
    k_log_small = coefficients[0] + log_part * quotient
    k_z_small = k_log_small + (z_part - log_part) * difference

    one = ops.where(log < 1, 1.0, log)
    k_log = ops.where(log < 1, k_log_small, (one - 1 + ops.exp(-one)) / (one * one))
    one = ops.where(z_size < 1, 1.0, z_size)
    decay = ops.exp(-one)
    # Left of -1 this is e^z k(z), because e^-z overflows.
    k_z = ops.where(z < 0, 1 - (1 + one) * decay, one - 1 + decay) / (one * one)
    k_z = ops.where(z_size < 1, k_z_small, k_z)
    power = ops.where(shape.high, terms.power * terms.y, terms.power)
    half_square = -log * log * (shape.g / shape.b)
    rest = ops.where(z < -1, half_square * (k_z - terms.power * k_log), power * (half_square * (k_z - k_log)))

    near = shape.high & (shape.offset <= 1)
    closed = near & ops.logical_not(small)
    z_closed, log_closed = ops.where(closed, z, 1.0), ops.where(closed, log, 1.0)
    decay = ops.exp(-z_closed)
    growth = ops.where(near, at_most(terms.relative_growth, kind.largest), 1.0)
    divided = (
        z_closed * log_closed - (1 - decay) * (log_closed + z_closed) + z_closed * (z_closed * (growth * decay))
    ) / (z_closed * z_closed)
    # L - z is bL/2, exactly, and b y^h = u^2 y^g + b y^g.
    square_part = ops.where(terms.huge, terms.influence * terms.size, terms.square * terms.power)
    b_power = shape.b * terms.power + ops.where(shape.high, square_part, 0.0)
    paired = b_power * (log * ops.where(small, log * log * -difference, divided) / 4)
    return ops.where(small | near, paired, rest)
