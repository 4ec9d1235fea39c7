"""The robust family's functions against mpmath, in both precisions and at every extreme."""

import functools
import math

import keras
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import stats

from minimand import backend
from minimand.losses import (
    general_robust,
    log_partition,
    robust_log_density,
    robust_weights,
    sample_robust,
    shape_of_power,
)
from minimand.losses._robust_kernels import _SERIES, _TABLE, FLOAT_INFO, bounded_kernel, log_partition_kernel
from tests.helpers import compiled, finite_difference, gradient, mostly_slow, numpy, told

INFINITE = float("inf")
ALPHAS = [-INFINITE, -4.2e6, -1e6, -1e4, -100.0, -8.0, -2.0, -0.3, -1e-6, 0.0, 1e-12, 1e-6, 1e-3, 0.02, 0.5, 0.99, 1.0]
ALPHAS += [1.01, 1.5, 1.9, 1.999, 1.99999, 2.0, 2.001, 2.5, 3.0, 3.1, 4.0, 10.0, 100.0, 1e4, 4.2e6, 1e8, INFINITE]


def reference(x, alpha, scale=1.0):
    """Loss and derivatives by x and alpha at 60 digits."""
    with mpmath.workdps(60):
        x, c = mpmath.mpf(float(x)), mpmath.mpf(float(scale))
        s = (x / c) ** 2
        if mpmath.isinf(alpha):
            sign = 1 if alpha > 0 else -1
            return sign * mpmath.expm1(sign * s / 2), x / c**2 * mpmath.exp(sign * s / 2), mpmath.mpf(0)
        a = mpmath.mpf(float(alpha))
        if a == 2:
            return s / 2, x / c**2, mpmath.inf
        if a == 0:
            log = mpmath.log1p(s / 2)
            return log, x / c**2 / (1 + s / 2), log**2 / 4 - log / 2 + s / (4 + 2 * s)
        b, sign = abs(a - 2), mpmath.sign(2 - a)
        y = 1 + s / b
        power, log = y ** (a / 2), mpmath.log(y)
        with mpmath.workdps(130):
            # The definition, differentiated: d/da of b/a (y^(a/2) - 1), y = 1 + s/b, db/da = -+1.
            by_log = power * (log / 2 + sign * a / 2 * (s / b**2) / y)
            slope = (-sign / a - b / a**2) * (power - 1) + b / a * by_log
        return b / a * (power - 1), x / c**2 * power / y, slope


def of_residual_and_shape(x, alpha, scale):
    """Loss and the gradients of its sum, entry by entry."""
    x, alpha = (ops.convert_to_tensor(v) for v in np.meshgrid(x, alpha))
    value = general_robust(x, alpha, scale)
    by_x, by_alpha = gradient(lambda x, a: ops.sum(general_robust(x, a, scale)), x, alpha)
    return numpy(value), by_x, by_alpha


def check_against_mpmath(dtype, loss_tolerance, slope_tolerance):
    tiny, largest = (1e-35, 3.3e38) if dtype == "float32" else (1e-290, 1e308)
    random = np.random.default_rng(4)
    x = np.concatenate([10.0 ** np.arange(-6, 18.5, 0.75), random.uniform(0.5, 14, 20), [36.0]]).astype(dtype)
    alphas = np.array(ALPHAS, dtype)
    for scale in (1.0, 0.375):
        value, by_x, by_alpha = of_residual_and_shape((x * scale).astype(dtype), alphas, scale)
        assert str(value.dtype) == str(by_x.dtype) == str(by_alpha.dtype) == dtype
        for i, alpha in enumerate(alphas):
            for j, residual in enumerate((x * scale).astype(dtype)):
                expected = reference(residual, alpha, scale)
                where = f"alpha={alpha!r}, x={residual!r}, scale={scale}"
                for k, actual in enumerate((value, by_x)):
                    if tiny < expected[k] < largest:
                        assert abs(float(actual[i, j]) / expected[k] - 1) < loss_tolerance, (k, where)
                    elif expected[k] > largest:
                        assert actual[i, j] > largest / 2, (k, where)
                if 1e-6 < expected[2] < largest and expected[0] < largest / 10:
                    assert abs(float(by_alpha[i, j]) / expected[2] - 1) < slope_tolerance, where


def test_loss_and_derivatives_in_single_precision():
    check_against_mpmath("float32", 2e-6, 1e-5)


@pytest.mark.slow
def test_loss_and_derivatives_in_double_precision(float64):
    check_against_mpmath("float64", 1e-13, 1e-11)


NUMBERS = [-2.0, -1.37, -0.3, -1e-6, 0.0, 1e-30, 1e-12, 0.02, 0.99, 1.0, 1.5, 1.99999, 2.0, 2.001, 3.0, 4.7, 6.0]


def check_numbers_against_mpmath(dtype, tolerance):
    """Loss and derivative for shapes that are numbers, which other formulas serve."""
    random = np.random.default_rng(7)
    tiny, largest = (1e-35, 3.4e38) if dtype == "float32" else (1e-290, 1.7e308)
    x = np.concatenate([10.0 ** np.arange(-6, 18.5, 0.75), random.uniform(0.5, 14, 20)]).astype(dtype)
    for alpha in NUMBERS:
        for scale in (1.0, 0.375):
            loss = lambda v, a=alpha, c=scale: (ops.sum(general_robust(v[0], a, c)), None)  # noqa: E731
            by_x = numpy(backend.value_and_gradient(loss, [ops.convert_to_tensor(x)])[1][0])
            value = numpy(general_robust(x, alpha, scale))
            for residual, *actual in zip(x, value, by_x, strict=True):
                for k, expected in enumerate(reference(residual, alpha, scale)[:2]):
                    if expected > tiny:
                        error = abs(min(float(actual[k]), largest) / min(expected, largest) - 1)
                        assert error < tolerance, f"{k}: alpha={alpha}, x={residual}, scale={scale}"


@pytest.mark.slow
def test_loss_and_derivative_for_numbers_in_single_precision():
    check_numbers_against_mpmath("float32", 2e-6)


@pytest.mark.slow
def test_loss_and_derivative_for_numbers_in_double_precision(float64):
    check_numbers_against_mpmath("float64", 1e-13)


def test_a_shape_that_is_almost_zero():
    x = np.float32([0.3, 1e30])
    np.testing.assert_array_equal(numpy(general_robust(x, 1e-300)), numpy(general_robust(x, 0.0)))


@pytest.mark.slow
def test_every_gradient_is_finite():
    x = np.float32([0.0, 1e-45, 1e-30, 1.0, 1e10, 1e19, 1e20, 1e30, 3e38, -3e38])
    for scale in (1e-5, 1.0, 1e5):
        value, by_x, by_alpha = of_residual_and_shape(x, np.float32(ALPHAS), scale)
        assert not np.isnan(value).any()
        assert np.isfinite(by_x).all()
        assert np.isfinite(by_alpha).all()
        pairs = np.meshgrid(x, np.float32(ALPHAS))
        scales = np.full_like(pairs[0], scale)
        assert np.isfinite(gradient(lambda c, p=pairs: ops.sum(general_robust(*p, c)), scales)[0]).all()
    residuals, scales = np.meshgrid(x, np.float32([1e-5, 1.0, 1e5]))
    for alpha in (-2.0, 0.0, 0.5, 1.0, 1.99999, 2.0, 6.0):
        for got in gradient(lambda v, c, a=alpha: ops.sum(general_robust(v, a, c)), residuals, scales):
            assert np.isfinite(got).all()
    assert np.isnan(numpy(general_robust(np.float32([np.nan]), 0.5))).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_floats_and_tensors_give_the_same(alpha):
    x = np.float32([0.0, 0.3, -4.0])
    expected = numpy(general_robust(x, np.float32(alpha), np.float32(1.5)))
    np.testing.assert_allclose(numpy(general_robust(x, float(alpha), 1.5)), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(-20.0, 4.0, width=32), scale=st.floats(0.125, 8.0, width=32), x=st.floats(-100.0, 100.0, width=32)
)
def test_it_is_even_nonnegative_and_scales(alpha, scale, x):
    values = numpy(
        general_robust(ops.convert_to_tensor([x, -x, x / scale]), alpha, ops.convert_to_tensor([scale, scale, 1.0]))
    )
    assert np.isfinite(values).all()
    assert values[0] >= 0
    assert values[0] == values[1]
    np.testing.assert_allclose(values[0], values[2], rtol=1e-5, atol=1e-30)


def test_gradient_by_the_scale(float64):
    x, alphas, scale = np.array([[0.2], [-1.5], [6.0]]), np.array([-1.0, 0.0, 1.0, 2.0, 3.0]), np.array([1.3])

    @compiled
    def total(c):
        return ops.sum(general_robust(x, alphas, c))

    expected = finite_difference(lambda c: numpy(total(c)), scale)
    np.testing.assert_allclose(gradient(total, scale)[0], expected, rtol=1e-7)


def test_the_gradient_is_reduced_over_what_was_broadcast(random, float64):
    x, alpha, scale = random.normal(size=(4, 3, 2)), random.uniform(0.1, 1.9, size=(3, 1)), random.uniform(1, 2, size=2)
    weight = ops.convert_to_tensor(random.normal(size=(4, 3, 2)))
    got = gradient(lambda x, a, c: ops.sum(weight * general_robust(x, a, c)), x, alpha, scale)
    full = [np.array(np.broadcast_to(v, x.shape)) for v in (x, alpha, scale)]
    each = gradient(lambda x, a, c: ops.sum(weight * general_robust(x, a, c)), *full)
    np.testing.assert_allclose(got[1], each[1].sum(axis=(0, 2))[:, None], rtol=1e-10)
    np.testing.assert_allclose(got[2], each[2].sum(axis=(0, 1)), rtol=1e-10)


@pytest.mark.parametrize("alpha", mostly_slow([-2.0, 0.0, 0.5, 1.0, 1.7, 2.0, 3.0], 0.5, 2.0))
def test_second_derivatives(alpha, float64):
    """Of the gradient's derivative in a direction, against differences of the gradient."""
    x, direction = np.array([0.0, 0.3, -2.0, 7.0]), np.array([0.3, -0.5, 1.0, 0.7])

    def slope_along(x):
        _, (inner,) = backend.value_and_gradient(lambda t: (ops.sum(general_robust(t[0], alpha, 1.1)), None), [x])
        return ops.sum(inner * ops.convert_to_tensor(direction))

    expected = finite_difference(lambda v: numpy(slope_along(ops.convert_to_tensor(v))), x)
    np.testing.assert_allclose(gradient(slope_along, x)[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_second_derivative_by_the_shape(float64):
    x, alpha = np.array([0.3, -2.0, 7.0]), np.array([0.4, 1.2, 1.7])

    def slope(a):
        _, (inner,) = backend.value_and_gradient(
            lambda t: (ops.sum(general_robust(x, t[0]) + log_partition(t[0])), None), [a]
        )
        return ops.sum(inner)

    expected = finite_difference(lambda v: numpy(slope(ops.convert_to_tensor(v))), alpha)
    np.testing.assert_allclose(gradient(slope, alpha)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.02, 0.7, 1.0, 1.9, 1.999])
def test_the_kernel_for_bounded_shapes(alpha):
    """Against the exact one: as accurate as it says it is."""
    x = np.float32([0.0, 1e-4, 0.01, 0.5, -3.0, 40.0, 1e4, -1e12])
    a, c = np.float32([alpha]), np.float32([0.7])
    value, (by_x, by_alpha, by_scale) = bounded_kernel(*(ops.convert_to_tensor(v) for v in (x, a, c)))
    expected = [reference(v, a[0], c[0]) for v in x]
    np.testing.assert_allclose(numpy(value), [float(e[0]) for e in expected], rtol=5e-6, atol=1e-37)
    np.testing.assert_allclose(numpy(by_x), [float(e[1]) for e in expected], rtol=5e-6, atol=1e-37)
    np.testing.assert_allclose(
        numpy(by_scale), [float(-e[1] * v / 0.7) for e, v in zip(expected, x, strict=True)], rtol=6e-6, atol=1e-37
    )
    np.testing.assert_allclose(numpy(by_alpha), [float(e[2]) for e in expected], rtol=1e-3, atol=2e-6)


def test_the_kernel_for_bounded_shapes_in_double_precision(float64):
    """The kernel is compared at points at which neither its series nor its quotient loses digits."""
    x, alphas, c = np.array([0.5, -1.3, 3.0]), np.array([[0.01], [0.5], [1.0], [1.7]]), 0.7
    value, derivatives = bounded_kernel(*(ops.convert_to_tensor(v) for v in (x, alphas, np.array(c))))
    found = np.array([numpy(v) for v in (value, *derivatives)])
    for i, a in enumerate(alphas[:, 0]):
        for j, residual in enumerate(x):
            loss, by_x, by_alpha = (float(v) for v in reference(residual, a, c))
            np.testing.assert_allclose(found[:, i, j], [loss, by_x, by_alpha, -by_x * residual / c], rtol=1e-11)


def test_the_series_of_the_kernel_for_bounded_shapes():
    """The coefficients belong to (z e^z - (e^z - 1))/z^2."""
    expected = mpmath.taylor(lambda z: z * mpmath.exp(z) - mpmath.expm1(z), 0, len(_SERIES) + 1)[2:]
    np.testing.assert_allclose(_SERIES, [float(c) for c in expected], rtol=1e-14)


@pytest.mark.parametrize("info", FLOAT_INFO.values(), ids=FLOAT_INFO)
def test_the_constants_of_a_format(info):
    limits = np.finfo(info.dtype)
    assert info.epsilon == limits.eps
    assert float(np.dtype(info.dtype).type(info.largest)) == pytest.approx(float(limits.max), rel=1e-14, abs=0)
    assert info.splitter == 2.0 ** -(-(limits.nmant + 1) // 2) + 1
    assert 1 / math.factorial(info.series_terms + 2) < limits.eps / 4


def test_half_precision_is_computed_in_single():
    x = ops.convert_to_tensor([300.0], "float16")
    value = general_robust(x, 1.0)
    assert keras.backend.standardize_dtype(value.dtype) == "float16"
    assert float(numpy(value)[0]) == 299.0


@pytest.mark.parametrize("lam", [-INFINITE, -3.0, -1.0, -0.5, -0.1, 0.0, 0.3, 0.9, 1.0])
def test_the_shape_of_a_power_transforms_half_the_square(lam):
    """f(s/2, lambda), as Barron 2025 defines it."""
    x = np.float32([0.1, 1.0, 3.0])
    half = x.astype("float64") ** 2 / 2
    if lam == -INFINITE:
        expected = 1 - np.exp(-half)
    elif lam == -1:
        expected = np.log1p(half)
    elif lam == 0:
        expected = half
    elif lam == 1:
        expected = np.expm1(half)
    else:
        m = abs(lam)
        expected = 2 * m / (2 - m + lam) * ((1 + (2 - m - lam) / (2 * m) * half) ** ((1 - m) ** -np.sign(lam)) - 1)
    np.testing.assert_allclose(numpy(general_robust(x, shape_of_power(lam))), expected, rtol=2e-6)
    np.testing.assert_allclose(
        numpy(general_robust(x, shape_of_power(ops.convert_to_tensor(lam)))), expected, rtol=2e-6
    )
    assert shape_of_power(lam) == pytest.approx(float(numpy(shape_of_power(ops.convert_to_tensor(lam)))), rel=1e-6)


# Weights.


@pytest.mark.parametrize("alpha", [-INFINITE, -2.0, 0.0, 1.0, 2.0])
def test_weights_are_the_influence_over_the_residual(alpha):
    x = np.float32([1e-6, 0.2, -3.0, 20.0])
    influence = gradient(lambda v: ops.sum(general_robust(v, alpha, 0.7)), x)[0]
    np.testing.assert_allclose(numpy(robust_weights(x, alpha, 0.7)), influence / x, rtol=1e-6)
    assert float(numpy(robust_weights(np.float32(0.0), alpha, 0.7))) == pytest.approx(1 / 0.7**2)


def test_weights_have_no_gradient():
    assert gradient(lambda v: ops.sum(robust_weights(v, 0.0) * 1.0 + 0.0 * v), np.float32([1.0, 2.0]))[0].tolist() == [
        0,
        0,
    ]


# The density.

SHAPES = [
    0.0,
    1e-4,
    1e-3,
    0.1,
    0.5,
    0.9999,
    1.0,
    1.3,
    1.9,
    1.999,
    1.99999,
    2.0,
    2.00001,
    2.3,
    3.999,
    4.0,
    7.0,
    1e3,
    INFINITE,
]


@functools.cache
def partition_and_slope(alpha):
    """Log Z and d log Z/d alpha to 26 digits, by the trapezoidal rule in t, x = sqrt(b) sinh u, u = t or sinh t.

    The integrand is analytic near the real line and decays at both ends, so that the rule converges geometrically.
    """
    with mpmath.workdps(60):
        limits = {0.0: mpmath.mpf("1e-20"), 2.0: 2 - mpmath.mpf("1e-20"), INFINITE: mpmath.mpf("1e20")}
        a = limits[alpha] if alpha in limits else mpmath.mpf(alpha)
        b, sign = abs(a - 2), mpmath.sign(2 - a)
        # Only for the smallest shapes, whose tails are Cauchy's, does a double exponential pay.
        double = a < 0.1
        step = mpmath.mpf(1) / (25 if double else 8 * mpmath.sqrt(1 + 4 * a))
        total = slope = mpmath.mpf(0)
        for n in range(2000):
            t = n * step
            u, jacobian = (mpmath.sinh(t), mpmath.cosh(t)) if double else (t, 1)
            cosh = mpmath.cosh(u)
            log = mpmath.log(cosh)
            power = mpmath.exp(a * log)
            weight = mpmath.exp(-b / a * (power - 1)) * cosh * jacobian / (1 if n else 2)
            total += weight
            by_power = b / a * log + sign / 2 * (1 - 1 / cosh**2)
            slope -= weight * (power * by_power - (power - 1) * (sign / a + b / a**2))
            if weight < 1e-27 * total:
                break
        return mpmath.log(2 * mpmath.sqrt(b) * step * total), slope / total


def check_log_partition(dtype, tolerance):
    alphas = np.array(SHAPES, dtype)
    expected = [float(partition_and_slope(float(a))[0]) for a in alphas]
    actual = numpy(log_partition(ops.convert_to_tensor(alphas)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_log_partition_in_single_precision():
    check_log_partition("float32", 1e-7)


def test_log_partition_in_double_precision(float64):
    check_log_partition("float64", 1e-12)


@pytest.mark.slow
def test_log_partition_at_known_points_and_outside():
    known = {0.0: np.log(np.pi * 2**0.5), 2.0: np.log(2 * np.pi) / 2, INFINITE: 0.7052602544175697}
    for alpha, value in known.items():
        assert float(partition_and_slope(alpha)[0]) == pytest.approx(value, abs=1e-15)
        assert float(numpy(log_partition(alpha))) == pytest.approx(value, abs=1e-7)
    assert numpy(log_partition(ops.convert_to_tensor([-0.5]))).tolist() == [INFINITE]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-11)])
def test_slope_of_the_log_partition(dtype, tolerance, float64):
    alphas = np.array([0.001, 0.1, 0.9, 1.1, 1.7, 1.99, 1.999, 2.001, 3.0, 4.0, 7.0, 1e3], dtype)
    expected = [float(partition_and_slope(float(a))[1]) for a in alphas]
    actual = gradient(lambda a: ops.sum(log_partition(a)), alphas)[0]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@functools.cache
def interpolants(piece):
    """The Chebyshev coefficients of log Z less its offset, and of the slope less its logarithm, from 40 nodes."""
    start, width, exponent, weight, offset = _TABLE[piece, :5]
    count = 40
    with mpmath.workdps(50):
        cosines = [mpmath.cos(mpmath.pi * k / (2 * count)) for k in range(4 * count)]
        values, slopes = [], []
        for cosine in cosines[1 : 2 * count : 2]:
            distance = ((1 + cosine) / 2) ** (1 / mpmath.mpf(exponent))
            value, slope = partition_and_slope(start + (-1 if piece == 1 else 1) * width * distance)
            values.append(value - offset)
            slopes.append(slope - weight * mpmath.log(distance))
        bases = [[cosines[n * k % (4 * count)] for k in range(1, 2 * count, 2)] for n in range(33)]
        return [
            [mpmath.fdot(f, basis) * (2 if n else 1) / count for n, basis in enumerate(bases)] for f in (values, slopes)
        ]


@pytest.mark.parametrize(
    ("piece", "alphas"),
    [
        (0, [0.0, 1e-12, 1e-3, 0.02, 0.3, 0.77, 0.999]),
        (1, [1.0, 1.01, 1.3, 1.7, 1.9, 1.9999, 2 - 1e-12]),
        (2, [2 + 1e-12, 2.0001, 2.1, 2.3, 2.8, 3.3, 3.999]),
        (3, [4.0, 4.1, 5.0, 7.3, 30.0, 1e4, INFINITE]),
    ],
)
def test_the_series_of_the_log_partition(piece, alphas, float64):
    """Each coefficient is right to 10 digits, those left out are small, and the sums are right to the last digits."""
    expected = interpolants(piece)
    for stored, exact in zip((_TABLE[piece, 5:38], _TABLE[piece, 38:]), expected, strict=True):
        kept = np.count_nonzero(stored)
        for n in range(kept):
            assert abs(float(stored[n] / exact[n]) - 1) < 1e-10, (n, stored[n], exact[n])
        assert sum(abs(coefficient) for coefficient in exact[kept:]) < 1e-14

    start, width, exponent, weight, offset = _TABLE[piece, :5]
    value, slope = map(numpy, log_partition_kernel(ops.convert_to_tensor(np.array(alphas)), FLOAT_INFO["float64"]))
    with mpmath.workdps(30):
        for k, alpha in enumerate(alphas):
            distance = abs(mpmath.mpf(alpha) - start) / width
            angle = mpmath.acos(2 * distance**exponent - 1)
            sums = [mpmath.fsum(c * mpmath.cos(n * angle) for n, c in enumerate(exact)) for exact in expected]
            logarithm = weight * mpmath.log(distance) if weight else 0
            assert abs(float(value[k] - sums[0] - offset)) < 2e-15, alpha
            assert abs(float(slope[k] - sums[1] - logarithm)) < 1e-14, alpha


def test_the_density_at_its_special_shapes(random):
    x = random.normal(size=50).astype("float32") * 3
    np.testing.assert_allclose(
        numpy(robust_log_density(x, 2.0, 1.7)), stats.norm.logpdf(x, scale=1.7), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        numpy(robust_log_density(x, 0.0, np.float32(1.7))),
        stats.cauchy.logpdf(x, scale=1.7 * 2**0.5),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.slow
def test_samples_have_the_density(alpha):
    """Kolmogorov and Smirnov: with this seed or any, p < 1e-4 in one run of ten thousand."""
    draws = numpy(sample_robust((4000,), alpha, 0.6, seed=5)).astype("float64")
    u = np.linspace(-30, 30, 60001)
    x = 0.6 * np.sinh(u)
    density = np.exp(numpy(robust_log_density(x.astype("float32"), alpha, 0.6)).astype("float64")) * 0.6 * np.cosh(u)
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)]) * (u[1] - u[0])
    assert cdf[-1] == pytest.approx(1, abs=1e-5)
    assert stats.kstest(draws, lambda v: np.interp(v, x, cdf)).pvalue > 1e-4


@pytest.mark.slow
def test_samples_broadcast_and_repeat():
    alpha = np.float32([[0.1], [2.0]])
    first, again = (numpy(sample_robust((2, 3), alpha, np.float32([1.0, 2.0, 3.0]), seed=2)) for _ in range(2))
    assert first.shape == (2, 3)
    np.testing.assert_array_equal(first, again)
    generator = keras.random.SeedGenerator(2)
    a, b = (numpy(sample_robust((3,), 1.0, seed=generator)) for _ in range(2))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: general_robust(np.ones(2), 1.0, 0.0), ["`scale`", "> 0", "0.0"]),
        (lambda: general_robust(np.ones(2), float("nan")), ["`alpha`", "nan"]),
        (lambda: shape_of_power(1.5), ["shape_of_power", "`lam`", "<= 1", "1.5"]),
        (lambda: robust_weights(np.ones(2), 1.0, -1.0), ["robust_weights", "`scale`"]),
        (lambda: log_partition(-0.5), ["log_partition", ">= 0", "-0.5"]),
        (lambda: robust_log_density(np.ones(2), -1.0), ["robust_log_density", ">= 0"]),
        (lambda: sample_robust((2,), -1.0), ["sample_robust", ">= 0"]),
        (lambda: sample_robust((2,), 1.0, 0.0), ["sample_robust", "`scale`"]),
    ],
)
def test_bad_arguments_are_told(call, words):
    with told(ValueError, words):
        call()
