"""The variance estimates are unbiased, and the updates are the papers'."""

import keras
import numpy as np
import pytest
from keras import ops

from minimand.optimizers import MSVAG, SVAG, AdaBelief, SNRScaling
from minimand.testing._optimizers import path_of
from tests.helpers import numpy, told
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
