"""`Proximal` finds the minimum of loss + penalty, with its exact zeros, with any inner optimizer."""

import keras
import numpy as np
import pytest
from keras import ops

import minimand
from minimand.optimizers import Proximal, SNRScaling
from minimand.regularizers import GroupLasso, JointGroupLasso, Range, SparseGroupLasso, TotalVariation
from tests.helpers import assert_same, data, dtype_policy, mostly_slow, network, numpy, told, weights_of

FEATURES, OUTPUTS = 6, 3


def problem(random):
    """Inputs and targets of a badly scaled regression whose group lasso solution has zero rows."""
    x = random.normal(size=(80, FEATURES)) * [1.0, 2.0, 0.3, 1.0, 1.0, 0.5]
    truth = random.normal(size=(FEATURES, OUTPUTS)) * np.array([1.0, 0.5, 2.0, 0.0, 0.0, 0.0])[:, None]
    return x, x @ truth + 0.3 * random.normal(size=(80, OUTPUTS))


def distance_to(target):
    """Inputs and targets such that the loss is 1/2 sum (w - target)^2."""
    scale = np.sqrt(len(target))
    return scale * np.eye(len(target)), scale * target


def minimum(x, y, penalty, rate=0.2, steps=2000):
    """The minimum of the loss plus the (sparse) group lasso of the rows, by proximal gradient steps in NumPy.

    Here x'x/n has eigenvalues from 0.078 to 4.06: steps converge for rates below 2/4.06, and the error shrinks by
    1 - 0.2 * 0.078 in each, to 1e-13 in all.
    """
    strength, ratio = penalty.strength, getattr(penalty, "l1_ratio", 0.0)
    product, constant = x.T @ x / len(x), x.T @ y / len(x)
    w = np.zeros((FEATURES, OUTPUTS))
    for _ in range(steps):
        w = w - rate * (product @ w - constant)
        w = np.sign(w) * np.maximum(np.abs(w) - rate * strength * ratio, 0.0)
        norm = np.sqrt(np.sum(w**2, axis=1, keepdims=True))
        bound = rate * strength * (1 - ratio) * np.sqrt(OUTPUTS)
        w = w * np.maximum(1 - bound / np.maximum(norm, 1e-30), 0.0)
    return w


def half_squared_error(y_true, y_pred):
    return 0.5 * ops.sum(ops.square(y_true - y_pred), axis=-1)


def trained(optimizer, x, y, steps):
    """The weights of a linear model after `steps` steps, each on all rows."""
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(OUTPUTS, use_bias=False)])
    model.set_weights([np.full((FEATURES, OUTPUTS), 0.1)])
    model.compile(optimizer, half_squared_error)
    x, y = (np.tile(part.astype("float32"), (steps, 1)) for part in (x, y))
    model.fit(x, y, batch_size=len(x) // steps, shuffle=False, verbose=0)
    return numpy(model.trainable_variables[0])


def cosine(rate, steps):
    return keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.01)


OPTIMIZERS = {
    "sgd": lambda n: keras.optimizers.SGD(0.4),
    "momentum": lambda n: keras.optimizers.SGD(0.1, momentum=0.8),
    "nesterov": lambda n: keras.optimizers.SGD(0.1, momentum=0.8, nesterov=True),
    "adam": lambda n: keras.optimizers.Adam(cosine(0.1, n), epsilon=1e-3),
    "amsgrad": lambda n: keras.optimizers.AdamW(cosine(0.1, n), amsgrad=True, weight_decay=0.0, epsilon=1e-3),
    "nadam": lambda n: keras.optimizers.Nadam(0.05, epsilon=1e-2),
    "adamax": lambda n: keras.optimizers.Adamax(cosine(0.1, n), epsilon=1e-2),
    "rmsprop": lambda n: keras.optimizers.RMSprop(0.02, momentum=0.5, epsilon=1e-2),
    "adagrad": lambda n: keras.optimizers.Adagrad(0.5),
}
GROUPS, SPARSE_GROUPS = GroupLasso(0.15, "input"), SparseGroupLasso(0.25, 0.5, "input")
CASES = [*((name, GROUPS) for name in OPTIMIZERS), ("momentum", SPARSE_GROUPS), ("adam", SPARSE_GROUPS)]


@pytest.mark.parametrize("case", mostly_slow(CASES, ("sgd", GROUPS), ("adam", SPARSE_GROUPS)), ids=lambda case: case[0])
def test_every_optimizer_finds_the_minimum_of_loss_and_penalty(case, random):
    name, penalty = case
    x, y = problem(random)
    expected = minimum(x, y, penalty)
    assert 1 <= (expected == 0).all(axis=1).sum() < FEATURES
    found = trained(Proximal(OPTIMIZERS[name](200), penalty), x, y, 200)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_array_equal((found == 0).all(axis=1), (expected == 0).all(axis=1))


def test_keras_lasso_and_ridge_have_their_closed_forms():
    """The minimum with 1/2 (w - a)^2 is sign(a) max(|a| - l1, 0) / (1 + 2 l2)."""
    target = np.linspace(-2.0, 2.0, FEATURES * OUTPUTS).reshape(FEATURES, OUTPUTS)
    for regularizer, l1, l2 in (("l1", 0.01, 0.0), (keras.regularizers.L2(0.5), 0.0, 0.5), (keras.regularizers.L1L2(0.3, 0.5), 0.3, 0.5)):  # fmt: skip
        found = trained(Proximal(keras.optimizers.SGD(0.2), regularizer), *distance_to(target), 100)
        np.testing.assert_allclose(
            found, np.sign(target) * np.maximum(np.abs(target) - l1, 0) / (1 + 2 * l2), atol=1e-5
        )
        assert ((found == 0) == (np.abs(target) <= l1)).all()


def test_decoupled_steps_find_the_minimum_for_sgd_and_another_for_adam(random):
    """Adam stops where rate / sqrt(v) g = -rate * subgradient, so its strength is multiplied by sqrt(v)."""
    x, y = problem(random)
    expected = minimum(x, y, GROUPS)
    by_sgd = Proximal(keras.optimizers.SGD(0.4), GROUPS, metric="learning_rate")
    np.testing.assert_allclose(trained(by_sgd, x, y, 200), expected, atol=2e-3)
    by_adam = Proximal(keras.optimizers.Adam(cosine(0.1, 200), epsilon=1e-3), GROUPS, metric="learning_rate")
    assert np.abs(trained(by_adam, x, y, 200) - expected).max() > 0.02


def test_boxes_and_pieces_are_exact(random):
    """The minimum of 1/2 (w - a)^2 in a box is the clipped a; a large total variation penalty makes rows equal."""
    target = np.linspace(-2.0, 2.0, FEATURES * OUTPUTS).reshape(FEATURES, OUTPUTS)
    boxed = trained(Proximal(keras.optimizers.SGD(0.2), Range(10.0, -0.5, 1.0, power=1)), *distance_to(target), 100)
    np.testing.assert_allclose(boxed, np.clip(target, -0.5, 1.0), atol=1e-6)
    assert boxed.min() == np.float32(-0.5)
    assert boxed.max() == 1.0
    adam = keras.optimizers.Adam(0.2, beta_1=0.5)
    equal = trained(Proximal(adam, TotalVariation(10.0, 1)), *distance_to(target), 60)
    assert (np.diff(equal, axis=1) == 0).all()
    np.testing.assert_allclose(equal[:, 0], target.mean(axis=1), atol=1e-3)


SMALL = np.arange(8) < 4


def uneven():
    """A network in which half of the hidden units have incoming and outgoing weights near zero."""
    model = network()
    scale = np.where(SMALL, 0.01, 1.0)
    values = model.get_weights()
    values[0], values[2] = values[0] * scale, values[2] * scale
    model.set_weights([*values[:-2], values[-2] * scale[:, None], values[-1]])
    return model


def fitted(random, optimizer, epochs=3):
    x, y = data(random)
    model = uneven()
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return model, x, y


@pytest.mark.slow
def test_zeros_in_stock_compile_survive_a_file_and_go_on(random, tmp_path):
    strength = keras.optimizers.schedules.PolynomialDecay(0.0, 5, 0.3)
    regularizers = {"dense/kernel": GroupLasso(strength, "output"), "dense_1/kernel": keras.regularizers.L1(0.05)}
    model, x, y = fitted(random, Proximal(keras.optimizers.AdamW(0.01, clipnorm=1.0), regularizers))
    kernel = model.layers[0].kernel.numpy()
    assert (kernel == 0).all(axis=0)[SMALL].any()
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert_same(
        [numpy(v) for v in loaded.optimizer.variables], [numpy(v) for v in model.optimizer.variables], rtol=1e-6
    )
    np.testing.assert_array_equal(loaded.layers[0].kernel.numpy(), kernel)
    loaded.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert (loaded.layers[0].kernel.numpy() == 0).any()


@pytest.mark.slow
def test_joint_groups_take_a_unit_with_its_bias_and_its_outgoing_weights(random):
    """A group has all of a unit's weights if joined, and the incoming or the outgoing ones otherwise."""
    for joined in (False, True):
        model = uneven()
        paths = [variable.path for variable in model.trainable_variables]
        units = np.arange(8)
        incoming, outgoing = dict.fromkeys(paths[:4], units), {paths[4]: units[:, None]}
        joint = JointGroupLasso(0.5, {**incoming, **outgoing} if joined else [incoming, outgoing])
        model.compile(Proximal(keras.optimizers.SGD(0.02), joint, select="all"), "mse")
        x, y = data(random)
        model.fit(x, y, batch_size=16, verbose=0)
        *values, out, _ = [numpy(v) for v in model.trainable_variables]
        for value in values:
            np.testing.assert_array_equal(np.atleast_2d(value == 0).all(axis=0), SMALL)
        np.testing.assert_array_equal((out == 0).all(axis=1), SMALL)


def test_gradient_accumulation_takes_a_step_of_the_mean_gradient(random):
    gradients = random.normal(0.5, 1.0, size=(8, 5, 2)).astype("float32")

    def path(optimizer, slopes):
        variable = keras.Variable(np.ones((5, 2), "float32"))
        optimizer.build([variable])
        for slope in slopes:
            optimizer.apply([ops.convert_to_tensor(slope)], [variable])
        return numpy(variable)

    penalty = GroupLasso(0.3)
    accumulated = path(Proximal(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), penalty), gradients)
    plain = path(Proximal(keras.optimizers.SGD(0.1), penalty), gradients.reshape(4, 2, 5, 2).mean(axis=1))
    np.testing.assert_allclose(accumulated, plain, rtol=1e-5, atol=1e-6)


def test_mixed_precision_takes_the_proximal_step_of_the_unscaled_gradient(random):
    with dtype_policy("mixed_float16"):
        model, *_ = fitted(random, Proximal(keras.optimizers.SGD(0.05), GroupLasso(0.1)), epochs=5)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    kernel = model.layers[0].kernel.numpy()
    assert np.isfinite(kernel).all()
    assert (kernel == 0).all(axis=0).any()


@pytest.mark.slow
def test_with_a_trainer_its_transforms_and_another_wrapper(random):
    x, y = data(random)
    trainer = minimand.Trainer(uneven())
    inner = SNRScaling(keras.optimizers.Adam(0.01))
    optimizer = Proximal(inner, GroupLasso(1.0), metric="learning_rate")
    trainer.compile(
        optimizer, minimand.losses.AdaptiveRobust(), transforms=[minimand.transforms.WeightNoise(0.01, seed=0)]
    )
    trainer.fit(x, y, batch_size=16, epochs=4, verbose=0)
    assert (trainer.model.layers[0].kernel.numpy() == 0).all(axis=0).any()


def test_a_kernel_is_not_made_zero_and_fit_says_so(random):
    """The step is left out only for that kernel."""
    x, y = data(random)
    model = network()
    model.compile(Proximal(keras.optimizers.SGD(0.1), {"dense/kernel": GroupLasso(100.0), "dense_1": Range(1.0, -1.0, 1.0)}), "mse")  # fmt: skip
    with pytest.warns(UserWarning, match="dense/kernel in 5 step"):
        model.fit(x, y, batch_size=16, verbose=0)
    assert list(model.optimizer.collapsed().values()) == [5]
    assert (model.layers[0].kernel.numpy() != 0).all()
    # Once for each `fit` in which there were any.
    model.optimizer.learning_rate = 0.0
    model.fit(x, y, batch_size=16, verbose=0)


@pytest.mark.slow
def test_initial_weights_stay_if_there_is_no_penalty(random):
    """With strength 0, Proximal is the inner optimizer."""
    plain, *_ = fitted(random, keras.optimizers.Adam(0.01))
    proximal, *_ = fitted(np.random.default_rng(0), Proximal(keras.optimizers.Adam(0.01), GroupLasso(0.0)))
    assert_same(weights_of(proximal), weights_of(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Proximal("lion", GroupLasso(1.0)), ValueError, ["Lion", 'metric="learning_rate"', "SGD"]),
        (lambda: Proximal(keras.optimizers.SGD(use_ema=True), GroupLasso(1.0)), ValueError, ["use_ema"]),
        (lambda: Proximal("sgd", None), TypeError, ["`regularizer`", "None"]),
        (lambda: Proximal("sgd", "orthogonal_regularizer"), TypeError, ["`regularizer`", "Orthogonal"]),
        (lambda: Proximal("sgd", TotalVariation(1.0, 0, order=2)), NotImplementedError, ["order=2"]),
        (lambda: Proximal("sgd", {"a": "l1"}, select="all"), ValueError, ["`select`", "'all'"]),
        (lambda: Proximal("sgd", "l1", metric="adam"), ValueError, ["`metric`", "'adam'"]),
        (lambda: Proximal("sgd", {"x": "l1"}).build([keras.Variable(np.ones((2, 2)), name="w")]), ValueError, ["`select`", "'x'"]),
        (lambda: Proximal("sgd", {"w": "l1", ".": "l2"}).build([keras.Variable(np.ones((2, 2)), name="w")]), ValueError, ["one expression", "w"]),
        (lambda: Proximal("sgd", GroupLasso(1.0, "position")).build([keras.Variable(np.ones((2, 2)), name="w")]), ValueError, ["rank 3"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(make, error, words):
    with told(error, words):
        make()
