"""Layers that do not read their weights from Keras, so that a transform cannot substitute them."""

import keras
import numpy as np
import pytest
from keras import layers

import minimand
from minimand.gradients import gradient_moments
from minimand.regularizers import fisher_information
from minimand.sparsity import compact
from minimand.transforms import SharpnessAware, WeightNoise
from tests.helpers import told

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(BACKEND == "jax", reason="Keras itself substitutes all weights in training")


class Keeps(layers.Layer):
    """A layer that reads its weight behind Keras's back, which trains on TensorFlow and PyTorch."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 1), name="kernel")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel._value)


class Unused(layers.Layer):
    """A layer with a weight that takes no part in its output."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1], 1), name="kernel")
        self.unused = self.add_weight((3,), name="unused")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)


def foreign(folder):
    """Keras's own layer for weights of the framework."""
    if BACKEND == "torch":
        import torch

        return layers.TorchModuleWrapper(torch.nn.Linear(3, 1))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.export(folder, verbose=False)
    return layers.TFSMLayer(folder)


@pytest.fixture(params=["foreign", "keeps"])
def layer(request, tmp_path):
    return foreign(str(tmp_path)) if request.param == "foreign" else Keeps()


@pytest.fixture
def rows(random):
    return random.normal(size=(8, 3)).astype("float32"), random.normal(size=(8, 1)).astype("float32")


def compiled_trainer(model, *transforms):
    trainer = minimand.Trainer(model)
    trainer.compile("sgd", "mse", transforms=transforms)
    return trainer


def test_a_layer_that_keeps_its_weights_is_refused_by_name(layer, rows):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layer])
    model.compile("sgd", "mse")
    before = model.get_weights()
    words = [type(layer).__name__, repr(layer.name), "trainable = False"]
    for make in (lambda: WeightNoise(0.1), lambda: SharpnessAware(0.1)):
        with told(NotImplementedError, words):
            compiled_trainer(model, make()).fit(*rows, verbose=0)
    with told(NotImplementedError, words):
        compiled_trainer(model).value_and_gradient(*rows)
    with told(NotImplementedError, words):
        compiled_trainer(model, WeightNoise(0.1)).predict_samples(rows[0], 2)
    with told(NotImplementedError, words):
        gradient_moments(model, *rows)
    with told(NotImplementedError, words):
        fisher_information(model, *rows, "mse")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_layer_is_fine_without_transforms_or_frozen(layer, rows):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3), layer])
    before = model.get_weights()
    compiled_trainer(model).fit(*rows, verbose=0)
    assert all(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))
    layer.trainable = False
    compiled_trainer(model, SharpnessAware(0.1)).fit(*rows, verbose=0)
    # Each weight by definition, for a linear network.
    model.compile("sgd", "mse")
    moments = gradient_moments(model, *rows)
    residual = 2 * (model.predict(rows[0], verbose=0) - rows[1])
    np.testing.assert_allclose(
        moments.mean[1], np.mean(residual * model.layers[-1].get_weights()[0].reshape(1, 3), axis=0), rtol=1e-4
    )


def test_a_weight_without_a_part_in_the_output_is_not_refused(rows):
    model = keras.Sequential([keras.Input((3,)), Unused()])
    trainer = compiled_trainer(model, WeightNoise(1e-7))
    _, gradients = trainer.value_and_gradient(*rows)
    assert not np.any(keras.ops.convert_to_numpy(gradients[1]))
    assert np.all(keras.ops.convert_to_numpy(gradients[0]))


@pytest.mark.skipif(BACKEND != "torch", reason="such a network is functional elsewhere")
def test_a_network_whose_graph_is_not_known(tmp_path, rows):
    """Keras cannot call a module of PyTorch on symbolic tensors."""
    layer = foreign(str(tmp_path))
    layer.trainable = False
    model = keras.Sequential([layer, layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = rows
    moments = gradient_moments(model, x, y)
    hidden = keras.ops.convert_to_numpy(layer(x).detach())
    g = 2 * (model.predict(x, verbose=0) - y) * hidden
    np.testing.assert_allclose(moments.mean[0], g.mean(axis=0)[:, None], rtol=1e-4)
    np.testing.assert_allclose(moments.variance[0], g.var(axis=0, ddof=1)[:, None], rtol=1e-4)
    with told(ValueError, ["compact", "`model`", "Sequential"]):
        compact(model)
