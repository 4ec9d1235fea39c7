"""The losses: what they converge to, and Keras's contract for each."""

import keras
import numpy as np
import pytest

import kriterion
from kriterion.losses import AdaptiveRobust, GeneralRobust
from tests.helpers import LOSSES, finite_difference, gradient, numpy, told


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
