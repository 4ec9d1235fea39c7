"""The robust losses against mpmath, closed forms and Keras's own contract."""

import keras
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import kriterion
from kriterion.losses import AdaptiveRobust, GeneralRobust
from kriterion.losses._robust import general_robust, log_partition
from tests.helpers import LOSSES, finite_difference, gradient, numpy, told

ALPHAS = [-8.0, -2.0, -0.3, 0.0, 1e-6, 1e-3, 0.5, 1.0, 1.49, 1.51, 1.999, 2.0, 2.001, 2.6, 4.0]


def reference(x, alpha):
    """The loss at 40 digits."""
    with mpmath.workdps(40):
        s, a = mpmath.mpf(float(x)) ** 2, mpmath.mpf(alpha)
        if alpha == 2:
            return s / 2
        if alpha == 0:
            return mpmath.log1p(s / 2)
        b = abs(a - 2)
        return b / a * ((s / b + 1) ** (a / 2) - 1)


def partition(alpha):
    """Z(alpha) by quadrature."""
    with mpmath.workdps(25):
        density = lambda u: mpmath.exp(-reference(mpmath.sinh(u), alpha)) * mpmath.cosh(u)  # noqa: E731
        return 2 * mpmath.quad(density, [0, 1, 2, 4, 8, 16, 40])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_against_mpmath(alpha):
    x = np.array([0.0, 1e-3, 0.1, 1.0, 3.0, 30.0, 1e3], dtype="float32")
    expected = np.array([float(reference(v, alpha)) for v in x])
    for given_alpha in (alpha, ops.convert_to_tensor(alpha, dtype="float32")):
        actual = numpy(general_robust(ops.convert_to_tensor(x), given_alpha, 1.0))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "limit"), [(-np.inf, lambda s: -np.expm1(-s / 2)), (np.inf, lambda s: np.expm1(s / 2))]
)
def test_infinite_shapes(alpha, limit):
    x = np.array([0.0, 0.1, 1.0, 3.0], dtype="float32")
    actual = numpy(general_robust(ops.convert_to_tensor(x), float(alpha), 2.0))
    np.testing.assert_allclose(actual, limit((x / 2.0) ** 2), rtol=1e-5)


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
    np.testing.assert_allclose(values[0], values[2], rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if a != 2.0])
def test_gradients_are_finite_differences(alpha, float64):
    x, scale = np.array([0.0, 0.2, -1.5, 6.0]), np.array([1.3])

    def total(x, alpha, scale):
        return ops.sum(general_robust(x, alpha, scale))

    def at(x, alpha, scale):
        return numpy(total(*(ops.convert_to_tensor(v, dtype="float64") for v in (x, alpha, scale))))

    dx, da, dc = gradient(total, x, np.array([alpha]), scale)
    np.testing.assert_allclose(dx, finite_difference(lambda v: at(v, [alpha], scale), x), rtol=1e-6, atol=1e-9)
    # Next to 0 and 2 a difference quotient loses digits; the step stays on one side of the formula's branches.
    np.testing.assert_allclose(
        da, finite_difference(lambda v: at(x, v, scale), [alpha], step=1e-7), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(dc, finite_difference(lambda v: at(x, [alpha], v), scale), rtol=1e-6, atol=1e-9)


def test_gradient_by_the_shape_at_zero(float64):
    """-L/2 + s/(4 + 2s) + L^2/4 with L = log(1 + s/2): not 0, as `where` on the limit would have it."""
    s = 2.5**2
    log_term = np.log1p(s / 2)
    actual = gradient(
        lambda a: ops.sum(general_robust(ops.convert_to_tensor([2.5], dtype="float64"), a, 1.0)), np.array([0.0])
    )
    assert actual[0][0] == pytest.approx(-log_term / 2 + s / (4 + 2 * s) + log_term**2 / 4, rel=1e-9)


def test_gradients_at_the_squared_error_are_finite():
    dx, da = gradient(lambda x, a: ops.sum(general_robust(x, a, 1.0)), np.float32([0.0, 1.0, 50.0]), np.float32([2.0]))
    np.testing.assert_allclose(dx, [0.0, 1.0, 50.0], rtol=1e-4)
    assert np.isfinite(da).all()


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.25, 0.999, 1.0, 1.3, 1.9, 1.999, 2.0])
def test_log_partition_against_quadrature(alpha, float64):
    assert float(numpy(log_partition(ops.convert_to_tensor(alpha, dtype="float64")))) == pytest.approx(
        float(mpmath.log(partition(alpha))), abs=1e-10
    )


def test_log_partition_in_single_precision_and_its_gradient():
    alphas = np.float32([0.001, 0.1, 0.9, 1.1, 1.7, 1.99])
    expected = [float(mpmath.log(partition(float(a)))) for a in alphas]
    np.testing.assert_allclose(numpy(log_partition(ops.convert_to_tensor(alphas))), expected, atol=1e-6)
    slope = gradient(lambda a: ops.sum(log_partition(a)), alphas)[0]
    h = 1e-5
    quotient = [
        float((mpmath.log(partition(float(a) + h)) - mpmath.log(partition(float(a) - h))) / (2 * h)) for a in alphas
    ]
    np.testing.assert_allclose(slope, quotient, rtol=2e-3)


def test_the_adaptive_loss_is_a_density(float64):
    """exp(-loss) integrates to 1 at any shape and scale."""
    loss = AdaptiveRobust(alpha_init=0.6, scale_init=0.4, reduction=None)
    loss.build_once((None, 1), (None, 1))
    u = np.linspace(-20, 20, 40001)
    x = np.sinh(u)
    values = numpy(loss(np.zeros((len(x), 1)), x[:, None]))
    assert np.sum(np.exp(-values) * np.cosh(u)) * (u[1] - u[0]) == pytest.approx(1.0, abs=1e-5)


def test_collapse_the_variables_alone_find_the_closed_form(random):
    """Fixed residuals and a shape held next to 2: the likelihood is the normal one, optimal at scale = RMS."""
    residuals = random.normal(0.0, 0.5, size=(2000, 1)).astype("float32")
    loss, _ = fitted_to(residuals, alpha_range=(1.998, 1.999))
    assert loss.scale[0] == pytest.approx(np.sqrt(np.mean(residuals**2)), rel=0.01)


def test_the_shape_tells_heavy_tails_from_light_ones(random):
    normal, _ = fitted_to(random.normal(size=(2000, 1)).astype("float32"))
    cauchy, _ = fitted_to(random.standard_t(1.0, size=(2000, 1)).astype("float32"))
    assert cauchy.alpha[0] < 0.3
    assert normal.alpha[0] > 1.5


def fitted_to(residuals, **arguments):
    """The loss after training its variables alone on these residuals."""
    loss = AdaptiveRobust(**arguments)
    trainer = kriterion.Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0)]))
    trainer.compile(keras.optimizers.Adam(0.05), loss)
    return loss, trainer.fit(residuals, 0 * residuals, batch_size=2000, epochs=300, verbose=0)


def test_start_is_as_stated():
    loss = AdaptiveRobust(alpha_range=(0.1, 1.1), alpha_init=0.3, scale_init=2.5)
    loss.build_once((None, 3), (None, 3))
    np.testing.assert_allclose(loss.alpha, [0.3] * 3, rtol=1e-5)
    np.testing.assert_allclose(loss.scale, [2.5] * 3, rtol=1e-5)


# Keras's contract, for every loss in the list.


def built(make, **arguments):
    loss = make(**arguments)
    if isinstance(loss, kriterion.losses.TrainableLoss):
        loss.build_once((None, 3), (None, 3))
    return loss


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_reductions_and_sample_weights(make, random):
    y, p = random.normal(size=(5, 3)).astype("float32"), random.normal(size=(5, 3)).astype("float32")
    weights = random.uniform(size=5).astype("float32")
    each = numpy(built(make, reduction=None)(y, p))
    assert each.shape == (5,)
    assert numpy(built(make)(y, p)) == pytest.approx(each.mean(), rel=1e-5)
    assert numpy(built(make, reduction="sum")(y, p)) == pytest.approx(each.sum(), rel=1e-5)
    assert numpy(built(make)(y, p, sample_weight=weights)) == pytest.approx((weights * each).mean(), rel=1e-5)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_any_rank_and_mismatched_ranks(make, random):
    y, p = random.normal(size=(4, 6, 3)).astype("float32"), random.normal(size=(4, 6, 3)).astype("float32")
    loss = built(make, reduction=None)
    each = numpy(loss(y, p))
    assert each.shape == (4, 6)
    np.testing.assert_allclose(each[2], numpy(loss(y[2], p[2])), rtol=1e-5)
    single = make(reduction=None)
    if isinstance(single, kriterion.losses.TrainableLoss):
        single.build_once((None,), (None, 1))
    flat = numpy(single(y[:, 0, 0], p[:, 0, :1]))
    assert flat.shape == (4,)
    np.testing.assert_allclose(flat, numpy(single(y[:, 0, :1], p[:, 0, :1])), rtol=1e-6)
    with pytest.raises(ValueError, match="same shape"):
        loss(y[:, 0], p)


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_round_trip_through_the_configuration(make):
    loss = make(reduction="sum", name="mine")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert restored.get_config() == loss.get_config()


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_gradient_by_the_predictions(make, random):
    y, p = random.normal(size=(2, 3)).astype("float32"), random.normal(size=(2, 3)).astype("float32")
    loss = built(make, reduction="sum")
    actual = gradient(lambda v: loss(y, v), p)[0]
    # In float32: rounding 1e-7 / step, truncation step^2.
    expected = finite_difference(lambda v: numpy(loss(y, v.astype("float32"))), p, step=1e-2)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GeneralRobust(scale=0.0), ["`scale`", "> 0", "0.0"]),
        (lambda: GeneralRobust(alpha=float("nan")), ["`alpha`", "nan"]),
        (lambda: GeneralRobust(alpha="one"), ["`alpha`", "'one'"]),
        (lambda: AdaptiveRobust(alpha_range=(1.0, 0.5)), ["`alpha_range`", "increase"]),
        (lambda: AdaptiveRobust(alpha_range=(0.0, 2.5)), ["`alpha_range`", "2.5"]),
        (lambda: AdaptiveRobust(alpha_init=1.9995), ["`alpha_init`", "1.9995"]),
        (lambda: AdaptiveRobust(scale_init=1e-6), ["`scale_init`", "1e-06"]),
        (lambda: AdaptiveRobust().alpha, ["fit"]),
        (lambda: AdaptiveRobust().build((None, None), (None, None)), ["known size"]),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
