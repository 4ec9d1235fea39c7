"""The variance estimates are unbiased, and the updates are the papers'."""

import keras
import numpy as np
import pytest
from keras import ops

from minimand.optimizers import IVON, MSVAG, SVAG, AdaBelief, Proximal, SNRScaling
from minimand.testing._optimizers import path_of
from tests.helpers import mostly_slow, numpy, told
from tests.parts.optimizers import moments


def factors(gradients, beta, granularity="weight"):
    """The factor gamma of SNRScaling after each gradient."""
    gradients = np.asarray(gradients, dtype="float32")
    variable = keras.Variable(np.zeros(gradients.shape[1:], "float32"))
    optimizer = SNRScaling(keras.optimizers.SGD(0.0), beta=beta, granularity=granularity)
    optimizer.build([variable])
    for gradient in gradients:
        yield numpy(optimizer._factors([ops.convert_to_tensor(gradient)], [variable])[0])


def test_the_variance_estimate_is_unbiased(random):
    """G ~ N(1, 0.25) at 200,000 weights: steps 2, 5 and 40 are right to 1 % (standard error below 0.4 %)."""
    gradients = random.normal(1.0, 0.5, size=(40, 200_000))
    for t, (_, s, _) in enumerate(moments(gradients, 0.9), start=1):
        if t in (2, 5, 40):
            assert s.mean() == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.9999])
def test_factor_is_the_formula(beta, random):
    """The factor is right to a few float32 roundings, also if the mean is a thousand times the deviation."""
    for offset in (0.5, 1000.0):
        gradients = random.normal(offset, 1.0, size=(6, 50)).astype("float32")
        for (mean, s, rho), factor in zip(moments(gradients, beta), factors(gradients, beta), strict=True):
            np.testing.assert_allclose(factor, mean**2 / (mean**2 + rho * s), rtol=1e-5, atol=1e-7)


def test_factor_of_a_tensor_is_that_of_its_sums(random):
    gradients = random.normal(0.5, 1.0, size=(6, 4, 3))
    for (mean, s, rho), factor in zip(moments(gradients, 0.8), factors(gradients, 0.8, "tensor"), strict=True):
        assert factor == pytest.approx(np.sum(mean**2) / np.sum(mean**2 + rho * s), rel=1e-5)


def test_factor_of_constant_missing_and_extreme_gradients():
    """The factor is 1 without noise or gradient, and in [0, 1] if squares overflow or underflow."""
    for factor in factors([[0.0, 1e-20, 1.0, 1e4, -3.0]] * 300, 0.9):
        np.testing.assert_allclose(factor, 1.0, atol=1e-5)
    for factor in factors([[1e30, 1e-30, 1.0], [-1e30, 0.0, 1e30]] * 3, 0.9):
        assert ((factor >= 0) & (factor <= 1)).all()


def test_constant_gradients_leave_the_inner_optimizer_alone():
    gradients = [np.float32([0.5, -2.0])] * 10
    for make in (lambda: keras.optimizers.Adam(0.1), lambda: keras.optimizers.SGD(0.1, momentum=0.9)):
        np.testing.assert_allclose(
            path_of(SNRScaling(make()), gradients),
            path_of(make(), gradients),
            atol=1e-5,
        )


def test_weight_decay_is_not_scaled():
    """Alternating gradients make the update vanish, but not the decay."""
    gradients = [np.float32([10.0 * (-1) ** t]) for t in range(40)]
    optimizer = SNRScaling(keras.optimizers.SGD(1e-6, weight_decay=1e4), beta=0.99)
    path = path_of(optimizer, gradients)
    np.testing.assert_allclose(path[:, 0], 0.99 ** np.arange(1, 41), rtol=1e-3)


# SVAG, M-SVAG and AdaBelief


def test_ada_belief_is_centred(random):
    """G ~ N(1, 0.25) at 200,000 weights: the belief is the variance plus the first term's share of the squared mean."""
    variable = keras.Variable(np.zeros(200_000, "float32"))
    optimizer = AdaBelief(0.0, beta_1=0.9, beta_2=0.9)
    optimizer.build([variable])
    for t in range(1, 41):
        optimizer.apply([ops.convert_to_tensor(random.normal(1.0, 0.5, size=200_000).astype("float32"))], [variable])
        share = 0.1 * 0.9 ** (t - 1) / (1 - 0.9**t)
        assert optimizer._beliefs[0].numpy().mean() == pytest.approx(0.25 + share, rel=0.01)


def test_gradients_without_noise():
    """M-SVAG with constant gradients is gradient descent, and a weight without gradient does not move."""
    path = path_of(MSVAG(0.1), [np.float32([0.5, -2.0, 0.0])] * 10)
    np.testing.assert_allclose(path[:, :2], 1.0 - 0.1 * np.arange(1, 11)[:, None] * [0.5, -2.0], rtol=1e-5)
    np.testing.assert_array_equal(path[:, 2], 1.0)


# Optimizers that a transform gives measurements, under the options of Keras's base class.

MEASURED = {
    "ivon": lambda **kwargs: IVON(0.1, beta_2=0.8, **kwargs),
    "svag": lambda **kwargs: SVAG(0.1, beta=0.8, variance="mini_batch", **kwargs),
    "msvag": lambda **kwargs: MSVAG(0.1, beta=0.8, variance="mini_batch", **kwargs),
}


def measured_path(optimizer, gradients, measurements, finish=False):
    """The weights and the state of the transform after each step."""
    weight, state = (keras.Variable(np.ones(5, "float32"), name=name) for name in ("weight", "state"))
    optimizer.track(weight, state)
    optimizer.build([weight, state])
    path = []
    for pair in zip(gradients, measurements, strict=True):
        optimizer.apply([ops.convert_to_tensor(part) for part in np.float32(pair)], [weight, state])
        path.append((weight.numpy().copy(), state.numpy().copy()))
    if finish:
        optimizer.finalize_variable_values([weight, state])
        return weight.numpy(), state.numpy()
    return np.array(path)


@pytest.fixture
def measurements(random):
    """Gradients of a weight, and positive measurements."""
    return random.normal(0.5, 1.0, size=(8, 5)), random.uniform(0.1, 2.0, size=(8, 5))


@pytest.mark.parametrize("name", mostly_slow(MEASURED, "ivon"))
def test_measurements_are_accumulated_like_gradients(name, measurements):
    """The variance of a mean of two gradients is half the mean variance; an estimate of the Hessian is averaged."""
    make = MEASURED[name]
    actual = measured_path(make(gradient_accumulation_steps=2), *measurements)
    g, measured = (part.reshape(4, 2, 5).mean(axis=1) for part in measurements)
    expected = measured_path(make(), g, measured if name == "ivon" else measured / 2)
    np.testing.assert_allclose(actual[1::2], expected, rtol=1e-5)
    np.testing.assert_array_equal(actual[0], np.ones((2, 5)))
    np.testing.assert_array_equal(actual[2::2], actual[1:-1:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_clipping_leaves_measurements_alone(name, measurements):
    g, measured = measurements
    shortened = g * np.minimum(1.0, 0.5 / np.linalg.norm(g, axis=1, keepdims=True))
    for option, clipped in (
        ({"clipvalue": 0.25}, np.clip(g, -0.25, 0.25)),
        ({"clipnorm": 0.5}, shortened),
        ({"global_clipnorm": 0.5}, shortened),
    ):
        actual = measured_path(MEASURED[name](**option), *measurements)
        np.testing.assert_allclose(actual, measured_path(MEASURED[name](), clipped, measured), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_averages_are_of_the_weights_alone(name, measurements):
    plain = measured_path(MEASURED[name](), *measurements)
    average = plain[0, 0]
    for weight, _ in plain:
        average = 0.8 * average + 0.2 * weight
    found = measured_path(MEASURED[name](use_ema=True, ema_momentum=0.8), *measurements, finish=True)
    np.testing.assert_allclose(found, [average, plain[-1, 1]], rtol=1e-5)
    overwritten = measured_path(
        MEASURED[name](use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=2), *measurements
    )
    np.testing.assert_allclose(overwritten[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(overwritten[1], [0.8 * plain[0, 0] + 0.2 * plain[1, 0], plain[1, 1]], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_scaled_losses_and_schedules(name, measurements):
    make = MEASURED[name]
    expected = measured_path(make(), *measurements)
    scaled = measured_path(make(loss_scale_factor=8.0), *(8.0 * part for part in measurements))
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    optimizer = make()
    optimizer.learning_rate = 0.0
    still = measured_path(optimizer, *measurements)
    np.testing.assert_array_equal(still[:, 0], np.ones((8, 5)))
    np.testing.assert_allclose(still[:, 1], expected[:, 1], rtol=1e-6)


# Variables that Keras overwrites with their gradients, as the scales of float8.


@pytest.mark.parametrize(
    "make",
    [
        lambda **kwargs: SNRScaling(keras.optimizers.Adam(0.1, **kwargs)),
        lambda **kwargs: Proximal(keras.optimizers.Adam(0.1, **kwargs), keras.regularizers.L1(0.1), select="all"),
        lambda **kwargs: MSVAG(0.1, **kwargs),
        lambda **kwargs: AdaBelief(0.1, **kwargs),
    ],
)
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"global_clipnorm": 0.5}])
@pytest.mark.slow
def test_a_variable_that_is_overwritten(make, options, random):
    """It gets its gradient (with accumulation, the greatest), and the other weight's path is as without it."""
    gradients = random.normal(size=(6, 2, 5)).astype("float32")

    def path(overwritten):
        weight, scale = (keras.Variable(np.ones(5, "float32"), name=name) for name in ("weight", "scale"))
        scale.overwrite_with_gradient = True
        variables = [scale, weight] if overwritten else [weight]
        optimizer = make(**options)
        optimizer.build(variables)
        for pair in gradients:
            given = [ops.convert_to_tensor(part) for part in pair]
            optimizer.apply(given if overwritten else given[1:], variables)
            yield weight.numpy().copy(), scale.numpy().copy()

    count = options.get("gradient_accumulation_steps", 1)
    largest = np.maximum.reduceat(gradients[:, 0], range(0, 6, count))
    for step, ((weight, scale), (expected, _)) in enumerate(zip(path(True), path(False), strict=True), start=1):
        np.testing.assert_allclose(weight, expected, rtol=1e-6)
        if step % count == 0:
            np.testing.assert_array_equal(scale, np.maximum(largest[step // count - 1], 0.0 if count > 1 else -np.inf))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: SNRScaling(keras.optimizers.SGD(), beta=1.0), ValueError, ["`beta`", "1.0"]),
        (lambda: SNRScaling(keras.optimizers.SGD(), beta=0.0), ValueError, ["`beta`", "> 0", "0.0"]),
        (lambda: SNRScaling("sgd", granularity="layer"), ValueError, ["`granularity`", "'tensor'", "'layer'"]),
        (lambda: SVAG(beta=1.0), ValueError, ["`beta`", "< 1", "1.0"]),
        (lambda: MSVAG(variance="exact"), ValueError, ["`variance`", "'running'", "'exact'"]),
        (lambda: MSVAG(variance="mini_batch").build([keras.Variable(1.0)]), ValueError, ["MiniBatchVariance"]),
        (lambda: AdaBelief(beta_2=1.0), ValueError, ["`beta_2`", "< 1", "1.0"]),
        (lambda: AdaBelief(epsilon=0.0), ValueError, ["`epsilon`", "> 0", "0.0"]),
        (lambda: SNRScaling(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())), TypeError, ["`optimizer`", "LossScaleOptimizer"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()
