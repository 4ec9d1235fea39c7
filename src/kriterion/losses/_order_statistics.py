"""Quantiles of examples that count differently."""

from __future__ import annotations

from keras import ops

from kriterion.backend import Tensor


def weighted_quantile(values: Tensor, weights: Tensor, level: float) -> Tensor:
    """The first of the values along axis 0, in rising order, up to which the weights reach `level` of their sum.

    A value of weight k counts as k values do, one of weight 0 not at all; where no value counts, any may come out.
    """
    order = ops.argsort(values, axis=0)
    reached = ops.cumsum(ops.take_along_axis(weights, order, axis=0), axis=0)
    index = ops.sum(ops.cast(reached < level * reached[-1:], "int32"), axis=0, keepdims=True)
    return ops.take_along_axis(ops.take_along_axis(values, order, axis=0), index, axis=0)[0]
