"""The usual ways fail as the pages say that they do, and Minimand's do not."""

import keras
import numpy as np
import pytest
from keras import ops

import minimand
from minimand.gradients import gradient_moments
from minimand.testing import gradient
from tests.helpers import data


def small(**arguments):
    keras.utils.set_random_seed(4)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, **arguments)])


def all_of(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def test_the_spread_of_one_gradient_is_there_where_all_examples_are_equal(random):
    x, y = (np.repeat(part[:1], 8, axis=0) for part in data(random))
    model = small()
    model.compile("sgd", "mse")
    moments = gradient_moments(model, x, y)
    squared_norm = sum(np.sum(g**2) for g in moments.mean)
    assert np.var(np.concatenate([g.ravel() for g in moments.mean])) > 1e-3 * squared_norm
    assert moments.trace < 1e-6 * squared_norm


@keras.saving.register_keras_serializable(package="by_hand")
class ScaleByHand(keras.losses.Loss):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.log_scale = keras.Variable(0.0)

    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred) * ops.exp(-self.log_scale) + self.log_scale, axis=-1)


@keras.saving.register_keras_serializable(package="by_hand")
class Scale(minimand.losses.TrainableLoss):
    def build(self, y_true_shape, y_pred_shape):
        self.log_scale = self.add_weight((), 0.0, name="log_scale")

    def call(self, y_true, y_pred):
        scale = self.log_scale.value
        return ops.mean(ops.abs(y_true - y_pred) * ops.exp(-scale) + scale, axis=-1)


def test_a_variable_of_a_stock_loss_is_neither_trained_nor_saved(random, tmp_path):
    x, y = data(random)
    stock, model = ScaleByHand(), small()
    model.compile(keras.optimizers.Adam(0.1), stock)
    model.fit(x, 5 * y, verbose=0)
    assert float(stock.log_scale.numpy()) == 0.0
    stock.log_scale.assign(3.0)
    model.save(tmp_path / "stock.keras")
    loaded = keras.models.load_model(tmp_path / "stock.keras")
    assert isinstance(loaded.loss, ScaleByHand)
    assert float(loaded.loss.log_scale.numpy()) == 0.0
    trainer = minimand.Trainer(small())
    trainer.compile(keras.optimizers.Adam(0.1), Scale())
    trainer.fit(x, 5 * y, verbose=0)
    learned = float(trainer.loss.log_scale.numpy())
    assert learned != 0.0
    trainer.save(tmp_path / "trainer.keras")
    assert float(keras.models.load_model(tmp_path / "trainer.keras").loss.log_scale.numpy()) == learned


class NoisyWeights(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        for weight in self.model.trainable_weights:
            weight.assign_add(keras.random.normal(weight.shape, stddev=0.1))


def test_noise_that_a_callback_adds_stays(random):
    """Without a learning rate, what is left of 25 batches is a random walk of 25 steps."""
    x, y = data(random, rows=100)
    model = small()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[NoisyWeights()])
    walked = all_of(model) - all_of(small())
    # Five standard errors of a standard deviation of so many numbers.
    assert np.std(walked) == pytest.approx(0.1 * np.sqrt(25), rel=5 / np.sqrt(2 * len(walked)))
    trainer = minimand.Trainer(small())
    trainer.compile(keras.optimizers.SGD(0.0), "mse", transforms=[minimand.transforms.WeightNoise(0.1)])
    trainer.fit(x, y, batch_size=4, verbose=0)
    np.testing.assert_array_equal(all_of(trainer.model), all_of(small()))


@pytest.mark.parametrize("penalty", [keras.regularizers.L1(0.5), minimand.regularizers.GroupLasso(0.5, "input")])
def test_a_penalty_in_the_loss_makes_nothing_zero(penalty, random):
    x, y = data(random)
    by_penalty, by_proximal = small(kernel_regularizer=penalty), small()
    by_penalty.compile(keras.optimizers.Adam(0.05), "mse")
    by_proximal.compile(minimand.optimizers.Proximal(keras.optimizers.Adam(0.05), penalty), "mse")
    for model in (by_penalty, by_proximal):
        # 60 steps of all rows.
        model.fit(np.tile(x, (60, 1)), np.tile(y, (60, 1)), batch_size=len(x), shuffle=False, verbose=0)
    assert np.all(by_penalty.get_weights()[0] != 0)
    assert np.any(np.all(by_proximal.get_weights()[0] == 0, axis=1))


def test_the_norm_of_a_group_that_is_zero_has_no_gradient_by_hand():
    zero = np.zeros(3, "float32")
    assert np.isnan(gradient(lambda w: ops.sqrt(ops.sum(w * w)), zero)[0]).all()
    assert (gradient(lambda w: minimand.regularizers.GroupLasso(1.0, "output")(w[:, None]), zero)[0] == 0).all()


def formula(x, alpha, scale):
    """The abstract's, as it stands."""
    size = ops.abs(alpha - 2.0)
    return size / alpha * (((x / scale) ** 2 / size + 1.0) ** (alpha / 2.0) - 1.0)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_the_robust_formula_by_hand_is_nan(alpha):
    x, alpha, scale = (ops.convert_to_tensor(np.float32(value)) for value in ([0.5, 2.0], alpha, 1.0))
    assert np.isnan(ops.convert_to_numpy(formula(x, alpha, scale))).all()
    assert np.isfinite(ops.convert_to_numpy(minimand.losses.general_robust(x, alpha, scale))).all()


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.5])
@pytest.mark.parametrize("x", [0.1, 1.0, 30.0])
def test_without_its_normaliser_the_robust_loss_falls_without_end(alpha, x, float64):
    """Every residual wants a smaller shape and a larger scale."""
    by_shape, by_scale = gradient(lambda a, c: formula(x, a, c), np.float64(alpha), np.float64(1.0))
    assert by_shape > 0
    assert by_scale < 0
