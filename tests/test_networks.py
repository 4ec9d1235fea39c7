"""The networks that a study trains unless the user gives one."""

import keras
import numpy as np
import pytest
from keras import ops

from minimand.study._networks import _neighbourhoods, augmented, convnet, convnet_1d, mlp

SHAPES = [(mlp, (7,)), (convnet, (8, 8, 1)), (convnet, (19, 17, 3)), (convnet_1d, (None, 2))]


def _inputs(shape, rows=3):
    return np.random.default_rng(0).random((rows, *(13 if side is None else side for side in shape)), dtype="float32")


@pytest.mark.parametrize(
    ("build", "shape"), [SHAPES[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in SHAPES[1:])]
)
def test_outputs(build, shape):
    x = _inputs(shape)
    probabilities = ops.convert_to_numpy(build(shape, 4)(x))
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert build(shape, 1)(x).shape == (3, 1)
    for model, activation in ((build(shape, 1), "linear"), (build(shape, 2, "sigmoid"), "sigmoid")):
        assert model.layers[-1].activation is keras.activations.get(activation)


@pytest.mark.parametrize(("build", "shape"), SHAPES)
def test_a_seed_determines_weights_and_dropout(build, shape):
    def output(seed):
        keras.utils.set_random_seed(seed)
        return ops.convert_to_numpy(build(shape, 2)(_inputs(shape), training=True))

    np.testing.assert_array_equal(output(1), output(1))
    assert np.any(output(1) != output(2))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("sides", [(7,), (8,), (5, 6)])
def test_a_dense_layer_of_neighbourhoods_is_a_convolution(sides, stride, dilation):
    x = _inputs((*sides, 2))
    kernel = np.random.default_rng(1).normal(size=(3,) * len(sides) + (2, 4))
    # Channels are in the order of the last axis first.
    flat = kernel.transpose(*range(len(sides)), -2, -1) if len(sides) == 1 else kernel.transpose(1, 0, 2, 3)
    found = ops.convert_to_numpy(_neighbourhoods(x, stride, dilation)) @ flat.reshape(-1, 4)
    padded = np.pad(x.astype("float64"), [(0, 0), *[(dilation, dilation)] * len(sides), (0, 0)])
    expected = np.zeros((3, *[-(-side // stride) for side in sides], 4))
    for place in np.ndindex(*expected.shape[1:-1]):
        window = [slice(p * stride, p * stride + 2 * dilation + 1, dilation) for p in place]
        values = padded[(slice(None), *window)]
        expected[(slice(None), *place)] = np.tensordot(values, kernel, axes=values.ndim - 1)
    # 18 products of float32 inputs.
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_augmentation_moves_images_in_training_only():
    shape = (8, 8, 1)
    network = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(3)])
    model = augmented(network, shape)
    x = _inputs(shape)
    plain, trained = (ops.convert_to_numpy(model(x, training=training)) for training in (False, True))
    np.testing.assert_allclose(plain, ops.convert_to_numpy(network(x)), atol=1e-6)
    assert np.any(trained != plain)
    assert [id(v) for v in model.trainable_variables] == [id(v) for v in network.trainable_variables]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX trains all seeds at once")
def test_gradients_map_over_seeds_without_grouped_convolutions():
    import jax

    shape = (8, 8, 1)
    model, x, y = augmented(convnet(shape, 3), shape), _inputs(shape), np.array([0, 1, 2])
    state = [[v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)]

    def gradient(trainable, others):
        def loss(trainable):
            predicted, _ = model.stateless_call(trainable, others, x, training=True)
            return ops.mean(keras.losses.sparse_categorical_crossentropy(y, predicted))

        return jax.grad(loss)(trainable)

    assert all(layer.supports_jit for layer in model.layers)
    states = jax.tree.map(lambda value: ops.stack([value] * 2), state)
    lowered = jax.jit(jax.vmap(gradient)).lower(*states)
    assert [g.shape for g in lowered.out_info] == [(2, *v.shape) for v in state[0]]
    assert "stablehlo.dot_general" in lowered.as_text()
    assert "stablehlo.convolution" not in lowered.as_text()


@pytest.mark.parametrize(("build", "shape"), [(convnet, (8, 8, 1)), (convnet_1d, (None, 2))])
def test_a_saved_network_loads(build, shape, tmp_path):
    model, x = build(shape, 2), _inputs(shape)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(ops.convert_to_numpy(again(x)), ops.convert_to_numpy(model(x)), atol=1e-6)
