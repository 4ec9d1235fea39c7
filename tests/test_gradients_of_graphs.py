"""Exact moments of the examples' gradients, for random graphs of layers."""

import keras
import numpy as np
import pytest

from minimand.gradients import GradientMoments, gradient_moments
from tests.graphs import SeparableGraph
from tests.helpers import KERAS
from tests.test_gradients import ROWS, one_by_one


@pytest.mark.parametrize("shape", [(4,), (7, 3)], ids=["vectors", "sequences"])
@pytest.mark.parametrize("seed", range(25))
def test_moments_are_those_of_a_loop_over_examples(shape, seed, float64):
    random = np.random.default_rng([seed, len(shape)])
    keras.utils.set_random_seed(seed)
    graph = SeparableGraph(random, shape)
    for _ in range(random.integers(3, 8)):
        graph.grow()
    model = graph.model()
    if keras.backend.backend() == "torch" and KERAS < (3, 15):
        transposed = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv1DTranspose)]
        if any(layer.kernel_size == (2,) for layer in transposed):
            pytest.skip("Keras before 3.15 has no transposed convolution of width 2 and stride 1 on PyTorch")
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape) / np.sqrt(variable.shape[0] or 1))
    data = random.normal(size=(ROWS, *shape)), random.normal(size=(ROWS, 2)), random.uniform(0.5, 2.0, size=ROWS)
    model.compile("sgd", "mse")
    expected = GradientMoments.of_examples(one_by_one(model, data))
    found = gradient_moments(model, *data)
    # Keras computes its losses in float32 on some backends.
    for a, b in zip(found.mean, expected.mean, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.sqrt(expected.trace))
    for a, b in zip(found.variance, expected.variance, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * expected.trace)
    assert found.trace == pytest.approx(expected.trace, rel=1e-4)
    assert found.variance_along_mean == pytest.approx(expected.variance_along_mean, rel=1e-3)
