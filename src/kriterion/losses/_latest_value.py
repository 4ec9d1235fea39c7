"""How a loss reports the values of its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor

# More entries than this would bury the other keys of the logs.
_MOST_ENTRIES = 10


@keras.saving.register_keras_serializable(package="kriterion")
class LatestValue(keras.metrics.Metric):
    """The value that it was last updated with: a parameter of a loss, in the logs of `fit`.

    Those of an array are the keys NAME_0, NAME_1, ... (NAME_0_0 and so on for more axes), if they are 10 at most, and
    the key NAME_mean if they are more.
    """

    def __init__(self, name: str | None = None, dtype: Any = None, *, shape: Sequence[int] = ()) -> None:
        super().__init__(name=name, dtype=dtype)
        self.value = self.add_variable(tuple(shape), "zeros", name="value")

    def update_state(self, value: Tensor) -> None:
        """Remember the value."""
        self.value.assign(ops.cast(ops.stop_gradient(value), self.value.dtype))

    def result(self) -> Any:
        """The value, or several by name."""
        value = ops.convert_to_tensor(self.value)
        shape = tuple(self.value.shape)
        if shape == ():
            return value
        places = list(itertools.product(*map(range, shape)))
        if len(places) > _MOST_ENTRIES:
            return {f"{self.name}_mean": ops.mean(value)}
        return {"_".join([self.name, *map(str, place)]): value[place] for place in places}
