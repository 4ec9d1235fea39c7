"""Predictions of functions drawn from the noise, and the trace of the Hessian."""

import keras
import numpy as np
import pytest

import minimand
from minimand.transforms import SharpnessAware, WeightNoise
from tests.helpers import data, network, told


def trainer_of(model, *transforms, loss="mse"):
    trainer = minimand.Trainer(model)
    trainer.compile(keras.optimizers.SGD(0.1), loss, transforms=transforms)
    return trainer


def linear(weights):
    model = keras.Sequential([keras.Input((len(weights),)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.reshape(weights, (-1, 1))])
    return model


def test_samples_are_functions(random):
    """Each is linear: the kernel that the first rows tell predicts all others; over samples it has the noise's law."""
    w = np.array([1.0, -2.0, 0.5])
    x = np.concatenate([np.eye(3), random.normal(size=(8, 3))]).astype("float32")
    count = 400
    samples = trainer_of(linear(w), WeightNoise(0.3)).predict_samples(x, count, seed=1, batch_size=5)
    assert samples.shape == (count, 11, 1)
    kernels = samples[:, :3, 0]
    np.testing.assert_allclose(samples[:, 3:, 0], kernels @ x[3:].T, atol=1e-4)
    assert (np.abs(kernels.mean(axis=0) - w) < 5 * 0.3 / np.sqrt(count)).all()
    assert (np.abs(kernels.var(axis=0) - 0.09) < 5 * 0.09 * np.sqrt(2 / count)).all()


def test_samples_repeat_whatever_the_batch_size_and_leave_no_trace(random):
    x, y = data(random, rows=12)
    model = network()
    trainer = trainer_of(model, WeightNoise(0.5, start=3), SharpnessAware(0.1), WeightNoise(0.1, name="second"))
    before = [v.numpy() for v in trainer.variables]
    first = trainer.predict_samples(x, 3, seed=1)
    np.testing.assert_allclose(trainer.predict_samples(x, 3, seed=1, batch_size=5), first, rtol=1e-5, atol=1e-6)
    assert np.abs(trainer.predict_samples(x, 3, seed=2) - first).max() > 0.01
    assert np.abs(first[1] - first[0]).max() > 0.01
    for value, variable in zip(before, trainer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)
    # After training, samples are around the new weights.
    trainer.fit(x, y, verbose=0)
    assert np.abs(trainer.predict_samples(x, 3, seed=1) - first).max() > 0


def test_no_noise_is_predict(random):
    x, _ = data(random, rows=12)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, {"u": keras.layers.Dense(2)(inputs), "v": keras.layers.Dense(1)(inputs)})
    samples = trainer_of(model, WeightNoise(0.0)).predict_samples(x, 2)
    for name, expected in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(samples[name], [expected, expected], rtol=1e-5, atol=1e-6)


def test_a_model_that_is_not_built(random):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = keras.layers.Dense(2)

        def call(self, inputs):
            return self.out(inputs)

    samples = trainer_of(Subclassed(), WeightNoise(0.5)).predict_samples(random.normal(size=(4, 3)), 2)
    assert samples.shape == (2, 4, 2)
    assert np.abs(samples[1] - samples[0]).max() > 0.01


def test_trace_of_a_quadratic(random):
    """Of mean (x . w - y)^2, 2 mean ||x||^2 exactly, whatever the signs: its Hessian's off-diagonal part is made 0."""
    x = np.tile(np.diag([1.0, 2.0, 3.0]), (4, 1)).astype("float32")
    trainer = trainer_of(linear([1.0, -2.0, 0.5]), WeightNoise(1.0))
    found = trainer.sharpness(x, random.normal(size=(12, 1)), stddev=0.1, batch_size=5, samples=4)
    assert found.trace == pytest.approx(2 * 14 / 3, rel=1e-4)
    assert found.standard_error < 1e-3


@pytest.mark.slow
def test_numbers_do_not_depend_on_what_is_evaluated_together(random, monkeypatch):
    """Parts of the samples, and of the rows."""
    x = random.normal(size=(7, 5)).astype("float32")
    y = random.normal(size=(7, 2)).astype("float32")
    trainer = trainer_of(network(), WeightNoise(0.5))
    samples = trainer.predict_samples(x, 5, seed=3)
    sharpness = trainer.sharpness(x, y, samples=5, stddev=0.1, seed=3)
    monkeypatch.setattr("minimand._sampling._CHUNK", 2 * trainer.model.count_params())
    np.testing.assert_allclose(trainer.predict_samples(x, 5, seed=3, batch_size=2), samples, rtol=1e-5, atol=1e-6)
    again = trainer.sharpness(x, y, samples=5, stddev=0.1, seed=3, batch_size=2)
    assert again == pytest.approx(sharpness, rel=1e-3)


def test_trace_of_a_network(random):
    """Within 3 standard errors of the trace by second differences in each weight."""
    x = random.normal(size=(20, 3)).astype("float32")
    y = np.sin(x[:, :1])
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    trainer = trainer_of(model)
    weights = [w.astype("float64") for w in model.get_weights()]

    def loss(a, b, c, d):
        return np.mean((np.tanh(x @ a + b) @ c + d - y) ** 2)

    flat = np.concatenate([w.ravel() for w in weights])
    ends = np.cumsum([w.size for w in weights])[:-1]

    def at(*steps):
        parts = np.split(flat + 1e-4 * sum(steps), ends)
        return loss(*(part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)))

    units = np.eye(flat.size)
    hessian = np.array([[at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b) for a in units] for b in units]) / 4e-8
    exact = np.trace(hessian)
    found = trainer.sharpness(x, y, stddev=0.01, samples=100, seed=1)
    # Random signs e have Var[e^T H e] = 2 sum over i != j of H_ij^2. The stated error may differ by half from this error.
    error = np.sqrt(2 * (np.sum(hessian**2) - np.sum(np.diag(hessian) ** 2)) / 100)
    assert found.standard_error == pytest.approx(error, rel=0.5)
    assert abs(found.trace - exact) < 3 * error


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda t: t.predict_samples(np.ones((2, 5)), 0), ValueError, ["`samples`", ">= 1", "0"]),
        (lambda t: t.predict_samples("x", 2), TypeError, ["arrays", "str"]),
        (lambda t: t.predict_samples(np.ones((0, 5)), 2), ValueError, ["rows", "[0]"]),
        (lambda t: trainer_of(network()).predict_samples(np.ones((2, 5))), ValueError, ["WeightNoise", "[]"]),
        (lambda t: t.sharpness(np.ones((2, 5)), np.ones((3, 2))), ValueError, ["rows", "[2, 3]"]),
        (lambda t: t.sharpness(np.ones((2, 5)), np.ones((2, 2)), samples=1), ValueError, ["`samples`", ">= 2", "1"]),
        (lambda t: t.sharpness(np.ones((2, 5)), np.ones((2, 2)), stddev=0.0), ValueError, ["`stddev`", "> 0", "0.0"]),
        (lambda t: t.sharpness(np.ones((2, 5)), np.ones((2, 2)), select="none"), ValueError, ["`select`", "'none'"]),
    ],
)
def test_bad_input_is_told(make, error, words):
    with told(error, words):
        make(trainer_of(network(), WeightNoise(0.1)))
