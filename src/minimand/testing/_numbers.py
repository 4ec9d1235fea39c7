"""Values, gradients by the framework, and gradients by differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from minimand import backend


def numpy(value: Any) -> np.ndarray:
    """The value of a tensor or a variable, without its gradient."""
    if isinstance(value, keras.Variable):
        return value.numpy()
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(value))


def gradient(function: Callable[..., Any], *values: Any) -> list[np.ndarray]:
    """Gradients of a scalar function of arrays by each of them, by the framework.

    Args:
        function: takes as many tensors as there are `values`; gives a scalar.
        *values: arrays.

    Returns:
        Arrays of their shapes.

    Examples:
        >>> import keras, numpy as np
        >>> from minimand import testing
        >>> testing.gradient(lambda v: keras.ops.sum(v**2), np.array([1.0, 2.0]))[0].tolist()
        [2.0, 4.0]
    """
    return gradient_by(backend.value_and_gradient, function, *values)


def gradient_by(value_and_gradient: Callable[..., Any], function: Callable[..., Any], *values: Any) -> list[np.ndarray]:
    """The same by a given backend's function."""
    tensors = [keras.ops.convert_to_tensor(value) for value in values]
    return [numpy(g) for g in value_and_gradient(lambda t: (function(*t), None), tensors)[1]]


def finite_difference(function: Callable[[np.ndarray], Any], value: Any, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of one float64 array.

    (f(v + h e_j) - f(v - h e_j)) / 2h for each entry j: right to h^2 f'''/6 and the rounding of f over h.

    Args:
        function: takes a float64 array; gives a number.
        value: where.
        step: h > 0.

    Returns:
        An array of the value's shape.

    Examples:
        >>> from minimand import testing
        >>> testing.finite_difference(lambda v: (v**2).sum(), [1.0, 2.0]).round(6).tolist()
        [2.0, 4.0]
    """
    value = np.array(value, dtype="float64")
    result = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        shift = np.zeros_like(value)
        shift[index] = step
        result[index] = (float(function(value + shift)) - float(function(value - shift))) / (2 * step)
    return result
