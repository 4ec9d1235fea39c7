"""Means over the batches of training."""

from __future__ import annotations

from keras import ops

from kriterion.backend import Tensor


def moved_mean(mean: Tensor, of_batch: Tensor, momentum: float, started: Tensor, told: Tensor) -> Tensor:
    """A running mean after a batch: the first one's as it is (`started` 0), unchanged where a batch tells nothing."""
    return ops.where(told, of_batch + momentum * started * (mean - of_batch), mean)
