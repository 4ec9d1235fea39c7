"""The proximal maps of Keras's own regularizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion._elementary import soft_threshold
from kriterion.backend import Tensor


class KerasPenalty:
    """`L1`, `L2` or `L1L2` with what `Proximal` asks of a regularizer.

    prox_s(w) = sign(w) max(|w| - s l1, 0) / (1 + 2 s l2)
    """

    KINDS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)

    def __init__(self, regularizer: Any) -> None:
        self.l1, self.l2 = (float(getattr(regularizer, name, 0.0)) for name in ("l1", "l2"))

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Any weights will do."""

    def require_proximal(self) -> None:
        """There is one."""

    def at(self, iteration: Tensor) -> KerasPenalty:
        """The same at every step."""
        return self

    def proximal_step(
        self, variables: Sequence[keras.Variable], values: Sequence[Tensor], steps: Sequence[Any]
    ) -> list[Tensor]:
        """The proximal map of each value, with its step."""
        return [self._map(value, ops.cast(step, value.dtype)) for value, step in zip(values, steps, strict=True)]

    def _map(self, value: Tensor, step: Tensor) -> Tensor:
        if self.l1 > 0:
            value = soft_threshold(value, self.l1 * step)
        return value / (1.0 + 2.0 * self.l2 * step) if self.l2 > 0 else value
