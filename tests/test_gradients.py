"""Moments of the gradients of single examples: exact ones, and estimates of them."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers, ops

import minimand
from minimand import backend
from minimand._batches import Batch
from minimand._objective import data_objective_of
from minimand.gradients import (
    GradientMoments,
    gradient_moments,
)
from minimand.gradients._exact import exact_sums
from minimand.gradients._examples import ExampleGradients
from minimand.transforms._gradient_measures import fixed_gradients
from tests.helpers import compiled, mostly_slow, network, numpy, told


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


def _einsum():
    parts = [
        layers.EinsumDense("ab,bc->abc", (5, 3), bias_axes="bc", activation="tanh"),
        layers.EinsumDense("abc,bcd->adb", (2, 5), bias_axes="db", activation="tanh"),
        # These use a weight several times for an example, and share a bias between outputs.
        layers.EinsumDense("adb,bc->adc", (2, 3), bias_axes="c"),
        layers.EinsumDense("adc,dce->ade", (2, 3), bias_axes="d"),
    ]
    return keras.Sequential([keras.Input((5,)), *parts, layers.Flatten(), layers.Dense(2)])


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
    "einsum": (_einsum, (5,)),
    "conv3d": (_conv3d, (3, 4, 3, 2)),
    "depthwise": (_depthwise, (6, 5, 2)),
    "embedding_and_lstm": (_lstm, None),
    "masked_sequences": (_masked_sequences, None),
    "attention_and_tied_weights": (_attention_and_tied_weights, (4, 3)),
    "frozen_batch_normalisation": (_frozen_batch_normalisation, (5,)),
    "subclassed": (Subclassed, (5,)),
}
ROWS = 6


def model_and_batch(name, random, **arguments):
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

    def gradient(values, alone):
        def loss(values):
            pairs = [*zip(variables, values, strict=True), *((v, v.value) for v in rest)]
            with keras.StatelessScope(pairs):
                y_pred = model(x, training=True)
                return model._compile_loss(y, y_pred, alone), None

        return backend.value_and_gradient(loss, values, differentiable=False)[1]

    gradient, values = compiled(gradient), [v.value for v in variables]
    found = []
    for row in range(ROWS):
        alone = np.zeros_like(base)
        alone[row] = base[row]

        gradients = gradient(values, ops.convert_to_tensor(alone))
        found.append([ROWS * numpy(g).astype("float64") for g in gradients])
    return [np.stack(same) for same in zip(*found, strict=True)]


@pytest.mark.parametrize("name", mostly_slow(MODELS, "dense_and_dropout", "conv2d", "frozen_batch_normalisation"))
def test_exact_moments_are_those_of_a_loop_over_examples(name, random, float64):
    """In float64: mean, variance, trace and the variance along the mean; the model's variables are left alone."""
    model, data = model_and_batch(name, random)
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
    model, data = model_and_batch(name, random)
    trainer = minimand.Trainer(model)
    trainer.compile("sgd", "mse")
    batch = Batch(*trainer.prepare(*data))
    weights = [v.value for v in model.trainable_variables]
    state = [(v, v.value) for v in trainer.variables]
    coefficients = ops.convert_to_tensor(random.normal(size=ROWS))
    with keras.StatelessScope(state):
        objective = trainer.data_objective()
        aux = objective(weights, batch)[1]
        kept = fixed_gradients(objective, weights, batch, aux, [True] * len(weights))
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

    @compiled
    def gradient(values, x, y):
        def loss(values):
            with keras.StatelessScope(list(zip(model.trainable_variables, values, strict=True))):
                p = model(x)
            u, v = (ops.subtract(p[key], y[key]) for key in "uv")
            return ops.mean(u**2) + 0.5 * ops.mean(ops.abs(v)), None

        return backend.value_and_gradient(loss, values, differentiable=False)[1]

    values = [v.value for v in model.trainable_variables]
    rows = [keras.tree.map_structure(lambda part, row=row: part[row : row + 1], (x, y)) for row in range(ROWS)]
    each = [[numpy(g) for g in gradient(values, *row)] for row in rows]
    expected = GradientMoments.of_examples([np.stack(same) for same in zip(*each, strict=True)])
    trainer = minimand.Trainer(model)
    trainer.compile("sgd", transforms=[minimand.transforms.WeightNoise(0.5)], **arguments)
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
    return numpy(backend.vmap(lambda seed: gradients.probe(seed)[0])(seeds)).astype("float64") ** 2


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

    @compiled
    def gradient(values, x, y):
        def loss(values):
            pairs = [*zip(model.trainable_variables, values, strict=True), *((v, v.value) for v in rest)]
            with keras.StatelessScope(pairs):
                return ops.mean(ops.subtract(model(x, training=True), y) ** 2), None

        return backend.value_and_gradient(loss, values, differentiable=False)[1]

    values = [v.value for v in model.trainable_variables]
    each = [[numpy(g) for g in gradient(values, x[rows], y[rows])] for rows in order]
    parts = [np.stack(same) for same in zip(*each, strict=True)]
    for variance, g in zip(found.variance, parts, strict=True):
        np.testing.assert_allclose(variance, 4 * g.var(axis=0, ddof=1), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_sums_by_group(random, float64):
    """The closed forms by group are those of the examples in each, for every kind of layer."""
    for name in ("dense_and_dropout", "conv1d_and_layer_normalisation"):
        model, data = model_and_batch(name, random)
        each = one_by_one(model, data)
        groups = np.array([0, 1, 1, 2, 0, 1])
        members = (groups[:, None] == np.arange(3)).astype("float64")
        objective = data_objective_of(model, True)
        batch = Batch(*(ops.convert_to_tensor(part) for part in data))

        def sums(weights, members, objective=objective, batch=batch):
            gradients = ExampleGradients(objective, weights, batch, [True] * len(weights), differentiable=False)
            return exact_sums(gradients, members)[:2]

        first, second = compiled(sums)([v.value for v in model.trainable_variables], ops.convert_to_tensor(members))
        for f, s, g in zip(first, second, each, strict=True):
            scale = np.sum(g**2)
            np.testing.assert_allclose(numpy(f), np.tensordot(members.T, g, 1), rtol=1e-4, atol=1e-5 * np.sqrt(scale))
            np.testing.assert_allclose(numpy(s), np.tensordot(members.T, g**2, 1), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: gradient_moments("model", x), TypeError, ["`model`", "keras.Model"]),
        (lambda m, x: gradient_moments(network(), x), ValueError, ["`model`", "compiled"]),
        (lambda m, x: gradient_moments(m, x, x[:4, :2]), ValueError, ["`x`", "same number of rows"]),
        (lambda m, x: gradient_moments(m, x[:1], x[:1, :2]), ValueError, ["at least 2", "1"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], estimator="micro_batch", micro_batches=9), ValueError, ["at least 9", "8"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2]), ValueError, ["batch_normalization", "micro_batch"]),
        (lambda m, x: gradient_moments(m, x, x[:, :2], estimator="probe"), ValueError, ["batch_normalization", "micro_batch"]),
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
