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
    width = 2 * n + 2
    offset = ops.arange(rows, dtype="int32") * width

    def at(array: Tensor, position: Tensor) -> Tensor:
        return ops.take(array, offset + ops.clip(position, 0, width - 1))

    def forward(index: Tensor, state: Any) -> Any:
        # Knots `first` to `last`, sorted, with the changes of slope and height at them. Lines are followed from knot to
        # knot: intercepts at 0 would lose small steps in the rounding of sums of weights. For the same reason there is
        # a change of height, of which only the rounding of the knot is the cause.
        knots, slopes, heights, first, last, lows, highs = state
        value, curve, before, after = values[index], curvature[index], bounds[0][index], bounds[1][index]

        def beyond_low(at_knot: Tensor, place: Tensor, height: Tensor, slope: Tensor) -> Tensor:
            there = height + slope * (at(knots, at_knot) - place)
            return ops.logical_and(at_knot <= last, there <= -after)

        def drop_low(at_knot: Tensor, place: Tensor, height: Tensor, slope: Tensor) -> Any:
            drop, knot = beyond_low(at_knot, place, height, slope), at(knots, at_knot)
            return (
                ops.where(drop, at_knot + 1, at_knot),
                ops.where(drop, knot, place),
                ops.where(drop, height + slope * (knot - place) + at(heights, at_knot), height),
                ops.where(drop, slope + at(slopes, at_knot), slope),
            )

        start = at(knots, first)
        left, place, height, low_slope = ops.while_loop(
            lambda *s: ops.any(beyond_low(*s)), drop_low, (first, start, curve * (start - value) - before, curve)
        )
        low = place - (after + height) / low_slope
        low_height = height + low_slope * (low - place) + after

        def beyond_high(at_knot: Tensor, place: Tensor, height: Tensor, slope: Tensor) -> Tensor:
            there = height + slope * (at(knots, at_knot) - place)
            return ops.logical_and(at_knot >= left, there >= after)

        def drop_high(at_knot: Tensor, place: Tensor, height: Tensor, slope: Tensor) -> Any:
            drop, knot = beyond_high(at_knot, place, height, slope), at(knots, at_knot)
            return (
                ops.where(drop, at_knot - 1, at_knot),
                ops.where(drop, knot, place),
                ops.where(drop, height + slope * (knot - place) - at(heights, at_knot), height),
                ops.where(drop, slope - at(slopes, at_knot), slope),
            )

        start = at(knots, last)
        right, place, height, high_slope = ops.while_loop(
            lambda *s: ops.any(beyond_high(*s)), drop_high, (last, start, curve * (start - value) + before, curve)
        )
        high = place + (after - height) / high_slope
        high_height = after - (height + high_slope * (high - place))
        first, last = left - 1, right + 1
        for position, knot, slope, height in (
            (offset + first, low, low_slope, low_height),
            (offset + last, high, -high_slope, high_height),
        ):
            knots = backend.put(knots, position, knot)
            slopes = backend.put(slopes, position, slope)
            heights = backend.put(heights, position, height)
        row = index * rows + ops.arange(rows, dtype="int32")
        return knots, slopes, heights, first, last, backend.put(lows, row, low), backend.put(highs, row, high)

    # Two knots with no change, to start from.
    ends = ops.full((rows,), n, "int32"), ops.full((rows,), n + 1, "int32")
    changes = [ops.zeros((rows * width,), dtype) for _ in range(2)]
    clips = [ops.zeros((n * rows,), dtype) for _ in range(2)]
    *_, lows, highs = ops.fori_loop(0, n, forward, (ops.repeat(values[0], width), *changes, *ends, *clips))
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
