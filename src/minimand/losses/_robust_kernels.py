"""Barron's robust loss, its derivatives and its log partition function, to full accuracy at any shape and residual."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from keras import ops

from minimand._ops import at_least, at_most
from minimand.backend import Tensor


class FloatInfo(NamedTuple):
    """Constants of a floating point format."""

    dtype: str
    epsilon: float
    largest: float
    square_limit: float  # squares are finite up to here, with room for a division by a number of order 1
    shape_limit: float  # shapes beyond it give the same loss as infinite ones
    splitter: float  # Veltkamp's constant, 2^ceil(digits / 2) + 1
    series_terms: int  # of sum (-t)^k / (k + 2)!, |t| < 1


FLOAT_INFO = {
    "float32": FloatInfo("float32", 2.0**-23, 3.4028234e38, 2.0**63, 2.0**40, 2.0**12 + 1, 10),
    "float64": FloatInfo("float64", 2.0**-52, 1.797693134862315e308, 2.0**511, 2.0**70, 2.0**27 + 1, 18),
}


def _abs(value: Tensor) -> Tensor:
    """|v|, with derivative 1 at 0, which second derivatives need; that of `ops.abs` depends on the backend."""
    return ops.where(value < 0, -value, value)


# The loss and its three derivatives for any shape and residual.


class _Shape(NamedTuple):
    """The quantities that depend on the shape a alone."""

    offset: Tensor  # a - 2, exact for a > 1
    b: Tensor  # |a - 2|, but not 0
    h: Tensor  # a/2
    g: Tensor  # a/2 - 1, that is +-b/2
    high: Tensor  # a >= 1, where the second form of the loss is used
    divisor: Tensor  # a where it is not small
    exponent: Tensor  # g where high, else h: each is exact there


def _shape(alpha: Tensor, info: FloatInfo) -> _Shape:
    a = ops.clip(alpha, -info.shape_limit, info.shape_limit)
    offset = a - 2
    b = at_least(_abs(offset), info.epsilon**2)
    g = ops.where(offset < 0, -b, b) / 2
    high = a >= 1
    return _Shape(offset, b, a / 2, g, high, ops.where(high, a, 1.0), ops.where(high, g, a / 2))


class _Terms(NamedTuple):
    """The terms that the loss and its derivatives share, for u = x/c: y = 1 + u^2/b and L = log y."""

    size: Tensor  # |u|
    huge: Tensor  # u^2/b would overflow
    square: Tensor  # u^2, 1 where huge
    y: Tensor
    log: Tensor  # L
    power: Tensor  # e^t, t = exponent * L
    growth: Tensor  # e^t - 1
    relative_growth: Tensor  # (e^t - 1)/t
    influence: Tensor  # |u| y^g


def robust_kernel(
    x: Tensor, alpha: Tensor, scale: Tensor, info: FloatInfo, with_shape_derivative: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """`(loss, derivative by x, by a, by c)`; the derivative by a takes half of the work and is optional."""
    shape = _shape(alpha, info)
    u = ops.clip(x / scale, -info.largest / 4, info.largest / 4)
    terms = _terms(x, u, scale, shape, info)
    influence = ops.clip(ops.where(u < 0, -terms.influence, terms.influence) / scale, -info.largest, info.largest)
    by_scale = ops.clip(-u * influence, -info.largest, info.largest)
    by_shape = None
    if with_shape_derivative:
        by_shape = ops.clip(_shape_derivative(terms, shape, info), -info.largest, info.largest)
        by_shape = ops.where(_abs(alpha) < math.inf, by_shape, 0.0)
    return _loss(terms, shape), influence, by_shape, by_scale


def _terms(x: Tensor, u: Tensor, scale: Tensor, shape: _Shape, info: FloatInfo) -> _Terms:
    size = _abs(u)
    huge = size > info.square_limit * ops.where(shape.b < 1, ops.sqrt(shape.b), 1.0)
    v = ops.where(huge, 1.0, size)
    square = v * v
    q = square / shape.b
    y = q + 1
    log = ops.where(huge, 2 * ops.log(ops.where(huge, size, 1.0)) - ops.log(shape.b), ops.log1p(q))
    t = shape.exponent * log
    power = ops.where(huge, ops.exp(t), _power(x, scale, v, square, q, y, shape, info))
    growth = ops.where(t > 1, power - 1, ops.expm1(t))
    zero = t == 0
    relative_growth = ops.where(zero, 1.0, growth / ops.where(zero, 1.0, t))
    low = ops.where(huge, size * ops.exp(shape.g * log), (v / y) * power)
    influence = ops.where(shape.high, size * power, low)
    return _Terms(size, huge, square, y, log, power, growth, relative_growth, influence)


def _power(
    x: Tensor, scale: Tensor, v: Tensor, square: Tensor, q: Tensor, y: Tensor, shape: _Shape, info: FloatInfo
) -> Tensor:
    """y^exponent for y = 1 + q, q = v^2/b and v = |x|/c, corrected for the rounding errors of y."""
    # The errors of larger numbers would overflow, but they do not matter, because their exponents are small.
    moderate = (v < 2.0**40) & (q < 2.0**80)
    w = ops.where(moderate, v, 1.0)
    product = w * scale
    v_error = ((_abs(x) - product) - _product_error(w, scale, product, info)) / scale
    product = w * w
    square_error = _product_error(w, w, product, info) + 2 * w * v_error
    r = ops.where(moderate, q, 1.0)
    product = r * shape.b
    remainder = (ops.where(moderate, square, shape.b) - product) - _product_error(r, shape.b, product, info)
    # Knuth's sum: y + error = 1 + q. XLA would simplify `(1 + q) - 1` to q.
    one = y - q
    y_error = (q - (y - one)) + (1 - one) + (remainder + square_error) / shape.b
    ratio = ops.stop_gradient(ops.where(moderate, y_error, 0.0)) / y
    power = ops.power(y, shape.exponent) * ops.exp(shape.exponent * ratio)

    # For the largest shapes y rounds to 1; there the logarithm of the power is +-v^2/2 and a small correction.
    flat = shape.b > 2.0**22
    inside = flat & (square < 2.0**12)
    p = ops.where(inside, q, 0.0)
    # (log(1 + p) - p)/p, up to p^4
    series = -p / 5
    for n in (4, 3, 2):
        series = -p * (series + 1 / n)
    series = ops.where(shape.high, series, series + 2 / ops.where(flat, shape.offset, 1.0) * (1 + series))
    half = shape.g / shape.b
    limit = ops.exp(half * ops.where(flat, square, 0.0))
    correction = ops.where(inside, ops.stop_gradient(square_error) + square * series, 0.0)
    # XLA would merge exp * exp.
    corrected = limit * (1 + ops.expm1(half * correction))
    return ops.where(flat, corrected, power)


def _product_error(left: Tensor, right: Tensor, product: Tensor, info: FloatInfo) -> Tensor:
    """Left * right - product, exactly (Dekker 1971)."""
    t = info.splitter * left
    left_high = t - (t - left)
    t = info.splitter * right
    right_high = t - (t - right)
    left_low, right_low = left - left_high, right - right_high
    return ((left_high * right_high - product) + left_high * right_low + left_low * right_high) + left_low * right_low


def _loss(terms: _Terms, shape: _Shape) -> Tensor:
    square_part = ops.where(
        terms.huge, (terms.influence / shape.divisor) * terms.size, (terms.square / shape.divisor) * terms.power
    )
    high = square_part + (shape.b / shape.divisor) * terms.growth
    return ops.where(shape.high, high, shape.b * (terms.log / 2) * terms.relative_growth)


def _shape_derivative(terms: _Terms, shape: _Shape, info: FloatInfo) -> Tensor:
    """The derivative by the shape without cancellation, in three cases: small L and hL, shapes near 2, all others."""
    log, z = terms.log, shape.h * terms.log
    z_size = _abs(z)
    small = (log < 1) & (z_size < 1)
    # k(t) = sum_j (-t)^j/(j + 2)!; dividing its polynomial by (t - L) gives k(L) and (k(z) - k(L))/(z - L) at once.
    log_part, z_part = ops.where(log < 1, log, 0.0), ops.where(z_size < 1, z, 0.0)
    coefficients = [(-1) ** j / math.factorial(j + 2) for j in range(info.series_terms)]
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
    # Below -1 the number is e^z k(z), because e^-z overflows.
    k_z = ops.where(z < 0, 1 - (1 + one) * decay, one - 1 + decay) / (one * one)
    k_z = ops.where(z_size < 1, k_z_small, k_z)
    power = ops.where(shape.high, terms.power * terms.y, terms.power)
    half_square = -log * log * (shape.g / shape.b)
    rest = ops.where(z < -1, half_square * (k_z - terms.power * k_log), power * (half_square * (k_z - k_log)))

    near = shape.high & (shape.offset <= 1)
    closed = near & ops.logical_not(small)
    z_closed, log_closed = ops.where(closed, z, 1.0), ops.where(closed, log, 1.0)
    decay = ops.exp(-z_closed)
    growth = ops.where(near, at_most(terms.relative_growth, info.largest), 1.0)
    divided = (
        z_closed * log_closed - (1 - decay) * (log_closed + z_closed) + z_closed * (z_closed * (growth * decay))
    ) / (z_closed * z_closed)
    # L - z is bL/2, exactly, and b y^h = u^2 y^g + b y^g.
    square_part = ops.where(terms.huge, terms.influence * terms.size, terms.square * terms.power)
    b_power = shape.b * terms.power + ops.where(shape.high, square_part, 0.0)
    paired = b_power * (log * ops.where(small, log * log * -difference, divided) / 4)
    return ops.where(small | near, paired, rest)


# The loss and two derivatives for a shape that is a number of moderate size, which meets fewer cases.


def is_moderate(alpha: float) -> bool:
    """Tell whether `fixed_kernel` is exact for this shape."""
    return -2.0 <= alpha <= 6.0


def fixed_kernel(x: Tensor, a: float, scale: Tensor | float, info: FloatInfo) -> tuple[Tensor, Tensor, Tensor | None]:
    """`(loss, derivative by x, by c)`, a in [-2, 6]; None for the derivative by a scale that is a number."""
    u = ops.clip(x / scale, -info.largest / 4, info.largest / 4)
    loss, by_u = (u * u / 2, u) if a == 2 else _loss_and_derivative(u, a, info)
    influence = ops.clip(by_u / scale, -info.largest, info.largest)
    if isinstance(scale, float):
        return loss, influence, None
    return loss, influence, ops.clip(-u * influence, -info.largest, info.largest)


def _loss_and_derivative(u: Tensor, a: float, info: FloatInfo) -> tuple[Tensor, Tensor]:
    b = max(abs(a - 2), info.epsilon**2)
    # r = sqrt(1 + u^2/b), and |u|/sqrt(b) where u^2/b would overflow.
    limit = info.square_limit * min(1.0, math.sqrt(b))
    size = ops.abs(u)
    v = ops.clip(u, -limit, limit)
    q = v * v * (1 / b)
    huge = size > limit
    r = ops.where(huge, size * (1 / math.sqrt(b)), ops.sqrt(q + 1))
    log = ops.log1p(q)
    if a >= 1:
        power = _moderate_power(r, a - 2)
        by_u = u * power
        growth = _growth(power, a / 2 - 1, log)
        return by_u * (u * (1 / a)) + (b / a) * growth, by_u
    log = ops.where(huge, 2 * ops.log(r), log)
    power = _moderate_power(r, a)
    by_u = u / r / r * power
    # b/a can overflow where a is closer to 0 than the rounding of 1.
    return (log * (b / 2) if abs(a) < info.epsilon**2 else (b / a) * _growth(power, a / 2, log)), by_u


def _moderate_power(r: Tensor, exponent: float) -> Tensor:
    """r^exponent for r >= 1; products serve a whole exponent at a tenth of the cost."""
    if not exponent.is_integer():
        return ops.power(r, exponent)
    product = ops.ones_like(r)
    for _ in range(abs(int(exponent))):
        product = product * r
    return product if exponent >= 0 else 1 / product


def _growth(power: Tensor, exponent: float, log: Tensor) -> Tensor:
    """The power less 1, where exponent * log is the logarithm of the power."""
    growth = ops.expm1(exponent * log)
    return growth if exponent <= 0 else ops.where(growth > 1, power - 1, growth)


# The loss and its derivatives for shapes in [0, 2], by one logarithm and one exponential.

# Below this h, (z e^z - (e^z - 1))/h^2 cancels, and a few terms of its series in z suffice.
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
    by_shape = (first - power * (log - q * inverse)) * 0.5
    return (b / a) * growth, (influence, by_shape, -u * influence)


# The log partition function and its derivative, by Chebyshev series.


def log_partition_kernel(alpha: Tensor, info: FloatInfo) -> tuple[Tensor, Tensor]:
    """`(log Z, d log Z/d a)` for a in [0, inf]; log Z is inf below 0, where the density does not exist."""
    piece = sum(ops.cast(alpha >= bound, "int32") for bound in (1, 2, 4))
    row = ops.take(ops.convert_to_tensor(_TABLE, info.dtype), piece, axis=0)
    start, width, exponent, log_weight, offset = (row[..., i] for i in range(5))
    distance = ops.clip(_abs(alpha - start) / width, info.epsilon**2, info.square_limit)
    basis = _chebyshev_polynomials(2 * ops.power(distance, exponent) - 1)
    value = offset + ops.sum(basis * row[..., 5 : 5 + _TERMS], axis=-1)
    slope = log_weight * ops.log(distance) + ops.sum(basis * row[..., 5 + _TERMS :], axis=-1)
    return ops.where(alpha < 0, np.inf, value), slope


def _chebyshev_polynomials(t: Tensor) -> Tensor:
    """T_0(t), ..., T_32(t) along a new last axis, by T_{k+j} = 2 T_k T_j - T_{k-j}."""
    t = ops.expand_dims(t, -1)
    known = ops.concatenate([ops.ones_like(t), t], axis=-1)
    for k in (1, 2, 4, 8, 16):
        more = 2 * known[..., k:] * known[..., 1:] - ops.flip(known[..., :k], axis=-1)
        known = ops.concatenate([known, more], axis=-1)
    return known


# On [0, 1], [1, 2], [2, 4] and [4, inf]: the coefficients of T_n(2v - 1), v = (|a - start|/width)^exponent, in log Z
# less an offset that float32 holds exactly, and in d log Z/d a less weight * log(|a - start|/width), which is infinite
# at a = 2. They interpolate integrals of 30 digits at 40 Chebyshev nodes; the tests compute them again.
_TERMS = 33
_PIECES = (  # start, width, exponent, weight, offset
    (0.0, 1.0, 1 / 2, 0.0, 1.3125),
    (2.0, 1.0, 1 / 6, 1 / 4, 1.0),
    (2.0, 2.0, 1 / 6, 1 / 4, 0.875),
    (2.0, 2.0, -1.0, 0.0, 0.71875),
)
# fmt: off
_VALUES = (
    (
        0.04162585186806686, -0.15928912384883975, -0.012850053791001684, 0.005924632639368525, -0.0028760393549072828,
        0.0005284182435904068, -3.4497454103632496e-05, -5.629251470570203e-05, 3.20482002640331e-05,
        -1.2163192228899524e-05, 2.6396012888734715e-06, 8.534751307556857e-08, -4.766841861525294e-07,
        2.9591800000722605e-07, -1.2108768203361656e-07, 3.22327429814642e-08, -1.3403189086837518e-09,
        -4.857066899529923e-09, 3.732235716727212e-09, -1.8109257362256188e-09, 6.229786067636748e-10,
        -1.1313406879738528e-10, -3.778811957448504e-11, 5.1536151577518516e-11, -3.2003222209408596e-11,
        1.4235045414839459e-11, -4.466996517007004e-12, 5.16248041782812e-13, 5.464258612462856e-13,
        -5.510362706725638e-13, 3.2618642978321683e-13, -1.4378669667471892e-13, 4.5001391741109734e-14,
    ),
    (
        -0.00815021632582182, 0.11687743534039659, 0.058089308762499445, 0.015476789409808464, 0.0014323333889575194,
        0.0005840287832913143, 0.0007550038758774831, 0.00029714165493820285, 6.731488176634932e-05,
        3.334430890387574e-05, 1.922153040657423e-05, 7.836463629022815e-06, 3.088941725269974e-06,
        1.4042049445815307e-06, 6.628366276190544e-07, 2.94313332600798e-07, 1.302967677868754e-07,
        5.928534039163573e-08, 2.732647081746663e-08, 1.2465681632115962e-08, 5.710288781208439e-09,
        2.625181617354858e-09, 1.21714605148243e-09, 5.61964074976914e-10, 2.614843446085219e-10,
        1.2113611242722169e-10, 5.6768963674706194e-11, 2.6338336535068806e-11, 1.242794409266887e-11,
        5.757839219390412e-12, 2.745186603540251e-12, 1.2633551210507118e-12, 6.125446859599621e-13,
    ),
    (
        -0.01993875588272789, -0.09382616477211546, -0.030052555990177966, 0.005764443819191875, 0.006974662359951361,
        0.00017855858983698301, -0.001223439341269904, -0.00019214595952599244, 0.00015600018937150808,
        4.9126458640122995e-05, -1.0905716130236527e-05, -8.764418681209192e-06, -7.221658210622698e-07,
        1.0829002372624967e-06, 3.8901649296696567e-07, -5.593570477229638e-08, -7.433285422461538e-08,
        -1.13588069519633e-08, 8.062646063209378e-09, 3.97010355579647e-09, -1.4825789181329744e-10,
        -6.317928918568349e-10, -1.6164503042536258e-10, 5.400901254637175e-11, 3.832070407607804e-11,
        3.768843363086981e-12, -5.437666943956028e-12, -1.777986672145961e-12, 9.443787293547768e-14,
        4.4392057212487945e-13, 2.5295277624905763e-14, -3.640879202843634e-15, -4.249515121640897e-14,
    ),
    (
        0.006519888361080929, 0.018719562315064178, -0.0011980691596267762, 8.517692765478785e-05,
        -6.318703422158336e-06, 4.70663765025698e-07, -3.386257820811301e-08, 2.2056934935942574e-09,
        -1.0773939798908487e-10, -5.275052189626985e-13, 1.218477819473054e-12, -2.43848652262387e-13,
        3.717849563038025e-14, -5.047088798097388e-15,
    ),
)
_SLOPES = (
    (
        -0.4551661985169314, 0.35284639856710026, -0.09244701645018395, -0.008611371809539544, 0.018184004375443735,
        -0.01060682642899969, 0.0035771521457693854, -0.0005343970938071121, -0.00030497649796705923,
        0.00030981168199251347, -0.00016235022272798413, 5.610019619550346e-05, -8.721629482916921e-06,
        -4.9560856482709475e-06, 5.524022830207518e-06, -3.1665804314969277e-06, 1.2611804713000935e-06,
        -2.9833008823180433e-07, -4.091703601119823e-08, 9.817568146169951e-08, -6.92730112955835e-08,
        3.3642574243183797e-08, -1.1527398656273163e-08, 1.690979741041309e-09, 1.2808867535014635e-09,
        -1.4566484655655757e-09, 9.124764186248392e-10, -4.1920866743163187e-10, 1.3514242584941945e-10,
        -1.3490051002399025e-11, -2.1360201710901734e-11, 2.163696024323993e-11, -1.3396213020877714e-11,
    ),
    (
        0.16536091177985976, -0.23772004593442556, -0.10571797811436794, -0.017271375171660774, 0.004336882449167542,
        0.00037467098522112475, -0.0014973187397925424, -0.0005301045642345686, -6.643103898985892e-05,
        -5.914814826735006e-05, -4.52971031346243e-05, -1.9187113045478527e-05, -7.776780966089776e-06,
        -3.91161250798591e-06, -2.048084983830565e-06, -9.727779529060757e-07, -4.549217390162153e-07,
        -2.2070098263310054e-07, -1.0841927820778693e-07, -5.2316486659964946e-08, -2.520970161557639e-08,
        -1.2198874980238647e-08, -5.93497291356192e-09, -2.872753376682964e-09, -1.3946396618208816e-09,
        -6.752418257196961e-10, -3.288326787790008e-10, -1.5917864036708407e-10, -7.765076630464902e-11,
        -3.7538014240008734e-11, -1.8381854942853394e-11, -8.858151954137973e-12, -4.364026626308747e-12,
    ),
    (
        0.34351225139404845, -0.23491441669874114, -0.11226980449608967, -0.022036800342921735, 0.0067904037920208955,
        0.00479502743805019, 0.00029957175036259015, -0.0006189798972386007, -0.00024305260335998521,
        2.72681207066032e-05, 5.423581238053157e-05, 1.0388165481462232e-05, -6.854736841463015e-06,
        -3.5136559128748792e-06, 1.7619611302592335e-07, 6.184706625661148e-07, 1.4862560735027798e-07,
        -5.771646193189005e-08, -4.201678282389983e-08, -2.7829035576030487e-09, 6.171695707697317e-09,
        2.2979671898013383e-09, -3.492764080049679e-10, -4.797482487744992e-10, -8.739874312903602e-11,
        5.400398533180004e-11, 2.998019292481369e-11, 5.142032259762355e-13, -5.013792605010799e-12,
        -1.4528195268053564e-12, 2.928295502193052e-13, 3.8579147820250624e-13, 3.060474232206445e-14,
    ),
    (
        -0.005937977056379408, -0.007495580823899466, -0.001342355477599936, 0.00019170263396356115,
        -2.1174502611592974e-05, 2.1458877514820628e-06, -2.052302193352811e-07, 1.8426038860221708e-08,
        -1.5047610125167163e-09, 1.0174536757134663e-10, -3.5403606055741723e-12, -5.146201010200316e-13,
        1.6170319377874244e-13, -2.9770100232088284e-14,
    ),
)
# fmt: on
_COEFFICIENTS = np.array([row + (0.0,) * (_TERMS - len(row)) for row in _VALUES + _SLOPES])
_TABLE = np.concatenate([_PIECES, _COEFFICIENTS[:4], _COEFFICIENTS[4:]], axis=1)
