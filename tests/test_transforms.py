"""What each transform does to an objective, on objectives that can be worked out by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import kriterion
from kriterion.transforms import Batch, GradientVariancePenalty, WeightNoise, WeightPenalty
from tests.helpers import TRANSFORMS, data, finite_difference, gradient, network, numpy, told


def squared_error(weights, batch):
    """mean_i (x_i . w - y_i)^2 / 2, whose gradient for one example is (x_i . w - y_i) x_i."""
    residual = ops.sum(batch.x * weights[0], axis=-1) - batch.y
    # `ops.mean` computes in float32 on some backends.
    return ops.sum(residual**2) / (2 * batch.x.shape[0]), "outcome"


def example_gradients(x, y, w):
    return (x @ w - y)[:, None] * x


def tensors(*arrays, dtype="float64"):
    return [ops.convert_to_tensor(a, dtype=dtype) for a in arrays]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_round_trip_through_the_configuration(name):
    transform = TRANSFORMS[name]()
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(transform))
    assert type(restored) is type(transform)
    assert restored.get_config() == transform.get_config()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_trains_changes_something_and_returns_the_outcome(name, random):
    x, y = data(random)
    losses = []
    for transforms in ([], [TRANSFORMS[name]()]):
        trainer = kriterion.Trainer(network())
        trainer.compile(keras.optimizers.SGD(0.01), "mse", transforms=transforms)
        losses.append(trainer.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert np.isfinite(losses).all()
    assert not np.allclose(losses[0], losses[1])


# WeightNoise


@pytest.mark.parametrize(("mode", "scale"), [("additive", np.ones(6)), ("relative", np.arange(6.0) - 2)])
def test_noise_has_the_stated_law(mode, scale):
    """Mean and variance over 4,000 draws, each within 5 standard errors."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    transform = WeightNoise(0.3, mode=mode, seed=1)
    transform.build(model)
    kernel = (np.arange(6.0) - 2).reshape(3, 2)
    weights = tensors(kernel, [1.0, 2.0], dtype="float32")
    draws = []
    for _ in range(4000):
        noisy, bias = transform.perturbed(weights)
        draws.append(numpy(noisy).ravel())
        assert bias is weights[1]
    draws = np.array(draws) - kernel.ravel()
    sd = 0.3 * np.abs(scale)
    count = len(draws)
    assert (np.abs(draws.mean(axis=0)) <= 5 * sd / np.sqrt(count) + 1e-6).all()
    # The variance of a sample variance of normals is 2 sd^4 / n.
    assert (np.abs(draws.var(axis=0) - sd**2) <= 5 * sd**2 * np.sqrt(2 / count) + 1e-6).all()
    correlation = np.corrcoef(draws[:, sd > 0].T) - np.eye((sd > 0).sum())
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_noise_adds_half_the_trace_of_the_hessian(random):
    """On a quadratic, E[L(w + s e)] - L(w) = s^2/2 tr H exactly; within 4 standard errors of 3,000 draws."""
    x, y, w = random.normal(size=(20, 4)), random.normal(size=20), random.normal(size=4)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    transform = WeightNoise(0.5, select="all", seed=2)
    transform.build(model)
    batch = Batch(*tensors(x, y, dtype="float32"))
    noisy = transform.apply(squared_error)
    weights = tensors(w, dtype="float32")
    draws = np.array([float(numpy(noisy(weights, batch)[0])) for _ in range(3000)])
    clean = np.mean((x @ w - y) ** 2) / 2
    expected = clean + 0.5**2 / 2 * np.trace(x.T @ x / 20)
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        ("kernels", ["kernel", "kernel"]),
        ("all", ["kernel", "bias", "kernel", "bias"]),
        ("second/", ["kernel", "bias"]),
        (lambda variable: variable.name == "bias", ["bias", "bias"]),
    ],
)
def test_selection(select, chosen):
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="second")]
    )
    transform = WeightNoise(0.1, select=select)
    transform.build(model)
    assert [v.name for v, c in zip(model.trainable_variables, transform.chosen, strict=True) if c] == chosen


# WeightPenalty


def test_penalty_adds_the_regularizer_of_the_selected_weights(random):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    transform = WeightPenalty(keras.regularizers.L2(0.5))
    transform.build(model)
    kernel, bias = random.normal(size=(3, 1)), random.normal(size=1)
    objective = transform.apply(lambda weights, batch: (ops.sum(weights[1]), "outcome"))
    loss, outcome = objective(tensors(kernel, bias, dtype="float32"), Batch(None))
    assert numpy(loss) == pytest.approx(bias.sum() + 0.5 * np.sum(kernel**2), rel=1e-5)
    assert outcome == "outcome"


# GradientVariancePenalty


@pytest.mark.parametrize(("rows", "count"), [(12, 4), (13, 4), (3, 4), (8, 8)])
def test_penalty_is_the_micro_batch_estimate(rows, count, random, float64):
    x, y, w = random.normal(size=(rows, 3)), random.normal(size=rows), random.normal(size=3)
    used = min(rows, count)
    size = max(rows // count, 1)
    parts = example_gradients(x, y, w)[: used * size].reshape(used, size, 3).mean(axis=1)
    variance = size * parts.var(axis=0, ddof=1).sum()
    penalised = GradientVariancePenalty(0.7, micro_batches=count).apply(squared_error)
    loss, outcome = penalised(tensors(w), Batch(*tensors(x, y)))
    assert float(numpy(loss)) == pytest.approx(np.mean((x @ w - y) ** 2) / 2 + 0.7 * variance, rel=1e-9)
    assert outcome == "outcome"


def test_estimate_is_unbiased(random):
    """
    Over 80 random orders of a batch, the mean is the exact per-example variance within 4 standard errors.

    A random partition of a finite batch estimates b/(K-1) sum (G_k - G)^2 with expectation exactly V_unbiased.
    """
    x, y, w = random.normal(size=(24, 3)), random.normal(size=24), random.normal(size=3)
    exact = example_gradients(x, y, w).var(axis=0, ddof=1).sum()
    penalised = GradientVariancePenalty(1.0, micro_batches=4).apply(squared_error)
    clean = np.mean((x @ w - y) ** 2) / 2
    weights = tensors(w, dtype="float32")
    draws = []
    for _ in range(80):
        order = random.permutation(24)
        draws.append(float(numpy(penalised(weights, Batch(*tensors(x[order], y[order], dtype="float32")))[0])) - clean)
    assert abs(np.mean(draws) - exact) < 4 * np.std(draws) / np.sqrt(len(draws)) + 1e-4 * exact


def test_gradient_of_the_penalty(random, float64):
    x, y, w = random.normal(size=(8, 3)), random.normal(size=8), random.normal(size=3)
    batch = Batch(*tensors(x, y))
    penalised = GradientVariancePenalty(0.7, micro_batches=4).apply(squared_error)
    actual = gradient(lambda v: penalised([v], batch)[0], w)[0]
    expected = finite_difference(lambda v: numpy(penalised(tensors(v), batch)[0]), w)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_one_example_has_no_variance(random):
    x, y, w = random.normal(size=(1, 3)), random.normal(size=1), random.normal(size=3)
    batch = Batch(*tensors(x, y, dtype="float32"))
    penalised = GradientVariancePenalty(100.0).apply(squared_error)
    clean = squared_error(tensors(w, dtype="float32"), batch)[0]
    assert float(numpy(penalised(tensors(w, dtype="float32"), batch)[0])) == pytest.approx(
        float(numpy(clean)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: WeightNoise(-0.1), ValueError, ["`stddev`", ">= 0", "-0.1"]),
        (lambda: WeightNoise(float("nan")), ValueError, ["`stddev`", "nan"]),
        (lambda: WeightNoise(0.1, mode="both"), ValueError, ["`mode`", "'additive'", "'both'"]),
        (lambda: WeightNoise(0.1, select="["), ValueError, ["`select`", "regular expression"]),
        (lambda: WeightNoise(0.1, select=3), TypeError, ["`select`", "3"]),
        (lambda: WeightNoise(0.1, seed=1.5), TypeError, ["`seed`", "1.5"]),
        (lambda: WeightPenalty(None), ValueError, ["`regularizer`", "None"]),
        (lambda: GradientVariancePenalty(float("inf")), ValueError, ["`strength`", "inf"]),
        (lambda: GradientVariancePenalty(1.0, micro_batches=1), ValueError, ["`micro_batches`", ">= 2", "1"]),
    ],
)
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()


def test_base_class_says_what_to_implement():
    with pytest.raises(NotImplementedError, match="apply"):
        kriterion.transforms.Transform().apply(squared_error)
