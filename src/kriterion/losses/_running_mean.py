"""Means over the batches of training."""

from __future__ import annotations

from keras import ops

from kriterion.backend import Tensor


def moved_mean(mean: Tensor, of_batch: Tensor, momentum: float, started: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    """A running mean and whether it has started (0 or 1), after a batch.

    The first batch's as it is; both unchanged where a batch tells nothing.
    """
    moved = of_batch + momentum * started * (mean - of_batch)
    return ops.where(told, moved, mean), ops.where(told, ops.ones_like(started), started)
