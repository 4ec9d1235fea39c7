"""Layers that are frozen and unfrozen between calls of `compile`: each value stays beside its own weight."""

import keras
import numpy as np
import pytest
from keras import layers

import minimand
from minimand.optimizers import IVON, MSVAG
from minimand.regularizers import L2SP, JointGroupLasso, fisher_information
from minimand.testing import LossSuite, OptimizerSuite, TransformSuite
from minimand.transforms import IVONNoise, MeasureGradient, MiniBatchVariance, VariationalWeightNoise
from tests import parts
from tests.helpers import mostly_slow, numpy, told

# The only ones with variables for each weight of the model.
WITH_STATE = ("learned_noise", "ivon_noise", "mini_batch_variance")


def network(*last):
    """Two layers of equal shape, and the last ones."""
    keras.utils.set_random_seed(11)
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh"), layers.Dense(4, "tanh"), *last])


def values(trainer):
    return [numpy(variable) for variable in (*trainer.variables, *trainer.optimizer.variables)]


def assert_equal(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def of_weights(transform, weights):
    """The values of the transform's variables that belong to these weights."""
    return [numpy(v) for w in weights for owner, v in transform._of_weights.values() if owner is w]


def check_cycle(model, loss, make_optimizer, transforms, x, y, tmp_path):
    """Freeze, fit, unfreeze, fit, save, load, freeze, save, load: each file goes on as the trainer that it is of."""

    def fit(trainer, epochs=1):
        return trainer.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history

    def compiled(trainer, loss, transforms, trainable):
        trainer.model.layers[0].trainable = trainable
        trainer.compile(make_optimizer(), loss, transforms=transforms)
        return trainer

    def saved_and_loaded(trainer):
        trainer.save(tmp_path / "trainer.keras")
        loaded = keras.saving.load_model(tmp_path / "trainer.keras")
        assert_equal(values(loaded), values(trainer))
        assert fit(loaded) == fit(trainer)
        assert_equal(values(loaded), values(trainer))
        return loaded

    trainer = compiled(minimand.Trainer(model), loss, transforms, trainable=False)
    fit(trainer)
    fit(compiled(trainer, loss, transforms, trainable=True), epochs=2)
    loaded = saved_and_loaded(trainer)
    frozen = loaded.model.layers[0].weights
    before = [numpy(weight) for weight in frozen], [of_weights(t, frozen) for t in loaded.transforms]
    fit(compiled(loaded, loaded.loss, loaded.transforms, trainable=False))
    assert_equal([numpy(weight) for weight in frozen], before[0])
    for transform, expected in zip(loaded.transforms, before[1], strict=True):
        assert_equal(of_weights(transform, frozen), expected)
    saved_and_loaded(loaded)


@pytest.mark.parametrize("name", mostly_slow(parts.TRANSFORMS, "learned_noise"))
def test_transforms(name, tmp_path):
    suite = parts.suite_of(TransformSuite, parts.TRANSFORMS[name])()
    transform, (x, y) = suite.make(), suite._data()
    check_cycle(network(layers.Dense(2)), "mse", lambda: suite.optimizer(0.01), [transform], x, y, tmp_path)
    assert bool(transform._of_weights) == (name in (*WITH_STATE, "scale_mixture"))


@pytest.mark.slow
@pytest.mark.parametrize("name", parts.OPTIMIZERS)
def test_optimizers(name, tmp_path):
    suite = parts.suite_of(OptimizerSuite, parts.OPTIMIZERS[name])()
    x, y = suite._data()
    check_cycle(network(layers.Dense(2)), "mse", lambda: suite.make(0.01), suite.transforms(), x, y, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", parts.LOSSES)
def test_losses(name, tmp_path):
    suite = parts.suite_of(LossSuite, parts.LOSSES[name])()
    x, y = suite._data()
    check_cycle(network(*suite._last_layers()), suite.make(), lambda: keras.optimizers.SGD(0.02), [], x, y, tmp_path)


def two_towers():
    """Two layers whose weights have the same paths, as in networks whose towers one function makes."""

    def tower(x):
        inputs = keras.Input((4,))
        return keras.Model(inputs, layers.Dense(3, name="project")(inputs))(x)

    keras.utils.set_random_seed(11)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Multiply()([tower(inputs), tower(inputs)]))
    first, second = model.weights[:2], model.weights[2:]
    assert [weight.path for weight in first] == [weight.path for weight in second]
    return model, first, second


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (lambda: VariationalWeightNoise(init=0.1, seed=1), lambda: keras.optimizers.SGD(0.1)),
        pytest.param(lambda: IVONNoise(seed=1), lambda: IVON(0.1, beta_2=0.9), marks=pytest.mark.slow),
        pytest.param(MiniBatchVariance, lambda: MSVAG(0.1, variance="mini_batch"), marks=pytest.mark.slow),
    ],
)
def test_weights_of_one_path_have_variables_of_their_own(make, optimizer, random):
    model, first, second = two_towers()
    transform, trainer = make(), minimand.Trainer(model)
    trainer.compile(optimizer(), "mse", transforms=[transform])
    x, y = random.normal(size=(32, 4)).astype("float32"), random.normal(size=(32, 3)).astype("float32")
    trainer.fit(x, y, batch_size=16, verbose=0)
    for one, other in zip(of_weights(transform, first), of_weights(transform, second), strict=True):
        assert np.all(one != other)


def test_results_by_path_refuse_two_weights_of_one_path(random):
    """One of the two would be lost."""
    model, *_ = two_towers()
    x, y = random.normal(size=(8, 4)).astype("float32"), random.normal(size=(8, 3)).astype("float32")
    trainer, noise = minimand.Trainer(model), VariationalWeightNoise(kl_weight=0.1)
    trainer.compile("sgd", "mse", transforms=[noise])
    groups = {"project/kernel": np.arange(12).reshape(4, 3)}
    for call in (
        lambda: fisher_information(model, x, y, "mse"),
        lambda: L2SP(0.1, model),
        lambda: JointGroupLasso(0.1, groups).check_variables(model.trainable_variables),
        noise.signal_to_noise,
    ):
        with told(ValueError, ["paths", "project/", "different names"]):
            call()


def test_a_transform_with_variables_for_weights_serves_one_model():
    noise = VariationalWeightNoise(kl_weight=0.1)
    minimand.Trainer(network()).compile("sgd", "mse", transforms=[noise])
    with told(ValueError, ["VariationalWeightNoise", "one model", "new transform"]):
        minimand.Trainer(network()).compile("sgd", "mse", transforms=[noise])


def test_a_weights_file_of_other_frozen_layers_is_refused(random, tmp_path):
    x, y = random.normal(size=(32, 4)).astype("float32"), random.normal(size=(32, 4)).astype("float32")

    def trained(trainable):
        model = network()
        model.layers[0].trainable = trainable
        trainer = minimand.Trainer(model)
        trainer.compile(keras.optimizers.SGD(0.1), "mse", transforms=[VariationalWeightNoise(seed=1)])
        trainer.fit(x, y, verbose=0)
        return trainer

    trained(True).save_weights(tmp_path / "all.weights.h5")
    with told(ValueError, ["2_log_stddev", "frozen"]):
        trained(False).load_weights(tmp_path / "all.weights.h5")


@pytest.mark.slow
def test_measurements_follow_the_frozen_layer(random):
    """The layers have as many weights, so that the sums of one would be taken for sums of the other."""
    model = network()
    trainer, measure = minimand.Trainer(model), MeasureGradient(every=1, estimator="exact")
    x, y = random.normal(size=(16, 4)).astype("float32"), random.normal(size=(16, 4)).astype("float32")
    for frozen, trained in ((0, 1), (1, 0)):
        model.layers[frozen].trainable, model.layers[trained].trainable = False, True
        trainer.compile(keras.optimizers.SGD(0.0), "mse", transforms=[measure])
        trainer.fit(x, y, batch_size=16, verbose=0)
        model.compile("sgd", "mse")
        moments = minimand.gradients.gradient_moments(model, x, y)
        traces = [variance.sum() for variance in moments.variance]
        np.testing.assert_allclose(measure.statistics.by_tensor()[1], traces, rtol=1e-4)
