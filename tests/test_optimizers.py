"""Variance-aware optimizers: the estimates are unbiased, the updates the papers', Keras's features keep their meaning."""

import keras
import numpy as np
import pytest
from keras import ops

from kriterion.optimizers import AdaBelief, VarianceAware, VarianceScaling
from tests.helpers import assert_same, data, network, numpy, told, weights_of


def moments(gradients, beta):
    """(mean, unbiased variance, rho) after each gradient, in float64, from the weights of the running mean."""
    gradients = np.asarray(gradients, dtype="float64")
    for t in range(1, len(gradients) + 1):
        weights = beta ** np.arange(t)[::-1] * (1 - beta) / (1 - beta**t)
        mean = np.tensordot(weights, gradients[:t], axes=1)
        spread = np.tensordot(weights, (gradients[:t] - mean) ** 2, axes=1)
        rho = np.sum(weights**2)
        yield mean, (spread / (1 - rho) if t > 1 else 0 * spread), rho


def factors(gradients, beta, granularity="weight"):
    """Gamma after each gradient: what VarianceScaling makes of a step of length 1."""
    gradients = np.asarray(gradients, dtype="float32")
    variable = keras.Variable(np.zeros(gradients.shape[1:], "float32"))
    optimizer = VarianceScaling(keras.optimizers.SGD(0.0), beta=beta, granularity=granularity)
    optimizer.build([variable])
    for gradient in gradients:
        yield numpy(optimizer._factors([ops.convert_to_tensor(gradient)], [variable])[0])


def test_the_variance_estimate_is_unbiased(random):
    """G ~ N(1, 0.25): within 1 % of the truth at steps 2, 5 and 40 (200,000 weights, standard error below 0.4 %)."""
    gradients = random.normal(1.0, 0.5, size=(40, 200_000))
    for t, (_, s, _) in enumerate(moments(gradients, 0.9), start=1):
        if t in (2, 5, 40):
            assert s.mean() == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.9999])
def test_factor_is_the_formula(beta, random):
    """To a few float32 roundings of the factor, also where the mean is a thousand times the deviation."""
    for offset in (0.5, 1000.0):
        gradients = random.normal(offset, 1.0, size=(6, 50)).astype("float32")
        for (mean, s, rho), factor in zip(moments(gradients, beta), factors(gradients, beta), strict=True):
            np.testing.assert_allclose(factor, mean**2 / (mean**2 + rho * s), rtol=1e-5, atol=1e-7)


def test_factor_of_a_tensor_is_that_of_its_sums(random):
    gradients = random.normal(0.5, 1.0, size=(6, 4, 3))
    for (mean, s, rho), factor in zip(moments(gradients, 0.8), factors(gradients, 0.8, "tensor"), strict=True):
        assert factor == pytest.approx(np.sum(mean**2) / np.sum(mean**2 + rho * s), rel=1e-5)


def test_factor_of_constant_missing_and_extreme_gradients():
    """No noise: 1. Never a gradient: 1. Squares that overflow or underflow: between 0 and 1, never NaN."""
    for factor in factors([[0.0, 1e-20, 1.0, 1e4, -3.0]] * 300, 0.9):
        np.testing.assert_allclose(factor, 1.0, atol=1e-5)
    for factor in factors([[1e30, 1e-30, 1.0], [-1e30, 0.0, 1e30]] * 3, 0.9):
        assert ((factor >= 0) & (factor <= 1)).all()


def trajectory(optimizer, gradients, start):
    variable = keras.Variable(np.asarray(start, dtype="float32"))
    optimizer.build([variable])
    path = []
    for g in gradients:
        optimizer.apply([ops.convert_to_tensor(np.float32(g))], [variable])
        path.append(variable.numpy())
    return np.array(path)


def test_updates_are_the_inner_optimizers_times_the_factor(random):
    """SGD's update is linear in the gradient, so the whole path is that of a NumPy transcription."""
    gradients = random.normal(0.5, 1.0, size=(12, 8))
    actual = trajectory(VarianceScaling(keras.optimizers.SGD(0.1), beta=0.8), gradients, np.ones(8))
    w, expected = np.ones(8), []
    for g, (mean, s, rho) in zip(gradients, moments(gradients, 0.8), strict=True):
        w = w - 0.1 * g * mean**2 / (mean**2 + rho * s)
        expected.append(w)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_constant_gradients_leave_the_inner_optimizer_alone():
    gradients = [np.float32([0.5, -2.0])] * 10
    for make in (lambda: keras.optimizers.Adam(0.1), lambda: keras.optimizers.SGD(0.1, momentum=0.9)):
        np.testing.assert_allclose(
            trajectory(VarianceScaling(make()), gradients, [1.0, 1.0]),
            trajectory(make(), gradients, [1.0, 1.0]),
            atol=1e-5,
        )


def test_weight_decay_is_not_scaled():
    """Alternating gradients: the update vanishes, the decay does not."""
    gradients = [np.float32([10.0 * (-1) ** t]) for t in range(40)]
    optimizer = VarianceScaling(keras.optimizers.SGD(1e-6, weight_decay=1e4), beta=0.99)
    path = trajectory(optimizer, gradients, [1.0])
    np.testing.assert_allclose(path[:, 0], 0.99 ** np.arange(1, 41), rtol=1e-3)


def test_gradient_accumulation_counts_the_accumulated_gradient(random):
    gradients = random.normal(0.5, 1.0, size=(8, 5))
    accumulated = trajectory(
        VarianceScaling(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)), gradients, np.ones(5)
    )
    plain = trajectory(VarianceScaling(keras.optimizers.SGD(0.1)), gradients.reshape(4, 2, 5).mean(axis=1), np.ones(5))
    np.testing.assert_allclose(accumulated[1::2], plain, rtol=1e-5, atol=1e-6)


def test_learning_rates_reach_the_inner_optimizer(random):
    gradients = [np.float32([1.0])] * 4
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [1.0, 0.5])
    np.testing.assert_allclose(
        trajectory(VarianceScaling(keras.optimizers.SGD(schedule)), gradients, [10.0])[:, 0],
        [9.0, 8.0, 7.5, 7.0],
        rtol=1e-5,
    )
    optimizer = VarianceScaling(keras.optimizers.SGD(1.0))
    optimizer.learning_rate = 0.25
    np.testing.assert_allclose(trajectory(optimizer, gradients, [10.0])[:, 0], [9.75, 9.5, 9.25, 9.0], rtol=1e-5)
    assert VarianceScaling.from_config(optimizer.get_config()).get_config() == optimizer.get_config()


# VarianceAware and AdaBelief


@pytest.mark.parametrize("form", ["m-svag", "svag"])
def test_variance_aware_is_the_papers_recursion(form, random):
    """Algorithm 1 in float64, with m and v that start at 0, their corrections, and s = (v - m^2) / (1 - rho)."""
    gradients = random.normal(0.5, 1.0, size=(30, 8)).astype("float32")
    actual = trajectory(VarianceAware(0.1, beta=0.8, form=form), gradients, np.ones(8))
    w, m, v, expected = np.ones(8), np.zeros(8), np.zeros(8), []
    for t, g in enumerate(gradients.astype("float64"), start=1):
        m, v = 0.8 * m + 0.2 * g, 0.8 * v + 0.2 * g * g
        mean, square = m / (1 - 0.8**t), v / (1 - 0.8**t)
        rho = (1 - 0.8) * (1 + 0.8**t) / ((1 + 0.8) * (1 - 0.8**t))
        s = (square - mean**2) / (1 - rho) if t > 1 else 0.0 * g
        gamma = mean**2 / (mean**2 + (rho * s if form == "m-svag" else s))
        w = w - 0.1 * gamma * (mean if form == "m-svag" else g)
        expected.append(w)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_ada_belief_is_its_formula(random):
    """In float64, by the weights of the running means."""
    gradients = random.normal(0.5, 1.0, size=(30, 8)).astype("float32")
    actual = trajectory(AdaBelief(0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-4), gradients, np.ones(8))
    w, expected, squares = np.ones(8), [], []
    before = [(np.zeros(8), None, 0.0), *moments(gradients, 0.8)]
    for t, g in enumerate(gradients.astype("float64"), start=1):
        mean, _, rho = before[t - 1]
        squares.append((g - mean) ** 2 / (1 + rho))
        weights = 0.95 ** np.arange(t)[::-1] * 0.05 / (1 - 0.95**t)
        w = w - 0.1 * before[t][0] / (np.sqrt(weights @ np.array(squares)) + 1e-4)
        expected.append(w)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_ada_belief_is_centred(random):
    """G ~ N(1, 0.25), 200,000 weights: the belief is the variance and the first term's share of the squared mean."""
    variable = keras.Variable(np.zeros(200_000, "float32"))
    optimizer = AdaBelief(0.0, beta_1=0.9, beta_2=0.9)
    optimizer.build([variable])
    for t in range(1, 41):
        optimizer.apply([ops.convert_to_tensor(random.normal(1.0, 0.5, size=200_000).astype("float32"))], [variable])
        share = 0.1 * 0.9 ** (t - 1) / (1 - 0.9**t)
        assert optimizer._beliefs[0].numpy().mean() == pytest.approx(0.25 + share, rel=0.01)


NEW = {
    "m_svag": lambda **arguments: VarianceAware(0.1, **arguments),
    "svag": lambda **arguments: VarianceAware(0.1, form="svag", **arguments),
    "ada_belief": lambda **arguments: AdaBelief(0.1, **arguments),
}


@pytest.mark.parametrize("name", NEW)
def test_keras_features_of_the_new_optimizers(name, random):
    """Accumulation is the mean gradient every second step; decay is decoupled; clipping clips; round trip."""
    gradients = random.normal(0.5, 1.0, size=(8, 5))
    means = gradients.reshape(4, 2, 5).mean(axis=1)
    plain = trajectory(NEW[name](), means, np.ones(5))
    accumulated = trajectory(NEW[name](gradient_accumulation_steps=2), gradients, np.ones(5))
    np.testing.assert_allclose(accumulated[1::2], plain, rtol=1e-5, atol=1e-6)
    decayed = trajectory(NEW[name](weight_decay=0.5), np.zeros((3, 5)), np.ones(5))
    np.testing.assert_allclose(decayed, 0.95 ** np.arange(1, 4)[:, None] * np.ones(5), rtol=1e-6)
    clipped = trajectory(NEW[name](clipvalue=0.25), gradients, np.ones(5))
    np.testing.assert_allclose(
        clipped, trajectory(NEW[name](), np.clip(gradients, -0.25, 0.25), np.ones(5)), rtol=1e-5, atol=1e-6
    )
    optimizer = NEW[name](use_ema=True)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert restored.get_config() == optimizer.get_config()


def test_gradients_without_noise_and_huge_ones(random):
    """M-SVAG of constant gradients is gradient descent; where there never was a gradient nothing moves."""
    path = trajectory(VarianceAware(0.1), [np.float32([0.5, -2.0, 0.0])] * 10, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(path[:, :2], 1.0 - 0.1 * np.arange(1, 11)[:, None] * [0.5, -2.0], rtol=1e-5)
    np.testing.assert_array_equal(path[:, 2], 1.0)
    huge = [np.float32([1e30, 1e-30])] + [np.float32([-1e30, 0.0])] * 5
    for name in NEW:
        assert np.isfinite(trajectory(NEW[name](), huge, [1.0, 1.0])[:, 1]).all()


STOCK = {
    "variance_scaling": lambda **arguments: VarianceScaling(keras.optimizers.AdamW(0.01, **arguments)),
    "by_tensor": lambda **arguments: VarianceScaling(keras.optimizers.SGD(0.05, **arguments), granularity="tensor"),
    **NEW,
}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("variance_scaling", {}),
        ("variance_scaling", {"clipnorm": 0.1}),
        ("variance_scaling", {"use_ema": True}),
        ("by_tensor", {}),
        ("m_svag", {"use_ema": True, "global_clipnorm": 1.0}),
        ("ada_belief", {}),
    ],
)
def test_in_stock_compile_and_resumed_from_a_file(name, arguments, random, tmp_path):
    x, y = data(random)
    model = network()
    model.compile(STOCK[name](**arguments), "mse")
    model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert_same(
        [v.numpy() for v in loaded.optimizer.variables], [v.numpy() for v in model.optimizer.variables], rtol=1e-6
    )
    # Keras does not save seeds of dropout: compare evaluations.
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-6)
    before = weights_of(loaded)
    loaded.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert any(not np.allclose(a, b) for a, b in zip(before, weights_of(loaded), strict=True))


def test_mixed_precision_scales_before(random):
    x, y = data(random)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(VarianceScaling(keras.optimizers.SGD(0.05)), "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(x, y, batch_size=16, epochs=5, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: VarianceScaling(keras.optimizers.SGD(), beta=1.0), ValueError, ["`beta`", "1.0"]),
        (lambda: VarianceScaling(keras.optimizers.SGD(), beta=0.0), ValueError, ["`beta`", "> 0", "0.0"]),
        (lambda: VarianceScaling("sgd", granularity="layer"), ValueError, ["`granularity`", "'tensor'", "'layer'"]),
        (lambda: VarianceAware(beta=1.0), ValueError, ["`beta`", "< 1", "1.0"]),
        (lambda: VarianceAware(form="adam"), ValueError, ["`form`", "'m-svag'", "'adam'"]),
        (lambda: VarianceAware(variance="exact"), ValueError, ["`variance`", "'running'", "'exact'"]),
        (lambda: VarianceAware(variance="mini_batch").build([keras.Variable(1.0)]), ValueError, ["MiniBatchVariance"]),
        (lambda: AdaBelief(beta_2=1.0), ValueError, ["`beta_2`", "< 1", "1.0"]),
        (lambda: AdaBelief(epsilon=0.0), ValueError, ["`epsilon`", "> 0", "0.0"]),
        (lambda: VarianceScaling(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())), TypeError, ["`optimizer`", "LossScaleOptimizer"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()
