"""The variational online Newton optimizer: its formulas, its Hessian, and its noise."""

import keras
import numpy as np
import pytest
from keras import ops

import minimand
from minimand import backend
from minimand.optimizers import IVON
from minimand.transforms import IVONNoise, SharpnessAware
from tests.helpers import assert_same, data, dtype_policy, mostly_slow, network, numpy, told, weights_of
from tests.parts.losses import HALF_SQUARED


def trainer_of(model, optimizer, noise=None, loss=HALF_SQUARED, **arguments):
    trainer = minimand.Trainer(model)
    trainer.compile(optimizer, loss, transforms=[noise or IVONNoise(seed=1)], **arguments)
    return trainer


def linear(features):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(1, use_bias=False)])


def test_steps_are_the_algorithms(random, monkeypatch):
    """Five steps on linear regression against NumPy, with the same draws."""
    x, y = random.normal(size=(20, 3)).astype("float32"), random.normal(size=(20, 1)).astype("float32")
    draws = random.normal(size=(2, 3, 1))
    drawn = iter(range(10**9))
    monkeypatch.setattr(
        backend,
        "noise",
        lambda law, shapes, seed, scale=1.0: [ops.convert_to_tensor(draws[next(drawn) % 2], "float32")],
    )
    model = linear(3)
    w = model.get_weights()[0].astype("float64")
    rate, h0, b1, b2, d = 0.1, 0.5, 0.9, 0.95, 0.01
    optimizer = IVON(rate, hessian_init=h0, beta_1=b1, beta_2=b2, weight_decay=d)
    trainer = trainer_of(model, optimizer, IVONNoise(samples=2))
    trainer.fit(x, y, batch_size=20, epochs=5, shuffle=False, verbose=0)
    m, h = np.zeros_like(w), np.full_like(w, h0)
    for t in range(1, 6):
        s = 1 / np.sqrt(20 * (h + d))
        gradients = [x.T @ (x @ (w + s * e) - y) / 20 for e in draws]
        k = np.mean([g * e / s for g, e in zip(gradients, draws, strict=True)], axis=0)
        m = b1 * m + (1 - b1) * np.mean(gradients, axis=0)
        h = b2 * h + (1 - b2) * k + 0.5 * (1 - b2) ** 2 * (h - k) ** 2 / (h + d)
        w = w - rate * (h0 + d) * (m / (1 - b1**t) + d * w) / (h + d)
    np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-4, atol=1e-6)
    hessian = trainer.transforms[0].variable_of(model.trainable_variables[0], "hessian")
    np.testing.assert_allclose(hessian.numpy(), h, rtol=1e-4)


def test_the_hessian_of_a_quadratic():
    """Of mean (x . w - y)^2 / 2, with the mean squares of x: what 1,200 steps average, within 5 standard errors.

    At the minimum k = a e^2 + noise terms of independent sign; with orthogonal inputs k_j = a_j e_j^2, so that h, which
    averages about 2 / (1 - b2) of them, has the relative standard error sqrt(2 (1 - b2) / 2). The correction that keeps
    h positive adds (1 - b2)^2 (h - k)^2 / (2 h), on average (1 - b2) of h.
    """
    # Each batch is the same 20 rows.
    x = np.tile(np.diag([1.0, 2.0, 3.0, 4.0]), (5 * 1200, 1)).astype("float32")
    y = np.zeros((20 * 1200, 1), "float32")
    model = linear(4)
    optimizer = IVON(0.1, hessian_init=1.0, beta_2=0.995, weight_decay=1e-3)
    trainer = trainer_of(model, optimizer, IVONNoise(examples=20, seed=1))
    trainer.fit(x, y, batch_size=20, shuffle=False, verbose=0)
    hessian = trainer.transforms[0].variable_of(model.trainable_variables[0], "hessian")
    exact = np.array([1.0, 4.0, 9.0, 16.0]) / 4
    assert (np.abs(hessian.numpy()[:, 0] / exact - 1) < 5 * np.sqrt(0.005) + 0.005).all()
    # The samples' law is the posterior, with variances 1 / (N (h + d)).
    drawn = trainer.predict_samples(np.eye(4, dtype="float32"), 1000, seed=2)[..., 0]
    expected = 1 / np.sqrt(20 * (hessian.numpy()[:, 0] + 1e-3))
    assert (np.abs(drawn.std(axis=0) / expected - 1) < 5 / np.sqrt(2000)).all()


def test_weights_without_noise_are_trained_by_momentum(random):
    """The kernel is chosen; the bias alone moves as by SGD with averaged gradients and weight decay."""
    x, y = data(random, rows=16, outputs=1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, kernel_initializer="zeros", trainable=True)])
    optimizer = IVON(0.1, weight_decay=0.01)
    trainer = trainer_of(model, optimizer, IVONNoise(select="kernels", examples=1e12))
    trainer.fit(x, y, batch_size=16, verbose=0)
    np.testing.assert_allclose(model.layers[0].bias.numpy(), 0.1 * y.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("policy", mostly_slow(["float32", "mixed_float16"], "float32"))
def test_trains_saves_and_resumes(policy, random, tmp_path):
    """With another transform around it, in both precisions; the weights are the posterior's mean, not a draw."""
    x, y = data(random)
    with dtype_policy(policy):
        trainer = minimand.Trainer(network())
        transforms = [IVONNoise(seed=1), SharpnessAware(0.01)]
        trainer.compile(IVON(0.1, hessian_init=0.1), "mse", transforms=transforms)
        history = trainer.fit(x, y, batch_size=16, epochs=8, verbose=0).history["loss"]
        assert history[-1] < history[0]
        trainer.save(tmp_path / "trainer.keras")
        loaded = keras.saving.load_model(tmp_path / "trainer.keras")
        losses = [t.fit(x, y, batch_size=16, shuffle=False, verbose=0).history["loss"] for t in (trainer, loaded)]
    assert losses[0] == losses[1]
    assert_same(weights_of(loaded), weights_of(trainer))


def test_no_rate_no_change(random):
    """A step leaves the weights as they are where the learning rate is 0: no noise is left in them."""
    x, y = data(random)
    model = network()
    before = [v.numpy() for v in model.trainable_variables]
    trainer_of(model, IVON(0.0), IVONNoise(examples=1.0)).fit(x, y, verbose=0)
    assert_same([numpy(v) for v in model.trainable_variables], before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, y: IVON(hessian_init=0.0), ["`hessian_init`", "> 0", "0.0"]),
        (lambda x, y: IVON(beta_2=1.0), ["`beta_2`", "< 1", "1.0"]),
        (lambda x, y: IVONNoise(examples=0), ["`examples`", "> 0", "0"]),
        (lambda x, y: trainer_of(network(), "adam"), ["optimizers.IVON", "Adam"]),
        (lambda x, y: trainer_of(network(), IVON(), loss_learning_rate=0.1), ["`loss_learning_rate`", "IVON"]),
        (lambda x, y: trainer_of(network(), IVON()).train_on_batch(x, y), ["training examples", "examples="]),
        (lambda x, y: network_with(IVON()).fit(x, y, verbose=0), ["IVONNoise", "transforms="]),
    ],
)
def test_bad_input_is_told(make, words, random):
    with told(ValueError, words):
        make(*data(random))


def network_with(optimizer):
    model = network()
    model.compile(optimizer, "mse")
    return model
