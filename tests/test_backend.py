"""The backend suite: what each framework's small file promises."""

import keras
import numpy as np
import pytest
from keras import ops

from kriterion import backend
from tests.helpers import gradient, numpy


def test_value_aux_and_gradient():
    values = [ops.convert_to_tensor([1.0, 2.0]), ops.convert_to_tensor(3.0)]
    (value, aux), gradients = backend.value_and_gradient(lambda v: (ops.sum(v[0] ** 2) * v[1], v[1] + 1.0), values)
    assert numpy(value) == 15.0
    assert numpy(aux) == 4.0
    np.testing.assert_array_equal(numpy(gradients[0]), [6.0, 12.0])
    assert numpy(gradients[1]) == 5.0


def test_gradient_of_an_unused_value_is_zero():
    np.testing.assert_array_equal(gradient(lambda used, unused: ops.sum(used), [1.0], [2.0, 3.0])[1], [0.0, 0.0])


def test_embedding_gradient_is_dense():
    table = np.ones((4, 2), "float32")
    result = gradient(lambda t: ops.sum(ops.take(t, ops.convert_to_tensor([1, 1, 3]), axis=0)), table)[0]
    np.testing.assert_array_equal(result, [[0, 0], [2, 2], [0, 0], [1, 1]])


DIFFERENTIABLE = pytest.mark.parametrize(
    "value_and_gradient", [backend.value_and_gradient, backend.pure_value_and_gradient]
)


@DIFFERENTIABLE
def test_gradient_of_a_gradient(value_and_gradient):
    def squared_gradient_norm(v):
        _, (g,) = value_and_gradient(lambda w: (ops.sum(w[0] ** 3), None), [v])
        return ops.sum(g**2)

    # g = 3 v^2, so d/dv of g^2 = 36 v^3
    np.testing.assert_allclose(gradient(squared_gradient_norm, [1.0, -2.0])[0], [36.0, -288.0], rtol=1e-6)


@DIFFERENTIABLE
def test_value_aux_and_gradient_are_differentiated_by_values_and_by_what_the_function_holds(value_and_gradient):
    def penalised(v, a):
        (value, (aux, _)), (g,) = value_and_gradient(lambda w: (a * w[0] ** 3, (w[0] ** 2, ops.arange(2))), [v])
        return value + aux + g**2

    # a v^3 + v^2 + (3 a v^2)^2 at v = 2, a = 3
    by_value, by_held = gradient(penalised, 2.0, 3.0)
    np.testing.assert_allclose(by_value, 3 * 3 * 4 + 2 * 2 + 36 * 9 * 8, rtol=1e-6)
    np.testing.assert_allclose(by_held, 8 + 18 * 3 * 16, rtol=1e-6)


@DIFFERENTIABLE
def test_gradient_of_a_gradient_of_a_gradient(value_and_gradient):
    def squared_gradient(function):
        return lambda v: value_and_gradient(lambda w: (function(w[0]), None), [v])[1][0] ** 2

    # v^3, 9 v^4, (36 v^3)^2
    found = gradient(squared_gradient(squared_gradient(lambda v: v**3)), 2.0)[0]
    np.testing.assert_allclose(found, 6 * 36**2 * 2.0**5, rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="eager only")
def test_compiles():
    def function(v):
        return backend.value_and_gradient(lambda w: (ops.sum(w[0] ** 2), None), [v])[1][0]

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(function)
    else:
        import tensorflow as tf

        compiled = tf.function(function, jit_compile=True)
    np.testing.assert_array_equal(numpy(compiled(ops.convert_to_tensor([1.0, 2.0]))), [2.0, 4.0])


def test_devices_and_replicas():
    assert all(isinstance(name, str) for name in backend.devices())
    assert len(backend.devices()) >= 1
    assert backend.replicas() == 1


def test_put():
    array = ops.convert_to_tensor([1.0, 2.0, 3.0])
    found = backend.put(array, ops.convert_to_tensor([2, 0], "int32"), ops.convert_to_tensor([5.0, 7.0]))
    np.testing.assert_array_equal(numpy(found), [7.0, 2.0, 5.0])
