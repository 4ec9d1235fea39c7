"""The proximal map of total variation in one dimension, exactly, in O(n)."""

from __future__ import annotations

from typing import Any

from keras import ops

from kriterion import backend
from kriterion.backend import Tensor


def fused_lasso(values: Tensor, step: Any) -> Tensor:
    """For each row, argmin_u sum |u[k+1] - u[k]| + sum (u - w)^2 / (2 s).

    Forward, the derivative of the minimum over u[0], ..., u[k-1] as a function of u[k] is piecewise linear and
    increasing, and only its part between -1 and 1 matters to u[k+1]: it is clipped there, at two arguments `low` and
    `high`, which replace the knots outside of them. Backward, u[k] is u[k+1] clipped to its `low` and `high`.
    Each knot is made and dropped once, so a row takes O(n); all rows go on together.

    Args:
        values: w, (rows, n).
        step: s > 0, a scalar or (rows, n).

    Source: Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", JCGS 22 (2013),
    section 2; the squares weighted by 1 / s.
    """
    rows, n = values.shape
    dtype = values.dtype
    step = ops.transpose(ops.broadcast_to(step, (rows, n)))
    values = ops.transpose(values)
    # All is multiplied by a row's largest step: steps of 0 make the identity, and equal ones no rounding.
    largest = ops.max(step, axis=0)
    curvature = largest / ops.where(step > 0, step, ops.where(largest > 0, 1e-6 * largest, 1.0))
    curvature = ops.where(largest > 0, curvature, 1.0)
    # What the derivative is clipped to before and after each k: nothing comes before the first or after the last.
    k = ops.expand_dims(ops.arange(n), 1)
    bounds = ops.where(k > 0, largest, 0.0), ops.where(k < n - 1, largest, 0.0)
    offset = ops.arange(rows, dtype="int32") * (2 * n)

    def at(array: Tensor, position: Tensor) -> Tensor:
        return ops.take(array, offset + ops.clip(position, 0, 2 * n - 1))

    def forward(index: Tensor, state: Any) -> Any:
        # Knots `first` to `last`, sorted, with the changes of slope and intercept at them.
        knots, slopes, intercepts, first, last, lows, highs = state
        value, curve, before, after = values[index], curvature[index], bounds[0][index], bounds[1][index]

        def beyond_low(at_knot: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
            return ops.logical_and(at_knot <= last, slope * at(knots, at_knot) + intercept <= -after)

        def drop_low(at_knot: Tensor, slope: Tensor, intercept: Tensor) -> Any:
            drop = beyond_low(at_knot, slope, intercept)
            return (
                ops.where(drop, at_knot + 1, at_knot),
                ops.where(drop, slope + at(slopes, at_knot), slope),
                ops.where(drop, intercept + at(intercepts, at_knot), intercept),
            )

        left, low_slope, low_intercept = ops.while_loop(
            lambda *s: ops.any(beyond_low(*s)), drop_low, (first, curve, -curve * value - before)
        )

        def beyond_high(at_knot: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
            return ops.logical_and(at_knot >= left, slope * at(knots, at_knot) + intercept >= after)

        def drop_high(at_knot: Tensor, slope: Tensor, intercept: Tensor) -> Any:
            drop = beyond_high(at_knot, slope, intercept)
            return (
                ops.where(drop, at_knot - 1, at_knot),
                ops.where(drop, slope - at(slopes, at_knot), slope),
                ops.where(drop, intercept - at(intercepts, at_knot), intercept),
            )

        right, high_slope, high_intercept = ops.while_loop(
            lambda *s: ops.any(beyond_high(*s)), drop_high, (last, curve, -curve * value + before)
        )
        low = (-after - low_intercept) / low_slope
        high = (after - high_intercept) / high_slope
        first, last = left - 1, right + 1
        for position, knot, slope, intercept in (
            (offset + first, low, low_slope, low_intercept + after),
            (offset + last, high, -high_slope, after - high_intercept),
        ):
            knots = backend.put(knots, position, knot)
            slopes = backend.put(slopes, position, slope)
            intercepts = backend.put(intercepts, position, intercept)
        row = index * rows + ops.arange(rows, dtype="int32")
        return knots, slopes, intercepts, first, last, backend.put(lows, row, low), backend.put(highs, row, high)

    arrays = [ops.zeros((rows * 2 * n,), dtype) for _ in range(3)]
    ends = ops.full((rows,), n, "int32"), ops.full((rows,), n - 1, "int32")
    clips = [ops.zeros((n * rows,), dtype) for _ in range(2)]
    *_, lows, highs = ops.fori_loop(0, n, forward, (*arrays, *ends, *clips))
    lows, highs = ops.reshape(lows, (n, rows)), ops.reshape(highs, (n, rows))

    def backward(index: Tensor, state: Any) -> Any:
        later, solution = state
        index = n - 1 - index
        low, high = lows[index], highs[index]
        # Not `ops.maximum`, which is in float32 on PyTorch.
        now = ops.where(later < low, low, ops.where(later > high, high, later))
        return now, backend.put(solution, index * rows + ops.arange(rows, dtype="int32"), now)

    _, solution = ops.fori_loop(0, n, backward, (lows[n - 1], ops.zeros((n * rows,), dtype)))
    return ops.transpose(ops.reshape(solution, (n, rows)))
