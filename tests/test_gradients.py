"""Moments of the gradients of single examples: exact ones, estimates of them, and what follows from them."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import kriterion
from kriterion import backend
from kriterion._objective import Batch
from kriterion.gradients import (
    GradientMoments,
    RunningMoments,
    cabs_batch_size,
    critical_batch_size,
    evidence,
    gradient_moments,
    inner_product_test,
    noise_scale,
    noise_scale_of_replicas,
    noise_scale_of_sizes,
    norm_test,
    signal_to_noise,
    training_cost,
)
from kriterion.gradients._exact import exact_sums
from kriterion.gradients._examples import ExampleGradients
from kriterion.transforms._gradient_statistics import fixed_gradients
from tests.helpers import network, numpy, told


def _dense():
    # Dropout: the closed form sees the masks of the batch.
    return keras.Sequential([keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dropout(0.3, seed=1), layers.Dense(2)])


def _conv2d():
    return keras.Sequential(
        [
            keras.Input((9, 8, 2)),
            layers.Conv2D(3, (3, 2), strides=2, padding="same", activation="relu"),
            layers.Conv2D(3, 2, dilation_rate=2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )


def _conv1d():
    parts = [layers.Conv1D(3, 3, padding="causal", activation="tanh"), layers.LayerNormalization(), layers.Dense(4)]
    return keras.Sequential([keras.Input((7, 2)), *parts, layers.Flatten(), layers.Dense(2, use_bias=False)])


def _conv3d():
    return keras.Sequential(
        [keras.Input((3, 4, 3, 2)), layers.Conv3D(2, 2), layers.GlobalAveragePooling3D(), layers.Dense(2)]
    )


def _depthwise():
    return keras.Sequential(
        [keras.Input((6, 5, 2)), layers.DepthwiseConv2D(3), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    )


def _lstm():
    return keras.Sequential(
        [keras.Input((6,)), layers.Embedding(5, 4, mask_zero=True), layers.LSTM(3), layers.Dense(2)]
    )


def _masked_sequences():
    parts = [layers.Embedding(5, 4, mask_zero=True), layers.TimeDistributed(layers.Dense(3)), layers.Dense(2)]
    return keras.Sequential([keras.Input((6,)), *parts])


def _attention_and_tied_weights():
    inputs = keras.Input((4, 3))
    shared = layers.Dense(3, "tanh")
    hidden = shared(shared(layers.MultiHeadAttention(2, 2)(inputs, inputs)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(hidden)))


def _frozen_batch_normalisation():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)])
    model.layers[1].trainable = False
    return model


def _two_outputs():
    inputs = keras.Input((5,))
    hidden = layers.Dense(4, "relu", kernel_regularizer="l2", activity_regularizer="l2")(inputs)
    return keras.Model(inputs, {"u": layers.Dense(2, name="u")(hidden), "v": layers.Dense(1, name="v")(hidden)})


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(4, "tanh"), layers.Dense(2)

    def call(self, x):
        return self.head(self.hidden(x))


MODELS = {
    "dense_and_dropout": (_dense, (5,)),
    "conv2d": (_conv2d, (9, 8, 2)),
    "conv1d_and_layer_normalisation": (_conv1d, (7, 2)),
    "conv3d": (_conv3d, (3, 4, 3, 2)),
    "depthwise": (_depthwise, (6, 5, 2)),
    "embedding_and_lstm": (_lstm, None),
    "masked_sequences": (_masked_sequences, None),
    "attention_and_tied_weights": (_attention_and_tied_weights, (4, 3)),
    "frozen_batch_normalisation": (_frozen_batch_normalisation, (5,)),
    "subclassed": (Subclassed, (5,)),
}
ROWS = 6


def compiled(name, random, **arguments):
    """A compiled model, and a batch for it."""
    make, shape = MODELS[name]
    keras.utils.set_random_seed(4)
    model = make()
    x = random.integers(0, 5, size=(ROWS, 6)) if shape is None else random.normal(size=(ROWS, *shape))
    y = random.normal(size=model(x).shape)
    weights = None if name == "masked_sequences" else random.uniform(0.5, 2.0, size=ROWS)
    model.compile("sgd", "mse", **arguments)
    return model, (x, y, weights)


def one_by_one(model, data):
    """The gradients g_i by n passes through the whole batch, each with the sample weights of one example alone."""
    x, y, sample_weight = (None if part is None else ops.convert_to_tensor(part) for part in data)
    model._symbolic_build(data_batch=(x, y, sample_weight))
    base = np.ones(np.shape(data[1])[:1]) if data[2] is None else data[2]
    if data[2] is None and len(np.shape(data[1])) > 2:
        base = np.ones(np.shape(data[1])[:2])
    variables, rest = model.trainable_variables, model.non_trainable_variables
    found = []
    for row in range(ROWS):
        alone = np.zeros_like(base)
        alone[row] = base[row]

        def loss(values, alone=alone):
            pairs = [*zip(variables, values, strict=True), *((v, v.value) for v in rest)]
            with keras.StatelessScope(pairs):
                y_pred = model(x, training=True)
                return model._compile_loss(y, y_pred, ops.convert_to_tensor(alone)), None

        gradients = backend.value_and_gradient(loss, [v.value for v in variables], differentiable=False)[1]
        found.append([ROWS * numpy(g).astype("float64") for g in gradients])
    return [np.stack(same) for same in zip(*found, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_exact_moments_are_those_of_a_loop_over_examples(name, random, float64):
    """In float64: mean, variance, trace and the variance along the mean; the model's variables are left alone."""
    model, data = compiled(name, random)
    expected = GradientMoments.of_examples(one_by_one(model, data))
    before = [v.numpy() for v in model.variables]
    found = gradient_moments(model, *data)
    # Keras computes its losses in float32 on some backends, the masks' mean with its epsilon of 1e-7.
    tolerance = {"rtol": 3e-5, "atol": 3e-6 * np.sqrt(expected.trace)}
    for a, b in zip(found.mean, expected.mean, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)
    for a, b in zip(found.variance, expected.variance, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-6 * expected.trace)
    assert found.trace == pytest.approx(expected.trace, rel=1e-5)
    assert found.variance_along_mean == pytest.approx(expected.variance_along_mean, rel=1e-4)
    assert found.trace_error == 0.0
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.skipif(backend.name != "torch", reason="compilers merge the passes by themselves")
@pytest.mark.parametrize("name", MODELS)
def test_gradients_by_the_pass_of_training_are_those_by_another(name, random, float64):
    model, data = compiled(name, random)
    trainer = kriterion.Trainer(model)
    trainer.compile("sgd", "mse")
    batch = Batch(*trainer.prepare(*data))
    weights = [v.value for v in model.trainable_variables]
    state = [(v, v.value) for v in trainer.variables]
    coefficients = ops.convert_to_tensor(random.normal(size=ROWS))
    with keras.StatelessScope(state):
        objective = trainer.data_objective()
        outcome = objective(weights, batch)[1]
        kept = fixed_gradients(objective, weights, batch, outcome, [True] * len(weights))
        assert kept.kept is not None
        for found, expected in zip(kept.sum(coefficients), replace(kept, kept=None).sum(coefficients), strict=True):
            np.testing.assert_allclose(numpy(found), numpy(expected), rtol=1e-6, atol=1e-8)


def test_moments_are_of_the_compiled_loss_alone(random):
    """Two outputs with losses and weights of their own; penalties have no variance; a trainer gives the same."""
    keras.utils.set_random_seed(4)
    model = _two_outputs()
    x = random.normal(size=(ROWS, 5)).astype("float32")
    y = {"u": random.normal(size=(ROWS, 2)).astype("float32"), "v": random.normal(size=(ROWS, 1)).astype("float32")}
    arguments = {"loss": {"u": "mse", "v": "mae"}, "loss_weights": {"u": 1.0, "v": 0.5}}
    model.compile("sgd", **arguments)

    def of_rows(rows):
        def loss(values):
            with keras.StatelessScope(list(zip(model.trainable_variables, values, strict=True))):
                p = model(x[rows])
            u, v = (ops.subtract(p[key], y[key][rows]) for key in "uv")
            return ops.mean(u**2) + 0.5 * ops.mean(ops.abs(v)), None

        values = [v.value for v in model.trainable_variables]
        return [numpy(g) for g in backend.value_and_gradient(loss, values, differentiable=False)[1]]

    each = [of_rows(slice(row, row + 1)) for row in range(ROWS)]
    expected = GradientMoments.of_examples([np.stack(same) for same in zip(*each, strict=True)])
    trainer = kriterion.Trainer(model)
    trainer.compile("sgd", transforms=[kriterion.transforms.WeightNoise(0.5)], **arguments)
    for owner in (model, trainer):
        found = gradient_moments(owner, x, y)
        for a, b in zip(found.mean + found.variance, expected.mean + expected.variance, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_constant_and_extreme_gradients_have_finite_variances(random):
    """Equal examples: 0 to rounding and never negative; in float32 at every scale."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "relu"), layers.Dense(1)])
    model.compile("sgd", "mse")
    for scale in (1e-15, 1.0, 1e4):
        x = np.full((64, 3), scale, "float32")
        y = np.full((64, 1), scale, "float32")
        for estimator in ("exact", "probe", "micro_batch"):
            found = gradient_moments(model, x, y, estimator=estimator, seed=1)
            squared = max(np.max(np.square(m, dtype="float64")) for m in found.mean)
            for variance in found.variance:
                assert np.isfinite(variance).all()
                assert (variance >= 0).all()
                # Of sums of 64 terms, rounded in float32.
                assert variance.max() <= 64 * 2e-6 * squared + 1e-37


# Estimates


@pytest.fixture(scope="module")
def quadratic():
    """`(objective, weights, batch, h)` with known gradients g_i = mean + h_i, for a loss that is linear in w."""
    random = np.random.default_rng(3)
    g = random.gamma(1.0, size=(12, 5)) * [1.0, 2.0, 0.5, 1.0, 3.0]

    def objective(weights, batch):
        each = ops.sum(batch.x * weights[0], axis=-1)
        weight = 1.0 if batch.gradient_weight is None else batch.gradient_weight
        return ops.mean(each * weight), None

    return objective, [ops.zeros((5,))], g


def draws_of_probe(objective, weights, batch, count):
    gradients = ExampleGradients(objective, weights, batch, [True], differentiable=False)
    seeds = ops.convert_to_tensor(np.stack([np.full(count, 5), np.arange(count)], axis=1).astype("int32"))
    return numpy(backend.mapped(lambda seed: gradients.probe(seed)[0])(seeds)).astype("float64") ** 2


def test_probe_is_unbiased_and_its_variance_is_the_stated_one(quadratic):
    """Of 10,000 draws, mean and variance of v^2 within 4 standard errors, for each weight and for the trace."""
    objective, weights, g = quadratic
    count = 10_000 if backend.name == "jax" else 2_000
    squares = draws_of_probe(objective, weights, Batch(ops.convert_to_tensor(g, "float32")), count)
    h = g - g.mean(axis=0)
    n = len(g)
    variance = g.var(axis=0, ddof=1)
    spread = 2 * (variance**2 - np.sum(h**4, axis=0) / (n - 1) ** 2)
    gram = h @ h.T / (n - 1)
    of_trace = 2 * (np.sum(gram**2) - np.sum(np.diag(gram) ** 2))
    for found, mean, second in (
        (squares, variance, spread),
        (squares.sum(axis=1, keepdims=True), variance.sum(), np.array([of_trace])),
    ):
        assert (np.abs(found.mean(axis=0) - mean) < 4 * np.sqrt(second / count)).all()
        # The standard error of a sample variance, from the fourth moment that is found.
        centred = found - found.mean(axis=0)
        error = np.sqrt((np.mean(centred**4, axis=0) - np.mean(centred**2, axis=0) ** 2) / count)
        assert (np.abs(found.var(axis=0, ddof=1) - second) < 4 * error).all()


def test_micro_batches_are_unbiased_and_their_errors_are_the_stated_ones(random):
    """Over random partitions of a batch: the variance within 4 standard errors, the stated ones within a third."""
    n, parts, count = 24, 6, 400 if backend.name == "torch" else 1000
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    x = random.normal(size=(n, 3)).astype("float32")
    y = random.normal(size=(n, 1)).astype("float32")
    exact = gradient_moments(model, x, y)
    found = [
        gradient_moments(model, x, y, estimator="micro_batch", micro_batches=parts, seed=seed) for seed in range(count)
    ]
    variances = np.array([f.variance[0][:, 0] for f in found], dtype="float64")
    traces = np.array([f.trace for f in found])
    errors = variances.std(axis=0) / np.sqrt(count)
    assert (np.abs(variances.mean(axis=0) - exact.variance[0][:, 0]) < 4 * errors).all()
    assert abs(traces.mean() - exact.trace) < 4 * traces.std() / np.sqrt(count)
    # Stated for normal gradients; these are products of normal numbers, whose parts of four are nearly so.
    stated = np.sqrt(np.mean([f.trace_error**2 for f in found]))
    assert stated == pytest.approx(traces.std(), rel=1 / 3)
    relative = np.mean([f.variance_error[0] / f.variance[0] for f in found])
    assert relative == pytest.approx(np.mean(variances.std(axis=0) / variances.mean(axis=0)), rel=1 / 3)


def test_stated_error_of_probes(random):
    """The trace's, from the spread of the probes, is that of their mean: within a third over 200 repetitions."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    x, y = random.normal(size=(16, 3)).astype("float32"), random.normal(size=(16, 2)).astype("float32")
    exact = gradient_moments(model, x, y)
    found = [gradient_moments(model, x, y, estimator="probe", samples=4, seed=seed) for seed in range(200)]
    traces = np.array([f.trace for f in found])
    assert abs(traces.mean() - exact.trace) < 4 * traces.std() / np.sqrt(200)
    assert np.sqrt(np.mean([f.trace_error**2 for f in found])) == pytest.approx(traces.std(), rel=1 / 3)
    assert found[0].trace == gradient_moments(model, x, y, estimator="probe", samples=4, seed=0).trace
    assert gradient_moments(model, x, y, estimator="probe", samples=1, seed=0).trace_error == np.inf


def test_micro_batches_normalise_by_themselves(random):
    """With batch normalisation: b / (K - 1) sum_k (G_k - mean G)^2 with each G_k by a pass of its own."""
    model = network(outputs=1)
    model.layers[2].rate = 0.0
    model.compile("sgd", "mse")
    x, y = random.normal(size=(12, 5)).astype("float32"), random.normal(size=(12, 1)).astype("float32")
    found = gradient_moments(model, x, y, estimator="micro_batch", micro_batches=3, seed=2)
    order = np.random.default_rng(2).permutation(12).reshape(3, 4)
    rest = model.non_trainable_variables

    def of_rows(rows):
        def loss(values):
            pairs = [*zip(model.trainable_variables, values, strict=True), *((v, v.value) for v in rest)]
            with keras.StatelessScope(pairs):
                return ops.mean(ops.subtract(model(x[rows], training=True), y[rows]) ** 2), None

        values = [v.value for v in model.trainable_variables]
        return [numpy(g) for g in backend.value_and_gradient(loss, values, differentiable=False)[1]]

    parts = [np.stack(same) for same in zip(*(of_rows(rows) for rows in order), strict=True)]
    for variance, g in zip(found.variance, parts, strict=True):
        np.testing.assert_allclose(variance, 4 * g.var(axis=0, ddof=1), rtol=1e-3, atol=1e-6)


def test_sums_by_group(random, float64):
    """The closed forms by group are those of the examples in each, for every kind of layer."""
    for name in ("dense_and_dropout", "conv1d_and_layer_normalisation"):
        model, data = compiled(name, random)
        each = one_by_one(model, data)
        groups = np.array([0, 1, 1, 2, 0, 1])
        members = (groups[:, None] == np.arange(3)).astype("float64")
        objective = kriterion.gradients.moments._data_objective(model, True)
        batch = Batch(*(ops.convert_to_tensor(part) for part in data))
        weights = [v.value for v in model.trainable_variables]
        gradients = ExampleGradients(objective, weights, batch, [True] * len(weights), differentiable=False)
        first, second, _ = exact_sums(gradients, ops.convert_to_tensor(members))
        for f, s, g in zip(first, second, each, strict=True):
            scale = np.sum(g**2)
            np.testing.assert_allclose(numpy(f), np.tensordot(members.T, g, 1), rtol=1e-4, atol=1e-5 * np.sqrt(scale))
            np.testing.assert_allclose(numpy(s), np.tensordot(members.T, g**2, 1), rtol=1e-4, atol=1e-5 * scale)


# Running estimates


def test_running_variance_is_unbiased_from_the_second_step_on(random):
    """G ~ N(1, 0.25), 200,000 weights: within 1 % of the truth from step 2 to 40."""
    moments = RunningMoments.start([np.zeros(200_000, "float32")], beta=0.9)
    assert not np.isfinite(numpy(moments.updated([np.ones(200_000, "float32")]).variance[0])).any()
    for step in range(1, 41):
        moments = moments.updated([random.normal(1.0, 0.5, size=200_000).astype("float32")])
        if step > 1:
            assert numpy(moments.variance[0]).mean() == pytest.approx(0.25, rel=0.01)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=12),
    st.floats(0.05, 0.999),
    st.floats(-1e4, 1e4),
)
def test_running_moments_are_the_weighted_sums(values, beta, offset):
    """In float64 by NumPy; never negative, whatever the gradients' offset."""
    gradients = np.float32(np.array(values) + offset).astype("float64")
    moments = RunningMoments.start([np.zeros((), "float32")], beta=beta)
    for gradient in gradients:
        moments = moments.updated([np.float32(gradient)])
    weights = beta ** np.arange(len(gradients))[::-1]
    weights /= weights.sum()
    mean = weights @ gradients
    variance = weights @ (gradients - mean) ** 2 / (1 - weights @ weights)
    scale = np.abs(gradients).max()
    # What is smaller is flushed to 0, in each of a few terms.
    tiny = 100 * np.finfo("float32").tiny
    assert float(numpy(moments.mean[0])) == pytest.approx(mean, rel=1e-5, abs=1e-5 * scale + tiny)
    found = float(numpy(moments.variance[0]))
    assert found >= 0.0
    # A rounding of the mean by 1e-6 of its size, next to differences of the size of the standard deviation.
    assert found == pytest.approx(variance, rel=1e-3, abs=1e-11 * scale**2 + 1e-5 * scale * np.sqrt(variance) + tiny)


# What follows from the moments


def noisy_batches(random, batches=400, n=64, dimension=50, squared_norm=0.5):
    """Gradients of examples with trace `dimension` and |G|^2 = `squared_norm`."""
    true = np.full(dimension, np.sqrt(squared_norm / dimension))
    return [GradientMoments.of_examples([true + random.normal(size=(n, dimension))]) for _ in range(batches)]


def test_noise_scale_of_known_noise(random):
    """B = 50 / 0.5 = 100, by moments, by two batch sizes and by replicas, each within 3 standard errors.

    The error is dominated by |G|^2, whose estimate from a batch of n has the variance 4 |G|^2 / n + 2 D / n^2.
    """
    moments = noisy_batches(random)
    error = 100 * np.sqrt(4 * 0.5 / 64 + 2 * 50 / 64**2) / 0.5 / np.sqrt(400)
    assert noise_scale(moments) == pytest.approx(100, abs=3 * error)
    small, large, replicas = [], [], []
    for _ in range(400):
        parts = np.sqrt(0.5 / 50) + random.normal(size=(8, 8, 50)).mean(axis=1)
        small.append(np.mean(np.sum(parts**2, axis=1)))
        large.append(np.sum(parts.mean(axis=0) ** 2))
        replicas.append([[part] for part in parts])
    assert noise_scale_of_sizes(small, large, 8, 64) == pytest.approx(100, abs=3 * error)
    one = noise_scale_of_replicas(replicas[0], 8)
    assert one == pytest.approx(noise_scale_of_sizes(small[0], large[0], 8, 64))


def test_noise_scale_without_signal_is_infinite():
    moments = GradientMoments.of_examples([np.array([[1.0, -1.0], [-1.0, 1.0]])])
    assert noise_scale(moments) == np.inf
    assert noise_scale_of_sizes(1.0, 0.1, 1, 2) == np.inf


def test_critical_batch_size_is_that_of_the_tradeoff():
    sizes = [16, 64, 256, 1024]
    steps = [300 * training_cost(size, 90.0).steps for size in sizes]
    assert critical_batch_size(sizes, steps) == pytest.approx(90.0)
    assert training_cost(90.0, 90.0) == (2.0, 2.0)
    cost = training_cost(20.0, 90.0)
    assert (cost.steps - 1) * (cost.examples - 1) == pytest.approx(1.0)
    assert critical_batch_size([16, 64], [300, 300]) == pytest.approx(0.0, abs=1e-9)


def test_batch_tests_are_their_formulas(random):
    g = random.normal(1.0, 2.0, size=(40, 6))
    moments = GradientMoments.of_examples([g[:, :2], g[:, 2:].reshape(40, 2, 2)])
    mean = g.mean(axis=0)
    norm = norm_test(moments, theta=0.3)
    assert norm.squared_error == pytest.approx(g.var(axis=0, ddof=1).sum() / 40 / (mean @ mean))
    assert norm.batch_size == pytest.approx(g.var(axis=0, ddof=1).sum() / (mean @ mean) / 0.09)
    product = inner_product_test(moments, theta=0.3)
    assert product.squared_error == pytest.approx(np.var(g @ mean, ddof=1) / 40 / (mean @ mean) ** 2)
    for test in (norm, product):
        assert test.passed == (test.squared_error <= 0.09)
        assert test.passed == (test.batch_size <= 40)
    assert product.squared_error < norm.squared_error
    assert cabs_batch_size(moments, 0.5, 0.1) == pytest.approx(0.2 * g.var(axis=0, ddof=1).sum())


def test_evidence_and_signal_to_noise_have_their_expectations(random):
    """Pure noise: the evidence is 0 on average (n - 1) / (n - 3)'s correction aside, the ratio's numerator too."""
    found, n, dimension = [], 50, 40
    for _ in range(300):
        moments = GradientMoments.of_examples([random.normal(size=(n, dimension))])
        found.append(evidence(moments))
    # n mean^2 / V is an F(1, n - 1) variable.
    expected = 1 - (n - 1) / (n - 3)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(300)
    moments = GradientMoments.of_examples([random.normal(2.0, 0.5, size=(4000, 300))])
    # 2^2 / 0.5^2 = 16, to 4 standard errors of a ratio of 4,000 examples.
    assert np.mean(signal_to_noise(moments)[0]) == pytest.approx(16.0, rel=4 * np.sqrt(2 / 4000) / np.sqrt(300) + 1e-3)
    assert evidence(moments) < 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: gradient_moments("model", x), TypeError, ["`model`", "keras.Model"]),
        (lambda m, x: gradient_moments(network(), x), ValueError, ["`model`", "compiled"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], estimator="best"), ValueError, ["`estimator`", "'exact'", "'best'"]),
        (lambda m, x: gradient_moments(m, x, x[:4, :2]), ValueError, ["`x`", "same number of rows"]),
        (lambda m, x: gradient_moments(m, x[:1], x[:1, :2]), ValueError, ["at least 2", "1"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], estimator="micro_batch", micro_batches=9), ValueError, ["at least 9", "8"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2]), ValueError, ["batch_normalization", "micro_batch"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], estimator="probe"), ValueError, ["batch_normalization", "micro_batch"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], samples=0), ValueError, ["`samples`", ">= 1"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], training=1), TypeError, ["`training`", "1"]),
        (lambda m, x: noise_scale([]), ValueError, ["`moments`", "none"]),
        (lambda m, x: noise_scale_of_sizes(1.0, 1.0, 8, 8), ValueError, ["`large_size`", ">= 9", "8"]),
        (lambda m, x: noise_scale_of_replicas([[x]], 8), ValueError, ["`gradients`", "2 replicas", "1"]),
        (lambda m, x: training_cost(0.0, 1.0), ValueError, ["`batch_size`", "> 0"]),
        (lambda m, x: critical_batch_size([8, 8], [1, 2]), ValueError, ["`batch_sizes`", "two sizes"]),
        (lambda m, x: norm_test(GradientMoments.of_examples([x]), theta=0.0), ValueError, ["`theta`", "> 0"]),
        (lambda m, x: evidence(GradientMoments.of_examples([np.ones((3, 2))])), ValueError, ["varies", "all 0"]),
        (lambda m, x: cabs_batch_size(GradientMoments.of_examples([x]), 0.0, 0.1), ValueError, ["`loss`", "> 0"]),
        (lambda m, x: RunningMoments.start([x], beta=1.0), ValueError, ["`beta`", "< 1"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(call, error, words, random):
    model = network()
    model.compile("sgd", "mse")
    with told(error, words):
        call(model, random.normal(size=(8, 5)).astype("float32"))


def test_micro_batches_need_a_mean(random):
    """A sum over a part is not the part's share of a sum over the batch; the other estimators take shares."""
    x, y = random.normal(size=(8, 5)).astype("float32"), random.normal(size=(8, 2)).astype("float32")
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    found = []
    for reduction in ("sum", "sum_over_batch_size"):
        model.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction))
        found.append(gradient_moments(model, x, y).trace)
    assert found[0] == pytest.approx(64 * found[1], rel=1e-5)
    model.compile("sgd", keras.losses.MeanSquaredError(reduction="sum"))
    with told(ValueError, ['"micro_batch"', 'reduction="sum"']):
        gradient_moments(model, x, y, estimator="micro_batch")


def test_examples_that_depend_on_each_other_are_found_out(random):
    """By a layer of the user's own, and dropout where examples pass by themselves."""

    class Centred(layers.Layer):
        def call(self, x):
            return x - ops.mean(x, axis=0)

    x, y = random.normal(size=(8, 5)).astype("float32"), random.normal(size=(8, 2)).astype("float32")
    for parts, words in (
        ([Centred(), layers.LayerNormalization(), layers.Dense(2)], ["do not depend on each other", '"probe"']),
        ([layers.LayerNormalization(), layers.Dropout(0.5), layers.Dense(2)], ["dropout", "layer_normalization"]),
    ):
        model = keras.Sequential([keras.Input((5,)), *parts])
        model.compile("sgd", "mse")
        with told(ValueError, words):
            gradient_moments(model, x, y)
        assert gradient_moments(model, x, y, estimator="probe").trace > 0
