"""The bijections: each value once, and none outside of its set."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimand.parametrizations import Bounded, CholeskyFactor, Positive, PositiveDefinite, Simplex, UnitInterval
from tests.helpers import numpy, told

# Name: (parametrization, shape of the value, whether a value is in the set).
CASES = {
    "positive": (Positive(), (5,), lambda v: v > 0),
    "bounded": (Bounded(-2.0, 3.0), (5,), lambda v: (v > -2) & (v < 3)),
    "bounded_log": (Bounded(0.1, 50.0, log=True), (5,), lambda v: (v > 0.1) & (v < 50)),
    "unit_interval": (UnitInterval(), (2, 3), lambda v: (v > 0) & (v < 1)),
    "simplex": (Simplex(), (2, 4), lambda v: (v > 0) & (np.abs(v.sum(axis=-1, keepdims=True) - 1) < 1e-6)),
    "cholesky_factor": (CholeskyFactor(), (3, 3), lambda v: (np.triu(v, 1) == 0).all() & (np.diag(v) > 0).all()),
    "positive_definite": (
        PositiveDefinite(),
        (3, 3),
        lambda v: np.allclose(v, v.T) & (np.linalg.eigvalsh(v.astype("float64")) > 0).all(),
    ),
}
every_case = pytest.mark.parametrize(("parametrization", "shape", "holds"), CASES.values(), ids=CASES)


@every_case
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_there_and_back(parametrization, shape, holds, data):
    latent_shape = parametrization.latent_shape(shape)
    # A Cholesky factor loses as many digits as the matrix's condition has.
    bound = 1 if isinstance(parametrization, PositiveDefinite) else 3
    latent = data.draw(arrays("float32", latent_shape, elements=st.floats(-bound, bound, width=32)))
    value = numpy(parametrization.constrain(keras.ops.convert_to_tensor(latent)))
    assert value.shape == shape
    assert np.all(holds(value))
    np.testing.assert_allclose(parametrization.unconstrain(value), latent, atol=1e-3)


def test_no_component_of_a_simplex_is_apart():
    """Permuted values have permuted distances: those of the logarithms, whose mean is taken off."""
    values = np.array([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        latent = Simplex().unconstrain(values[:, order])
        logs = np.log(values) - np.log(values).mean(axis=-1, keepdims=True)
        assert np.linalg.norm(latent[0] - latent[1]) == pytest.approx(np.linalg.norm(logs[0] - logs[1]), rel=1e-13)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Positive().unconstrain([1.0, 0.0]), ["Positive", "positive", "0."]),
        (lambda: Bounded(2.0, 1.0), ["`high`", "> 2", "1.0"]),
        (lambda: Bounded(0.0, 1.0, log=True), ["`low`", "> 0"]),
        (lambda: Bounded(0.0, 1.0).unconstrain(1.0), ["between 0 and 1"]),
        (lambda: Simplex().unconstrain([0.5, 0.6]), ["sum 1"]),
        (lambda: Simplex().latent_shape((1,)), ["2 entries", "(1,)"]),
        (lambda: CholeskyFactor().latent_shape((2, 3)), ["(d, d)", "(2, 3)"]),
        (lambda: CholeskyFactor().unconstrain(np.ones((2, 2))), ["lower triangular"]),
        (lambda: PositiveDefinite().unconstrain([[1.0, 2.0], [2.0, 1.0]]), ["positive definite"]),
        (lambda: PositiveDefinite().unconstrain([[1.0, 0.5], [0.0, 1.0]]), ["symmetric"]),
    ],
)
def test_values_outside_are_told(make, words):
    with told(ValueError, words):
        make()
