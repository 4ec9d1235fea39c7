"""The penalty on weights outside of a range."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from minimand._ops import soft_threshold
from minimand._validation import check_float
from minimand.backend import Tensor
from minimand.regularizers._base import WeightRegularizer


@keras.saving.register_keras_serializable(package="minimand")
class Range(WeightRegularizer):
    """Range penalises the distance of each weight to an interval, or the square of that distance.

    Use Range to keep weights bounded, for instance for fixed-point hardware; weights inside the interval are free.

    R(w) = strength * sum max(w - high, low - w, 0)^power

    With `power=2` weights may end slightly outside. With `power=1` the penalty is exact: from some strength on, its
    minimum lies inside, and the proximal step of `optimizers.Proximal` puts weights onto the ends exactly.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        low: lower end, in units of the weights.
        high: upper end, at least `low`.
        power: 1 or 2.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of any shape, a scalar. `project` clips the weights to the interval.

    Raises:
        ValueError: a number is not finite, `strength` is negative, `low` exceeds `high`, `power` or `reduction` is
            unknown.

    Source: the penalties of the constraint low <= w <= high; Nocedal and Wright, "Numerical optimization", 2nd
    edition, sections 17.1 (quadratic) and 17.2 (exact).

    Examples:
        >>> import minimand
        >>> penalty = minimand.regularizers.Range(0.5, -1.0, 1.0)
        >>> round(float(penalty([0.3, 1.5, -3.0])), 6)
        2.125
        >>> [float(w) for w in penalty.project([0.25, 1.5, -3.0])]
        [0.25, 1.0, -1.0]
    """

    def __init__(self, strength: Any, low: float, high: float, *, power: int = 2, reduction: str = "sum") -> None:
        super().__init__(strength, reduction=reduction)
        self.low = check_float("Range", "low", low)
        self.high = check_float("Range", "high", high)
        if self.low > self.high:
            raise ValueError(f"Range: `low` must not exceed `high`. Received: low={low!r}, high={high!r}")
        if power not in (1, 2):
            raise ValueError(f"Range: `power` must be 1 or 2. Received: power={power!r}")
        self.power = power

    def penalty(self, weights: Tensor) -> Tensor:
        outside = ops.relu(weights - self.high) + ops.relu(self.low - weights)
        return ops.sum(outside if self.power == 1 else ops.square(outside))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        nearest = self.projection(weights)
        excess = weights - nearest
        if self.power == 2:
            return nearest + excess / (1.0 + 2.0 * step)
        return nearest + soft_threshold(excess, step)

    def projection(self, weights: Tensor) -> Tensor:
        return ops.clip(weights, self.low, self.high)
