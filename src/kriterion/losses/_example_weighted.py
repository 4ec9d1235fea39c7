"""What the losses that weight another loss's examples share."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from kriterion._validation import check_bool
from kriterion.backend import Tensor
from kriterion.losses._wrapping import WrappingLoss
from kriterion.losses.base import TrainableLoss


class ExampleWeighted(WrappingLoss):
    """A loss's value at each example times a weight that depends on it.

    mean_i v_i l_i, with v_i behind stop_gradient unless `differentiate`; with `normalize`, v_i / mean(v)

    A subclass has `example_weights`. It works in stock `compile` unless it, or the loss that it wraps, has variables.
    """

    def __init__(
        self, loss: Any, *, differentiate: bool, normalize: bool, reduction: str | None, name: str, dtype: Any
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = type(self).__name__
        self.differentiate = check_bool(owner, "differentiate", differentiate)
        self.normalize = check_bool(owner, "normalize", normalize)

    @property
    def needs_trainer(self) -> bool:
        return isinstance(self.loss, TrainableLoss) and self.loss.needs_trainer

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        """The weight of each example.

        Args:
            values: the loss's values (batch, ...), in float32 or float64.
            importance: how much each counts: its sample weight, 0 where masked.
        """
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        importance = self.importance(values)
        weights = self.example_weights(values if self.differentiate else ops.stop_gradient(values), importance)
        if self.normalize:
            weights = ops.divide_no_nan(weights * ops.sum(importance), ops.sum(weights * importance))
        return weights * values

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "differentiate": self.differentiate,
            "normalize": self.normalize,
        }


def robust_example_weights(squares: Tensor, alpha: float) -> Tensor:
    """w(u)/w(0) of a robust loss, from u^2: (u^2/|a-2| + 1)^(a/2-1), for a <= 2."""
    if alpha == 2:
        return ops.ones_like(squares)
    if math.isinf(alpha):
        return ops.exp(-squares / 2)
    return ops.exp((alpha / 2 - 1) * ops.log1p(squares / (2 - alpha)))
