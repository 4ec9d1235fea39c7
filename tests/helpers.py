"""What several test modules need."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from scipy import optimize

import minimand
from minimand import backend
from minimand.testing import finite_difference, gradient
from minimand.testing._suite import compiled, dtype_policy, numpy

KERAS = tuple(map(int, keras.__version__.split(".")[:2]))

# The first lines of a script that a test runs in a new process.
WITHOUT_TENSORFLOW = """
import keras, sys

if keras.backend.backend() != "tensorflow":
    # Keras imports it wherever it is installed, which takes long.
    sys.modules["tensorflow"] = None
"""

__all__ = [
    "WITHOUT_TENSORFLOW",
    "assert_same",
    "compiled",
    "data",
    "dtype_policy",
    "finite_difference",
    "gradient",
    "identity",
    "minimise_variables",
    "mostly_slow",
    "network",
    "numpy",
    "steps",
    "tail_loss",
    "told",
    "weights_of",
]


def mostly_slow(names, *fast):
    """Parameters of a test. Those that are not `fast` are marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def minimise_variables(loss, y_true, y_pred, sample_weight=None, smooth=True):
    """Set the loss's variables to where its value is least, at fixed predictions; the least value.

    By BFGS or, where the loss is a convex function with corners of one variable, by golden sections.
    """
    variables = loss.trainable_variables
    shapes = [variable.shape for variable in variables]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])

    def parts(flat):
        return [np.reshape(flat[a:b], s) for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)]

    def objective(values):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            # Keras's averages are in float32 on PyTorch.
            each = loss(y_true, y_pred, sample_weight=sample_weight)
            return keras.ops.sum(each) / len(y_true), None

    differentiated = compiled(functools.partial(backend.value_and_gradient, objective))

    def value_and_gradient(flat):
        values = [keras.ops.convert_to_tensor(part, v.dtype) for part, v in zip(parts(flat), variables, strict=True)]
        (value, _), gradients = differentiated(values)
        return float(numpy(value)), np.concatenate([numpy(g).ravel() for g in gradients]).astype("float64")

    start = np.concatenate([variable.numpy().ravel() for variable in variables]).astype("float64")
    loss.reduction, reduction = "none", loss.reduction
    if smooth:
        found = optimize.minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    else:
        found = optimize.minimize_scalar(
            lambda v: value_and_gradient(np.array([v]))[0], bounds=(-50, 50), method="bounded", options={"xatol": 1e-8}
        )
    for variable, part in zip(variables, parts(np.atleast_1d(found.x)), strict=True):
        variable.assign(part)
    loss.reduction = reduction
    return found.fun


def data(random, rows=70, features=5, outputs=2):
    x = random.normal(size=(rows, features)).astype("float32")
    y = (x @ random.normal(size=(features, outputs))).astype("float32")
    return x, y


def network(features=5, outputs=2, **dense):
    """Dense, batch normalisation and dropout, from fixed seeds (unseeded, Keras's dropout on PyTorch has no state)."""
    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dense(8, activation="tanh", **dense),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=5),
            keras.layers.Dense(outputs),
        ]
    )


def identity(shape=(1,), trainable=True):
    """A model whose predictions are its inputs."""
    model = keras.Sequential([keras.Input(shape), keras.layers.Rescaling(1.0)])
    model.trainable = trainable
    return model


def tail_loss():
    """A loss with a variable. Its second derivatives compile in less than half the time of the adaptive loss's."""
    return minimand.losses.CVaR("mean_squared_error", 0.5)


def steps(count):
    """Steps of a call of the compiled program; Keras has no such on PyTorch."""
    return 1 if keras.backend.backend() == "torch" else count


def weights_of(model):
    return [numpy(variable) for variable in model.variables]


def assert_same(left, right, **tolerance):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@contextlib.contextmanager
def told(error, words):
    """Within it an error is raised, and its message has all these words."""
    with pytest.raises(error) as raised:
        yield raised
    for word in words:
        assert word in str(raised.value)
