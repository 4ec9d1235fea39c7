"""The step that an optimizer takes along a lasting gradient: the inverse of its diagonal metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor


def _sgd(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    # Keras's momentum sums gradients: a lasting one is taken 1 / (1 - momentum) times.
    return rate / (1.0 - optimizer.momentum)


def _adam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = (optimizer._velocity_hats if getattr(optimizer, "amsgrad", False) else optimizer._velocities)[index].value
    weight = 1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), ops.cast(optimizer.iterations, "float32"))
    return rate * ops.cast(ops.sqrt(weight), squares.dtype) / (ops.sqrt(squares) + optimizer.epsilon)


def _nadam(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    weight = 1.0 - ops.power(ops.cast(optimizer.beta_2, "float32"), ops.cast(optimizer.iterations, "float32"))
    return rate / (ops.sqrt(squares / ops.cast(weight, squares.dtype)) + optimizer.epsilon)


def _adamax(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / (optimizer._u[index].value + optimizer.epsilon)


def _rmsprop(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    squares = optimizer._velocities[index].value
    if optimizer.centered:
        squares = squares - ops.square(optimizer._average_gradients[index].value)
    return rate / (1.0 - optimizer.momentum) / ops.sqrt(squares + optimizer.epsilon)


def _adagrad(optimizer: Any, index: int, rate: Tensor) -> Tensor:
    return rate / ops.sqrt(optimizer._accumulators[index].value + optimizer.epsilon)


# AdamW is an Adam, with weight decay outside of the update.
_STEPS: dict[type, Callable[[Any, int, Tensor], Tensor]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
}
KNOWN = tuple(kind.__name__ for kind in _STEPS)


def has_metric(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether `step_size` knows the optimizer."""
    return any(isinstance(optimizer, kind) for kind in _STEPS)


def step_size(optimizer: Any, variable: keras.Variable, rate: Tensor) -> Tensor:
    """S such that the update by a lasting gradient g is -s g: a scalar, or of the variable's shape.

    Args:
        optimizer: an optimizer that has made its update.
        variable: one that it trains.
        rate: its learning rate.
    """
    step = next(step for kind, step in _STEPS.items() if isinstance(optimizer, kind))
    return step(optimizer, optimizer._get_variable_index(variable), rate)
