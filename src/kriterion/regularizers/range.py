"""Weights kept within a range."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor


@keras.saving.register_keras_serializable(package="kriterion")
class Range(keras.regularizers.Regularizer):
    """The squared distance of each weight to an interval: free inside, quadratic outside.

    R(w) = strength * sum max(w - high, 0)^2 + max(low - w, 0)^2

    Soft: weights may end slightly outside (`keras.constraints` holds them inside exactly).

    Args:
        strength: coefficient >= 0.
        low: lower end, in units of the weights.
        high: upper end, at least `low`.

    Returns:
        As a call: for weights of any shape, a scalar.

    Raises:
        ValueError: an argument is not finite, `strength` is negative, or `low` exceeds `high`.

    Source: the quadratic penalty of the constraint low <= w <= high; Nocedal and Wright, "Numerical optimization",
    2nd edition, section 17.1.

    Example:
    >>> import kriterion
    >>> round(float(kriterion.regularizers.Range(0.5, -1.0, 1.0)([0.3, 1.5, -3.0])), 6)
    2.125
    """

    def __init__(self, strength: float, low: float, high: float) -> None:
        self.strength = check_float("Range", "strength", strength, minimum=0.0)
        self.low = check_float("Range", "low", low)
        self.high = check_float("Range", "high", high)
        if self.low > self.high:
            raise ValueError(f"Range: `low` must not exceed `high`. Received: low={low!r}, high={high!r}")

    def __call__(self, x: Tensor) -> Tensor:
        x = ops.convert_to_tensor(x)
        outside = ops.relu(x - self.high) + ops.relu(self.low - x)
        return ops.cast(self.strength, x.dtype) * ops.sum(ops.square(outside))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "low": self.low, "high": self.high}
