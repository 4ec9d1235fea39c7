"""Noise for each example: its law in every kind of layer, by the layer's own linear map, and what is refused."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, ops

import minimand
from minimand import backend
from minimand._scope import forked_scope
from minimand.transforms import Batch, ScaleMixturePrior, VariationalWeightNoise, WeightNoise
from tests.helpers import mostly_slow, numpy, told

DRAWS = 400
# Input shape and layer; a convolution that PyTorch and TensorFlow can both do on a CPU.
LAYERS = {
    "dense": ((4,), partial(layers.Dense, 3)),
    "dense_of_sequences": ((3, 4), partial(layers.Dense, 2)),
    "einsum": ((3, 4), partial(layers.EinsumDense, "abc,cde->abde", (3, 2, 2), bias_axes="de")),
    "einsum_of_all": ((3, 2), partial(layers.EinsumDense, "abc,bcd->ad", (3,), bias_axes="d")),
    "einsum_ellipsis": ((3, 4), partial(layers.EinsumDense, "...c,cd->...d", (3, 2), bias_axes="d")),
    "conv1d": ((5, 2), partial(layers.Conv1D, 2, 3, padding="causal")),
    "conv2d": ((3, 3, 2), partial(layers.Conv2D, 2, 2, padding="same")),
    "conv2d_transpose": ((2, 2, 2), partial(layers.Conv2DTranspose, 2, 2)),
    "depthwise": ((3, 3, 2), partial(layers.DepthwiseConv2D, 2, depth_multiplier=2)),
}


def at_least_float32(name, **arguments):
    shape, layer = LAYERS[name]
    model = keras.Sequential([keras.Input(shape), layer(**arguments)])
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.get_weights()])
    return model


def outputs(transform, model, x, draws=DRAWS):
    """The model's outputs in so many steps, (draws, rows, features); of each step the first pass."""
    transform.build(model)
    seeds = np.stack([np.full(draws, 7), 2 * np.arange(draws)], axis=1)
    weights = [variable.value for variable in model.trainable_variables]

    def draw(seed, x):
        seen = []

        def objective(values, batch):
            with forked_scope(zip(model.trainable_variables, values, strict=True)):
                seen.append(model(batch.x, training=True))
            return ops.sum(seen[-1]), None

        with keras.StatelessScope([(transform.seed_generator.state, seed)]):
            transform.apply(objective)(weights, Batch(x))
        return seen[0]

    x = ops.convert_to_tensor(x, "float32")
    found = backend.vmap(draw)(ops.cast(ops.convert_to_tensor(seeds), "int32"), x)
    return numpy(found).astype("float64").reshape(draws, len(x), -1)


def jacobian(model, x):
    """Of the outputs of each row by the weights, brute force: (rows, features, weights); the model is linear in them."""
    start = model.get_weights()
    columns = []
    for index, weight in enumerate(start):
        for entry in range(weight.size):
            unit = [np.zeros_like(w) for w in start]
            unit[index].flat[entry] = 1.0
            model.set_weights(unit)
            columns.append(numpy(model(x)).reshape(len(x), -1))
    model.set_weights(start)
    return np.stack(columns, axis=-1).astype("float64")


def assert_law(noise, covariance):
    """Mean 0 and this covariance, within 5 standard errors: E[a^2 b^2] is at most 3 var(a) var(b) for normal sums."""
    noise = noise.reshape(len(noise), -1)
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(noise.mean(axis=0)) <= 5 * deviation / np.sqrt(len(noise)) + 1e-6).all()
    found = noise.T @ noise / len(noise)
    assert (np.abs(found - covariance) <= 5 * np.sqrt(3 / len(noise)) * np.outer(deviation, deviation) + 1e-6).all()


def blocks(*matrices):
    sizes = [len(m) for m in matrices]
    whole = np.zeros((sum(sizes), sum(sizes)))
    for end, m in zip(np.cumsum(sizes), matrices, strict=True):
        whole[end - len(m) : end, end - len(m) : end] = m
    return whole


@pytest.mark.parametrize("name", mostly_slow(LAYERS, *list(LAYERS)[:2]))
def test_each_example_has_the_law_of_noise_on_the_weights(name, random):
    """Covariance s^2 J J' within an example, with J the derivative by kernel and bias, and 0 between examples."""
    model = at_least_float32(name)
    x = random.normal(size=(2, *LAYERS[name][0])).astype("float32")
    x[1, ..., 0] = 0.0
    noise = outputs(WeightNoise(0.3, select="all", per="example", seed=1), model, x) - numpy(model(x)).reshape(2, -1)
    assert_law(noise, blocks(*(0.09 * j @ j.T for j in jacobian(model, x))))


@pytest.mark.parametrize("name", ["dense", "conv1d"])
@pytest.mark.parametrize("mode", ["relative", "layer", "filter"])
def test_modes(name, mode, random):
    """The derivative by the weights times c(w)."""
    model = at_least_float32(name, use_bias=False)
    x = random.normal(size=(1, *LAYERS[name][0])).astype("float32")
    (w,) = model.get_weights()
    axes = tuple(range(w.ndim - (mode == "filter")))
    scale = w if mode == "relative" else np.sqrt(np.mean(w**2, axis=axes, keepdims=True))
    noise = outputs(WeightNoise(0.3, mode=mode, per="example", seed=1), model, x) - numpy(model(x)).reshape(1, -1)
    (j,) = 0.3 * jacobian(model, x) * np.broadcast_to(scale, w.shape).ravel()
    assert_law(noise, j @ j.T)


@pytest.mark.parametrize("law", ["uniform", "rademacher"])
def test_other_laws_are_those_of_flipped_signs(law, random):
    """Normal sums have the largest fourth moment of the three laws."""
    model = at_least_float32("dense", use_bias=False)
    x = random.normal(size=(2, 4)).astype("float32")
    noise = outputs(WeightNoise(0.3, distribution=law, per="example", seed=1), model, x) - numpy(model(x))
    assert_law(noise, blocks(*(0.09 * j @ j.T for j in jacobian(model, x))))
    if law == "rademacher":
        # Of an example with one input, each output's noise is that of one weight: plus or minus s x.
        one = outputs(WeightNoise(0.3, distribution=law, per="example", seed=1), model, x * [1.0, 0, 0, 0], draws=20)
        np.testing.assert_allclose(np.abs(one - numpy(model(x * np.float32([1, 0, 0, 0])))), 0.3 * np.abs(x[:, :1])
                                   * np.ones((20, 1, 3)), rtol=1e-4)  # fmt: skip


def test_the_gradient_varies_less_than_with_one_draw_for_the_batch(random):
    """At 128 examples of a linear regression, by a factor that grows with the batch; here at least 10."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, use_bias=False)])
    x, y = random.normal(size=(128, 4)).astype("float32"), random.normal(size=(128, 1)).astype("float32")
    variances = {}
    for per in ("batch", "example"):
        predictions = outputs(WeightNoise(0.3, per=per, seed=1), model, x, draws=300)
        gradients = np.einsum("kno,ni->ki", predictions - y, x) / len(x)
        variances[per] = gradients.var(axis=0).sum()
    assert variances["example"] < variances["batch"] / 10


@pytest.mark.slow
def test_antithetic_passes_are_opposite(random):
    model = at_least_float32("conv2d")
    x = random.normal(size=(2, 3, 3, 2)).astype("float32")
    transform = WeightNoise(0.3, per="example", antithetic=True, samples=2, seed=1)
    transform.build(model)
    seen = []

    def objective(values, batch):
        seen.append(numpy(model(batch.x)))
        return ops.sum(values[0]), None

    transform.apply(objective)([v.value for v in model.trainable_variables], Batch(ops.convert_to_tensor(x)))
    first, second = seen[0] - numpy(model(x)), seen[2] - numpy(model(x))
    np.testing.assert_allclose(seen[1] - numpy(model(x)), -first, atol=1e-5)
    np.testing.assert_allclose(seen[3] - numpy(model(x)), -second, atol=1e-5)
    assert np.abs(first - second).max() > 0.01


def test_other_weights_have_one_draw_for_the_batch(random):
    """An embedding's, while the kernel that gets noise per example stays as it is."""
    model = keras.Sequential([keras.Input((3,)), layers.Embedding(5, 4), layers.Flatten(), layers.Dense(2)])
    transform = WeightNoise(0.3, per="example", seed=1)
    transform.build(model)
    weights = [v.value for v in model.trainable_variables]
    seen = []

    def objective(values, batch):
        seen.extend(numpy(v) for v in values)
        return ops.sum(values[0]), None

    transform.apply(objective)(weights, Batch(None))
    same = [np.array_equal(a, numpy(b)) for a, b in zip(seen, weights, strict=True)]
    assert same == [False, True, True]


def test_learned_noise_on_what_is_summed(random, monkeypatch):
    """Of noise +1 and -1, the mean squared error is exactly that of the posterior: r^2 + sum of x^2 s^2 + s_b^2."""
    x, y = random.normal(size=(6, 3)).astype("float32"), random.normal(size=(6, 1)).astype("float32")
    monkeypatch.setattr(backend, "noise", lambda law, shapes, seed, scale=1.0: [ops.ones(shape) for shape in shapes])
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    transform = VariationalWeightNoise(per="example", antithetic=True, kl_weight=0.5)
    transform.build(model)
    s = [random.uniform(0.1, 1.0, size=v.shape).astype("float32") for v in model.trainable_variables]
    for weight, stddev in zip(transform.selected, s, strict=True):
        transform.variable_of(weight, "log_stddev").assign(np.log(stddev))
    weights = [v.value for v in model.trainable_variables]

    def objective(values, batch):
        return ops.mean((model(batch.x) - batch.y) ** 2), None

    loss = transform.apply(objective)(weights, Batch(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))[0]
    expected = np.mean((numpy(model(x)) - y) ** 2 + x**2 @ s[0] ** 2 + s[1] ** 2)
    penalty = float(numpy(transform.divergence(weights, [])))
    assert float(numpy(loss)) == pytest.approx(expected + 0.5 * penalty, rel=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightNoise(0.1, mode="relative", per="example"),
        lambda: VariationalWeightNoise(per="example"),
    ],
)
@pytest.mark.slow
def test_training_is_finite_where_inputs_are_zero(make, policy, random):
    """The root of a sum that is 0 has no derivative; activations and masks of the layer stay."""
    x = np.zeros((32, 6, 6, 1), "float32")
    x[:16] = 300 * random.normal(size=(16, 6, 6, 1))
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(2, 3, activation="relu", dtype=policy),
            layers.Flatten(),
            layers.Dense(3, activation=layers.LeakyReLU(), dtype=policy),
            layers.Dense(1, dtype="float32"),
        ]
    )
    trainer = minimand.Trainer(model)
    trainer.compile("adam", "mae", transforms=[make()])
    before = model.get_weights()
    history = trainer.fit(x, np.zeros((32, 1)), batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True))
    # Nothing of it stays in the layers.
    assert not any("call" in vars(layer) or vars(layer).get("activation", 0) is None for layer in model.layers)


def twice():
    layer, x = layers.Dense(4), keras.Input((4,))
    return keras.Model(x, layer(layer(x)))


def test_a_layer_that_is_called_twice(random):
    """Its sums would get the same numbers; Flipout has one draw of weights for both calls, so that may."""
    transform = WeightNoise(0.1, per="example")
    with told(NotImplementedError, ["called more than once", "per="]):
        outputs(transform, twice(), random.normal(size=(2, 4)), draws=2)
    model = twice()
    found = outputs(WeightNoise(0.1, per="example", distribution="uniform"), model, np.ones((2, 4)), draws=2)
    assert np.abs(found - numpy(model(np.ones((2, 4))))).max() > 0


def adapted():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.layers[0].enable_lora(2)
    return model


def tied():
    first, second, x = layers.Dense(4), layers.Dense(4), keras.Input((4,))
    first.build((None, 4))
    second.build((None, 4))
    vars(second)["_kernel"] = first.kernel
    return keras.Model(x, second(first(x)))


def per_row():
    layer = layers.EinsumDense("ab,abc->ac", (2, 3))
    return keras.Sequential([keras.Input((4,), batch_size=2), layer])


@pytest.mark.parametrize(
    "model", [adapted, tied, per_row, lambda: keras.Sequential([keras.Input((3, 2)), layers.LSTM(2)])]
)
def test_models_without_a_suitable_kernel_are_refused(model):
    with told(ValueError, ["per=", "Dense", "select", 'per="batch"']):
        WeightNoise(0.1, per="example").build(model())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(WeightNoise, 0.1, per="row"), ["per", "row", "example"]),
        (partial(WeightNoise, 0.1, per="example", distribution="bernoulli", mode="relative"), ["bernoulli", "batch"]),
        (partial(VariationalWeightNoise, per="example", prior=ScaleMixturePrior()), ["ScaleMixturePrior", "batch"]),
        (partial(VariationalWeightNoise, per="step"), ["per", "step"]),
    ],
)
def test_bad_arguments_are_told(make, words):
    with told(ValueError, words):
        make()
