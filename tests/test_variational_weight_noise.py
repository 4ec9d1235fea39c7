"""Variational inference: the divergence, posteriors in closed form, and the size of the training set."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import integrate, optimize, stats

import minimand
from minimand import backend
from minimand._batches import training_examples
from minimand.transforms import Batch, ScaleMixturePrior, VariationalWeightNoise
from minimand.transforms._variational import empirical_bayes_divergence, normal_divergence
from tests.helpers import assert_same, data, mostly_slow, network, numpy, told, weights_of
from tests.parts.losses import HALF_SQUARED


def dense(features, outputs=1, **arguments):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(outputs, **arguments)])


def built(model, **arguments):
    transform = VariationalWeightNoise(**arguments)
    transform.build(model)
    return transform


def divergence(transform, weights, draws=()):
    return float(numpy(transform.divergence([ops.convert_to_tensor(w) for w in weights], list(draws))))


def log_stddevs(transform):
    return [transform.variable_of(weight, "log_stddev") for weight in transform.selected]


def set_stddevs(transform, *stddevs):
    for variable, stddev in zip(log_stddevs(transform), stddevs, strict=True):
        variable.assign(np.log(stddev))


def test_divergence_from_a_normal_prior(random):
    """Summed over kernel and bias, by SciPy's integral of q log(q / p) for each weight."""
    m, s = (
        [random.normal(size=shape).astype("float32") for shape in ((3, 2), (2,))],
        [random.uniform(0.1, 2.0, size=shape).astype("float32") for shape in ((3, 2), (2,))],
    )
    transform = built(dense(3, 2), prior=0.7)
    set_stddevs(transform, *s)

    def one(mean, stddev):
        q, p = stats.norm(mean, stddev), stats.norm(0.0, 0.7)
        return integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)), mean - 12 * stddev, mean + 12 * stddev)[
            0
        ]

    expected = sum(one(a, b) for ms, ss in zip(m, s, strict=True) for a, b in zip(ms.ravel(), ss.ravel(), strict=True))
    assert divergence(transform, m) == pytest.approx(expected, rel=1e-6)


def test_empirical_bayes_is_the_best_normal_prior(random):
    """The least divergence over p, of each tensor; and the gradient is that at the best p, held fixed."""
    m, s = random.normal(size=(3, 2)).astype("float32"), random.uniform(0.1, 2.0, size=(3, 2)).astype("float32")
    model = dense(3, 2, use_bias=False)
    transforms = {"best": built(model, prior="empirical_bayes")}

    def at(p):
        return float(np.sum(np.log(p / s) + (s**2 + m**2) / (2 * p**2) - 0.5))

    found = optimize.minimize_scalar(lambda r: at(np.exp(r)), bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    transforms["fixed"] = built(model, prior=float(np.exp(found.x)))
    gradients = {}
    for name, transform in transforms.items():
        set_stddevs(transform, s)
        assert divergence(transform, [m]) == pytest.approx(found.fun, rel=1e-5)
        _, (gradients[name],) = backend.value_and_gradient(
            lambda values, transform=transform: (transform.divergence(values, []), None), [ops.convert_to_tensor(m)]
        )
    np.testing.assert_allclose(numpy(gradients["best"]), numpy(gradients["fixed"]), rtol=1e-4)


def test_divergence_of_normal_laws(float64):
    m, s, p = 0.3, 0.7, 1.9
    q, prior = stats.norm(m, s), stats.norm(0, p)
    expected = integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - prior.logpdf(w)), -8, 8, epsabs=0, epsrel=1e-12)[0]
    mean, log_stddev = (ops.convert_to_tensor(np.array([v])) for v in (m, np.log(s)))
    assert float(numpy(normal_divergence(mean, log_stddev, p))) == pytest.approx(expected, rel=1e-11)
    least = float(numpy(normal_divergence(mean, log_stddev, np.sqrt(m**2 + s**2))))
    assert float(numpy(empirical_bayes_divergence(mean, log_stddev))) == pytest.approx(least, rel=1e-13)


def test_divergence_from_a_mixture_is_estimated_without_bias(random):
    """Over 20,000 weights that have one posterior, within 4 standard errors of the integral."""
    prior = ScaleMixturePrior(1.0, 0.1, share=0.3)
    e = random.normal(size=20000)
    m, s = 0.2, 0.3
    q = stats.norm(m, s)

    def log_p(w):
        return np.log(0.3 * stats.norm.pdf(w, 0, 1.0) + 0.7 * stats.norm.pdf(w, 0, 0.1))

    exact = integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - log_p(w)), m - 10 * s, m + 10 * s)[0]
    each = q.logpdf(m + s * e) - log_p(m + s * e)
    estimate = prior.divergence(
        *(ops.convert_to_tensor(v.astype("float32")) for v in (np.full_like(e, m), e)), np.float32(np.log(s))
    )
    # What does not depend on w, log sqrt(2 pi), is left out of both densities.
    assert float(numpy(estimate)) == pytest.approx(each.sum(), rel=1e-4)
    assert abs(each.mean() - exact) < 4 * each.std() / np.sqrt(len(e))


SIGNS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], "float32")


def fitted(x, y, monkeypatch, **arguments):
    """Trained on all rows at a time, with four pairs of draws that have exactly the noise's first three moments."""
    drawn = iter(range(10**9))

    def noise(law, shapes, seed, scale=1.0):
        (shape,), row = shapes, SIGNS[next(drawn) % 4]
        return [ops.convert_to_tensor(row.reshape(shape) * scale)]

    monkeypatch.setattr(backend, "noise", noise)
    transform = VariationalWeightNoise(samples=4, antithetic=True, init=0.1, kl_weight=1 / len(x), **arguments)
    model = dense(x.shape[1], use_bias=False)
    trainer = minimand.Trainer(model)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 150)
    trainer.compile(keras.optimizers.Adam(rate), HALF_SQUARED, transforms=[transform])
    trainer.fit(np.tile(x, (150, 1)), np.tile(y, (150, 1)), batch_size=len(x), shuffle=False, verbose=0)
    (log_stddev,) = log_stddevs(transform)
    return model.get_weights()[0][:, 0], np.exp(numpy(log_stddev))[:, 0]


def test_bayesian_linear_regression(random, monkeypatch):
    """y ~ N(x . w, 1), w ~ N(0, 0.5^2): the posterior's mean, and its precisions' diagonal, to 1 %."""
    x = random.normal(size=(30, 4)).astype("float32")
    x[:, 1] += x[:, 0]
    y = (x @ [[0.5], [-1.0], [0.3], [0.0]] + random.normal(size=(30, 1))).astype("float32")
    mean, stddev = fitted(x, y, monkeypatch, prior=0.5)
    precision = x.T @ x + np.eye(4) / 0.25
    np.testing.assert_allclose(mean, np.linalg.solve(precision, x.T @ y)[:, 0], rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(stddev, 1 / np.sqrt(np.diag(precision)), rtol=0.01)


def test_bayesian_linear_regression_by_empirical_bayes(random, monkeypatch):
    """The same with the prior of p^2 = mean(m^2 + s^2): the fixed point of the two."""
    x = random.normal(size=(30, 4)).astype("float32")
    y = (x @ [[0.5], [-1.0], [0.3], [0.2]] + random.normal(size=(30, 1))).astype("float32")
    mean, stddev = fitted(x, y, monkeypatch, prior="empirical_bayes")
    variance = 1.0
    for _ in range(200):
        precision = x.T @ x + np.eye(4) / variance
        m, s = np.linalg.solve(precision, x.T @ y)[:, 0], 1 / np.sqrt(np.diag(precision))
        variance = np.mean(m**2 + s**2)
    np.testing.assert_allclose(mean, m, rtol=0.01, atol=1e-3)
    np.testing.assert_allclose(stddev, s, rtol=0.01)


def test_the_divergence_s_factor():
    """Temperature over examples, rising during the warm-up."""
    transform = VariationalWeightNoise(temperature=0.5, warm_up=4, kl_weight="auto")
    transform.build(dense(5, 2))
    transform.begin_fit(40)
    factors = []
    for _ in range(6):
        loss, _ = transform.apply(lambda weights, batch: (ops.convert_to_tensor(0.0), None))(
            [v.value for v in transform.selected], Batch(None)
        )
        factors.append(float(numpy(loss)) / divergence(transform, [v.value for v in transform.selected]))
    np.testing.assert_allclose(factors, np.array([0, 0.25, 0.5, 0.75, 1, 1]) * 0.5 / 40, rtol=1e-4)


def test_starting_from_a_trained_model(random):
    """Standard deviations a tenth of the weights, and a prior that is centred at them."""
    model = dense(3, 2)
    model.set_weights([random.normal(size=(3, 2)), np.array([0.0, 2.0])])
    transform = built(model, prior=0.7, init="moped")
    stddevs = [np.maximum(0.1 * np.abs(w), 1e-3) for w in model.get_weights()]
    for variable, expected in zip(log_stddevs(transform), stddevs, strict=True):
        np.testing.assert_allclose(np.exp(variable.numpy()), expected, rtol=1e-5)
    expected = sum(np.sum(np.log(0.7 / s) + s**2 / (2 * 0.49) - 0.5) for s in stddevs)
    assert divergence(transform, model.get_weights()) == pytest.approx(expected, rel=1e-5)
    ratios = minimand.Trainer(model)
    ratios.compile("sgd", HALF_SQUARED, transforms=[transform])
    np.testing.assert_allclose(
        transform.signal_to_noise()[model.layers[0].kernel.path], np.abs(model.get_weights()[0]) / stddevs[0], rtol=1e-5
    )


def test_samples_have_the_posterior_s_law(random):
    model = dense(3, use_bias=False)
    transform = VariationalWeightNoise()
    trainer = minimand.Trainer(model)
    trainer.compile("sgd", HALF_SQUARED, transforms=[transform])
    s = np.array([[0.1], [0.5], [2.0]])
    set_stddevs(transform, s)
    weights = trainer.predict_samples(np.eye(3, dtype="float32"), 1000, seed=1)[..., 0]
    mean = model.get_weights()[0][:, 0]
    assert (np.abs(weights.mean(axis=0) - mean) < 5 * s[:, 0] / np.sqrt(1000)).all()
    assert (np.abs(weights.std(axis=0) / s[:, 0] - 1) < 5 / np.sqrt(2000)).all()


@pytest.mark.parametrize("init", mostly_slow([0.05, "moped"], 0.05))
def test_resumes_exactly_after_loading(init, random, tmp_path):
    x, y = data(random)
    trainer = minimand.Trainer(network())
    transform = VariationalWeightNoise(init=init, prior=ScaleMixturePrior(1.0, 0.1), warm_up=20, seed=1)
    trainer.compile(keras.optimizers.Adam(0.01), "mse", transforms=[transform])
    trainer.fit(x, y, batch_size=16, epochs=1, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    losses = [t.fit(x, y, batch_size=16, shuffle=False, verbose=0).history["loss"] for t in (trainer, loaded)]
    assert losses[0] == losses[1]
    assert_same(weights_of(loaded), weights_of(trainer))


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = 16 if index < 2 else 6
        return np.ones((rows, 5), "float32"), np.ones((rows, 2), "float32")


class Inputs(Batches):
    """Of a model with a loss of its own, which needs no targets."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class WithLoss(keras.layers.Layer):
    def call(self, inputs):
        self.add_loss(ops.mean(ops.square(inputs)))
        return inputs


def test_the_size_of_a_training_set_without_targets(random):
    x = random.normal(size=(70, 5)).astype("float32")
    transform = VariationalWeightNoise()
    trainer = minimand.Trainer(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), WithLoss()]))
    trainer.compile("sgd", transforms=[transform])
    sets = [(x, 70), (Inputs(), 38)]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        sets.append((tf.data.Dataset.from_tensor_slices(x).batch(16), 70))
    for inputs, size in sets:
        trainer.fit(inputs, verbose=0, shuffle=False)
        assert transform.training_examples.numpy() == size


class Weighted(Batches):
    """Half of the weights of each batch are 0."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x, y, np.arange(len(x)) % 2


class Endless(Batches):
    def __len__(self):
        raise TypeError

    @property
    def num_batches(self):
        return None


ROWS = np.ones((70, 5), "float32"), np.ones((70, 2), "float32")


def from_arrays():
    x, y = ROWS
    weights = np.where(np.arange(70) < 10, 0.0, 2.0)
    by_position = np.zeros((70, 2))
    by_position[:30, 1] = 0.5
    validation = {"validation_data": (x, y), "validation_split": 0.25}
    yield {"x": x, "y": y}, 70
    yield {"x": x, "y": y, "validation_split": 0.25}, 52
    yield {"x": x, "y": y, **validation}, 70
    yield {"x": x, "y": y, "sample_weight": weights}, 60
    yield {"x": x, "y": y, "sample_weight": by_position}, 30
    yield {"x": x, "y": y, "sample_weight": weights, "validation_split": 0.5}, 25
    yield {"x": x, "y": y, "steps_per_epoch": 2, "batch_size": 16}, 32
    yield {"x": x, "y": y, "steps_per_epoch": 9, "batch_size": 16}, 70
    yield {"x": x, "y": y, "steps_per_epoch": 2, "sample_weight": weights}, None
    yield {"x": x, "y": np.zeros(70), "class_weight": {0: 0.0}}, None
    yield {"x": Batches()}, 38
    yield {"x": Batches(), "steps_per_epoch": 2}, 32
    yield {"x": Weighted()}, 19
    yield {"x": Endless()}, None
    yield {"x": Endless(), "steps_per_epoch": 3}, 38
    yield {"x": iter([])}, None
    yield {"x": (ROWS for _ in range(3))}, None
    yield {"x": (ROWS for _ in range(3)), "steps_per_epoch": 3}, 210
    yield {"x": ((*ROWS, weights) for _ in range(3)), "steps_per_epoch": 3}, None


def from_tensorflow():
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensor_slices((*ROWS,))
    weighted = tf.data.Dataset.from_tensor_slices((*ROWS, np.arange(70) % 2))
    yield {"x": rows.batch(16)}, 70
    yield {"x": rows.batch(16, drop_remainder=True)}, 64
    yield {"x": rows.batch(16), "steps_per_epoch": 2}, 32
    yield {"x": rows.batch(16).repeat(), "steps_per_epoch": 6}, 86
    yield {"x": rows.batch(16).repeat()}, None
    yield {"x": rows.bucket_by_sequence_length(lambda x, y: 1, [2], [7, 7]), "steps_per_epoch": 3}, 21
    yield {"x": weighted.batch(16)}, 35
    yield {"x": weighted.batch(16, drop_remainder=True)}, 32


def from_torch():
    import torch
    from torch.utils import data as sources

    class Stream(sources.IterableDataset):
        def __iter__(self):
            return iter([(torch.ones(5), torch.ones(2))] * 70)

    class Sized(Stream):
        def __len__(self):
            return 70

    rows = sources.TensorDataset(*map(torch.as_tensor, ROWS))
    weighted = sources.TensorDataset(*map(torch.as_tensor, ROWS), torch.arange(70) % 2)
    some = sources.SubsetRandomSampler(range(0, 70, 2))
    unequal = [[0, 1, 2], [3], [4, 5]]
    yield {"x": sources.DataLoader(rows, batch_size=16)}, 70
    yield {"x": sources.DataLoader(rows, batch_size=16, drop_last=True)}, 64
    yield {"x": sources.DataLoader(rows, batch_size=16, sampler=some)}, 35
    yield {"x": sources.DataLoader(rows, batch_size=16, sampler=some, drop_last=True)}, 32
    yield {"x": sources.DataLoader(rows, batch_sampler=unequal)}, 6
    yield {"x": sources.DataLoader(rows, batch_sampler=unequal), "steps_per_epoch": 2}, 4
    yield {"x": sources.DataLoader(rows, batch_size=16), "steps_per_epoch": 2}, 32
    yield {"x": sources.DataLoader([ROWS, ROWS], batch_size=None)}, 140
    yield {"x": sources.DataLoader(weighted, batch_size=16)}, 35
    yield {"x": sources.DataLoader(weighted, batch_size=16, drop_last=True)}, 32
    yield {"x": sources.DataLoader(Sized(), batch_size=16)}, 70
    yield {"x": sources.DataLoader(Sized(), batch_size=16, drop_last=True)}, 64
    yield {"x": sources.DataLoader(Stream(), batch_size=16)}, None
    yield {"x": sources.DataLoader(Stream(), batch_size=16), "steps_per_epoch": 2}, 32


SOURCES = [from_arrays, *{"tensorflow": [from_tensorflow], "torch": [from_torch]}.get(keras.backend.backend(), [])]


@pytest.mark.parametrize("source", SOURCES)
def test_the_number_of_training_examples_is_that_of_an_epoch(source):
    for arguments, expected in source():
        assert training_examples(arguments)[0] == expected, (arguments, expected)


@pytest.mark.slow
def test_fit_finds_the_number(random):
    x, y = data(random, rows=70)
    transform = VariationalWeightNoise()
    trainer = minimand.Trainer(network())
    trainer.compile("sgd", "mse", transforms=[transform])

    def examples(*arguments, **more):
        trainer.fit(*arguments, verbose=0, **more)
        return int(transform.training_examples.numpy())

    assert examples(x, y, validation_split=0.25) == 52

    def batches():
        for start in range(0, 60, 10):
            yield x[start : start + 10], y[start : start + 10]

    # The first batch, which is read for its size, is trained on too.
    assert examples(batches(), steps_per_epoch=3, epochs=2, shuffle=False) == 30
    assert int(trainer.optimizer.iterations.numpy()) == 2 + 6
    with told(ValueError, ["number of training examples", "kl_weight=1 / examples"]):
        trainer.fit(((x, y) for _ in range(3)), shuffle=False, verbose=0)
    fresh = minimand.Trainer(network())
    fresh.compile("sgd", "mse", transforms=[VariationalWeightNoise()])
    fresh.evaluate(x, y, verbose=0)
    for step in (fresh.value_and_gradient, fresh.train_on_batch):
        with told(ValueError, ["`fit`", "kl_weight=1 / examples"]):
            step(x, y)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prior": -1.0}, ValueError, ["`prior`", "> 0", "-1.0"]),
        ({"prior": "laplace"}, ValueError, ["`prior`", "'laplace'"]),
        ({"kl_weight": -1.0}, ValueError, ["`kl_weight`", ">= 0", "-1.0"]),
        ({"init": 0.0}, ValueError, ["`init`", "> 0", "0.0"]),
        ({"temperature": -0.1}, ValueError, ["`temperature`", ">= 0", "-0.1"]),
        ({"warm_up": -1}, ValueError, ["`warm_up`", ">= 0", "-1"]),
        ({"antithetic": "yes"}, TypeError, ["`antithetic`", "'yes'"]),
    ],
)
def test_bad_arguments_are_told(arguments, error, words):
    with told(error, words):
        VariationalWeightNoise(**arguments)


def test_a_bad_mixture_is_told():
    with told(ValueError, ["`share`", "< 1", "1.0"]):
        ScaleMixturePrior(share=1.0)
