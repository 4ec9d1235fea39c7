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

    Each knot is made and dropped once, so a row takes O(n). All rows go on together, but each at its own k: an
    iteration either drops knots of a row, at most one from each side, or goes to its next k.

    Args:
        values: w, (rows, n).
        step: s > 0, a scalar or (rows, n).

    Source: Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", JCGS 22 (2013),
    section 2; the squares weighted by 1 / s.
    """
    rows, n = values.shape
    dtype = values.dtype
    step = ops.broadcast_to(step, (rows, n))
    # All is multiplied by a row's largest step: steps of 0 make the identity, and equal ones no rounding.
    largest = ops.max(step, axis=1)
    limit = ops.expand_dims(largest, 1)
    curvature = limit / ops.where(step > 0, step, ops.where(limit > 0, 1e-6 * limit, 1.0))
    curvature = ops.reshape(ops.where(limit > 0, curvature, 1.0), (-1,))
    entries = ops.reshape(values, (-1,))
    # The two sides are rows of a tensor: what is said of the low one holds for the high one with this sign.
    sign = ops.convert_to_tensor([[1.0], [-1.0]], dtype)
    to_next = ops.cast(sign, "int32")
    row = ops.arange(rows, dtype="int32")
    # Room for the knots, and for what is not to be written.
    width = 2 * n + 3
    offset = row * width

    def start(k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The line beyond the outermost knots at `place`: its height there, and its slope."""
        index = row * n + ops.minimum(k, n - 1)
        slope = ops.take(curvature, index)
        # Nothing comes before the first entry.
        before = ops.where(k > 0, largest, 0.0)
        return slope * (place - ops.take(entries, index)) - sign * before, ops.stack([slope, slope])

    def iterate(
        k: Tensor,
        ends: Tensor,
        near: Tensor,
        line: list[Tensor],
        found: list[Tensor],
        arrays: list[Tensor],
        clips: Tensor,
    ) -> Any:
        """One iteration: for each row its k, and for both sides the first knot, the next one, and the line before."""
        # Lines are followed from knot to knot: intercepts at 0 would lose small steps in the rounding of sums of
        # weights. For the same reason knots have a change of height, which the rounding of the knot alone makes.
        place, height, slope = line
        knot, slope_change, height_change = found
        after = ops.where(k < n - 1, largest, 0.0)
        there = height + slope * (knot - place)
        drop = ops.logical_and(to_next * (ops.flip(ends, 0) - near) >= 0, sign * there <= -after)
        done = ops.logical_and(k < n, ops.logical_not(ops.any(drop, axis=0)))

        end = place - (sign * after + height) / slope
        rest = sign * (height + slope * (end - place)) + after
        # Where nothing is left between the sides, rounding must not exchange them.
        position = ops.stack([near[0] - 1, ops.maximum(near[1] + 1, near[0])])
        kept = ops.reshape(offset + ops.where(done, position, width - 1), (-1,))
        new = (end, sign * slope, rest)
        arrays = [backend.put(array, kept, ops.reshape(value, (-1,))) for array, value in zip(arrays, new, strict=True)]
        clipped = ops.stack([row, row + rows * (n + 1)]) + rows * ops.where(done, k, n)
        clips = backend.put(clips, ops.reshape(clipped, (-1,)), ops.reshape(end, (-1,)))

        k = ops.where(done, k + 1, k)
        near = ops.where(done, position, ops.where(drop, near + to_next, near))
        crossed = (knot, there + sign * height_change, slope + sign * slope_change)
        line = [
            ops.where(done, fresh, ops.where(drop, beyond, old))
            for fresh, beyond, old in zip((end, *start(k, end)), crossed, line, strict=True)
        ]
        # What the next iteration needs of the arrays is read here: reading before writing would have them copied.
        return k, ops.where(done, position, ends), near, line, read(arrays, near), arrays, clips

    def read(arrays: list[Tensor], near: Tensor) -> list[Tensor]:
        return [ops.take(array, offset + ops.clip(near, 0, width - 1)) for array in arrays]

    k = ops.zeros((rows,), "int32")
    # Two knots with no change, to start from.
    ends = ops.stack([ops.full((rows,), n, "int32"), ops.full((rows,), n + 1, "int32")])
    place = ops.stack([values[:, 0], values[:, 0]])
    arrays = [ops.repeat(values[:, 0], width), *(ops.zeros((rows * width,), dtype) for _ in range(2))]
    clips = ops.zeros((2 * (n + 1) * rows,), dtype)
    state = (k, ends, ends, [place, *start(k, place)], read(arrays, ends), arrays, clips)
    *_, clips = ops.while_loop(lambda k, *_: ops.any(k < n), iterate, state)
    clips = ops.reshape(clips, (2, n + 1, rows))

    def backward(index: Tensor, state: Any) -> Any:
        later, solution = state
        index = n - 1 - index
        low, high = clips[0, index], clips[1, index]
        # Not `ops.maximum`, which is in float32 on PyTorch.
        now = ops.where(later < low, low, ops.where(later > high, high, later))
        return now, backend.put(solution, index * rows + row, now)

    _, solution = ops.fori_loop(0, n, backward, (clips[0, n - 1], ops.zeros((n * rows,), dtype)))
    return ops.transpose(ops.reshape(solution, (n, rows)))
