"""A trained threshold in units of the spread around it."""

from __future__ import annotations

from keras import ops

# `ops.cond` takes a new name at each call, so that torch.compile would compile it anew in every step.
from keras.src.backend import cond

from kriterion.backend import Tensor
from kriterion.losses._order_statistics import weighted_quantile
from kriterion.losses._running_mean import moved_mean
from kriterion.losses.base import TrainableLoss

# How much of the unit a step of training keeps.
_MOMENTUM = 0.9


class RunningThreshold:
    """t = c + s u, with u trained: near the quantile of values that change by orders of magnitude in training.

    s is the running mean of |value - t|, so that an optimizer's steps have the size of the values' spread, and large
    where t is far away. When s changes, c does too, so that t stays. The first t is the first batch's quantile.

    The gradient by u is the one by t, without the factor s: it stays of order 1 when the values shrink, and so do the
    steps of an optimizer that divides by the size of former gradients.
    """

    def __init__(self, loss: TrainableLoss, level: float) -> None:
        self.loss, self.level = loss, level
        self.latent = loss.add_weight(name="latent_threshold", logged=False)
        self.origin, self.unit, self.started = (
            loss.add_weight(name=name, trainable=False, aggregation="mean") for name in ("origin", "unit", "started")
        )
        self.log = loss.add_log("threshold")

    @property
    def value(self) -> Tensor:
        """The threshold as it is."""
        return self.origin.value + self.unit.value * self.latent.value

    def of(self, values: Tensor) -> Tensor:
        """The threshold for values (batch, ...); in training its unit follows theirs, in the first batch itself too."""
        dtype = self.origin.dtype
        constants = ops.cast(ops.stop_gradient(values), dtype)
        flat, importance = ops.reshape(constants, (-1,)), ops.reshape(self.loss.importance(constants), (-1,))
        latent, started = self.latent.value, self.started.value
        known = ops.stop_gradient(self.value)
        # A batch of which nothing counts tells nothing.
        told = ops.any(importance > 0)

        def first() -> Tensor:
            return ops.where(told, weighted_quantile(flat, importance, self.level), known)

        threshold = cond(started > 0, lambda: known, first)
        spread = ops.sum(importance * ops.abs(flat - threshold)) / ops.maximum(ops.sum(importance), 1e-30)
        unit, started = moved_mean(self.unit.value, spread, _MOMENTUM, started, told)
        origin = threshold - unit * ops.stop_gradient(latent)
        if self.loss.training:
            self.origin.assign(origin)
            self.unit.assign(unit)
            self.started.assign(started)
        # Forward origin + unit * latent.
        threshold = origin + unit * ops.stop_gradient(latent) + (latent - ops.stop_gradient(latent))
        self.log.update_state(threshold)
        return ops.cast(threshold, values.dtype)

    def read(self) -> float:
        """The threshold as a number."""
        if not float(ops.convert_to_numpy(self.started)):
            raise ValueError(f"{type(self.loss).__name__}: the threshold is known after the first batch of `fit`.")
        return float(ops.convert_to_numpy(ops.stop_gradient(self.value)))


def excess(values: Tensor, threshold: Tensor, share: float) -> Tensor:
    """T + (v - t)+ / share: its mean, minimised over t, is the mean of the largest `share` of the values."""
    return threshold + ops.relu(values - threshold) / share
