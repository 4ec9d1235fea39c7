"""A variable seen through a bijection."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kriterion.backend import Tensor
from kriterion.parametrizations import Parametrization


class Parameter:
    """A constrained parameter of a loss: `value` is what it is, `latent` the variable that is trained."""

    def __init__(self, latent: keras.Variable, name: str, parametrization: Parametrization) -> None:
        self.latent, self.name, self.parametrization = latent, name, parametrization

    @property
    def value(self) -> Tensor:
        """The value, a tensor with a gradient by the latent variable."""
        return self.parametrization.constrain(self.latent.value)

    def numpy(self) -> np.ndarray:
        """The value as an array."""
        return keras.ops.convert_to_numpy(keras.ops.stop_gradient(self.value))

    def assign(self, value: Any) -> None:
        """Set the value.

        Raises:
            ValueError: it is not one that the parametrization can give.
        """
        self.latent.assign(self.parametrization.unconstrain(value))


def latent_initializer(initializer: Any, shape: tuple[int, ...], parametrization: Parametrization, name: str) -> Any:
    """The initializer of the latent variable whose value is first the given number or array."""
    try:
        first = np.broadcast_to(np.asarray(initializer, "float64"), shape)
    except (TypeError, ValueError):
        raise ValueError(
            f"add_weight: with a `parametrization`, `initializer` must be the first value: a number, or an array of "
            f"shape {shape}. Received: initializer={initializer!r} for {name!r}"
        ) from None
    latent = parametrization.unconstrain(first)
    return lambda _, dtype=None: keras.ops.convert_to_tensor(latent, dtype)
