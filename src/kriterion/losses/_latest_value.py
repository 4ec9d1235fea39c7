"""How a loss reports the values of its parameters."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor


@keras.saving.register_keras_serializable(package="kriterion")
class LatestValue(keras.metrics.Metric):
    """The value that it was last updated with: a parameter of a loss, in the logs of `fit`."""

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, value: Tensor) -> None:
        """Remember the value."""
        self.value.assign(ops.cast(ops.stop_gradient(value), self.value.dtype))

    def result(self) -> Tensor:
        """The value."""
        return ops.convert_to_tensor(self.value)
