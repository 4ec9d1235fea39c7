"""The total variation of weights along axes, and its proximal map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._ops import safe_abs, safe_sqrt
from minimand._validation import check_bool, check_int, check_several
from minimand.backend import Tensor
from minimand.regularizers._base import WeightRegularizer

# The exact proximal map in one dimension.

Three = list[Tensor]
"""Place, height and slope of lines; or position, change of slope and change of height of knots."""


def fused_lasso(values: Tensor, step: Any) -> Tensor:
    """For each row, argmin_u sum |u[k+1] - u[k]| + sum (u - w)^2 / (2 s), exactly and in O(n).

    The forward pass follows the derivative of the minimum over u[0], ..., u[k-1] as a function of u[k]. The derivative
    is piecewise linear and increasing, and only its part between -1 and 1 matters to u[k+1]. It is clipped to that part
    at two arguments, `low` and `high`, which replace the knots outside of them. The backward pass clips u[k+1] to the
    `low` and `high` of k, which gives u[k].

    Each knot is made and dropped once, so a row takes O(n). All rows advance together, but each has its own k: an
    iteration either drops knots of a row, at most one from each side, or advances k.

    Args:
        values: w, (rows, n).
        step: s > 0, a scalar or (rows, n).

    Source: Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation", JCGS 22 (2013),
    section 2; the squares weighted by 1 / s.
    """
    rows, n = values.shape
    dtype = values.dtype
    step = ops.broadcast_to(step, (rows, n))
    # Everything is multiplied by a row's largest step. Then steps of 0 give the identity, and equal steps no rounding.
    largest = ops.max(step, axis=1)
    limit = ops.expand_dims(largest, 1)
    curvature = limit / ops.where(step > 0, step, ops.where(limit > 0, 1e-6 * limit, 1.0))
    curvature = ops.reshape(ops.where(limit > 0, curvature, 1.0), (-1,))
    entries = ops.reshape(values, (-1,))
    # The sides are the rows of a tensor. A formula for the low side holds for the high side with this sign.
    sign = ops.convert_to_tensor([[1.0], [-1.0]], dtype)
    to_next = ops.cast(sign, "int32")
    row = ops.arange(rows, dtype="int32")
    # Room for the knots, and for values that are discarded.
    width = 2 * n + 3
    offset = row * width

    def start(k: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Height at `place` and slope of the line beyond the outermost knots."""
        index = row * n + ops.minimum(k, n - 1)
        slope = ops.take(curvature, index)
        # Nothing comes before the first entry.
        before = ops.where(k > 0, largest, 0.0)
        return slope * (place - ops.take(entries, index)) - sign * before, ops.stack([slope, slope])

    def put(array: Tensor, positions: Tensor, entries: Tensor) -> Tensor:
        return backend.scatter_update(array, ops.reshape(positions, (-1,)), ops.reshape(entries, (-1,)))

    def iterate(k: Tensor, ends: Tensor, near: Tensor, line: Three, found: Three, arrays: Three, clips: Tensor) -> Any:
        """One iteration; the state has each row's k, and for both sides the first knot, the next one and the line."""
        # Lines are followed from knot to knot, because intercepts at 0 would lose small steps in the rounding of sums
        # of weights. A knot has a change of height too, which makes up for the rounding of the knot's position.
        place, height, slope = line
        knot, slope_change, height_change = found
        after = ops.where(k < n - 1, largest, 0.0)
        there = height + slope * (knot - place)
        drop = ops.logical_and(to_next * (ops.flip(ends, 0) - near) >= 0, sign * there <= -after)
        done = ops.logical_and(k < n, ops.logical_not(ops.any(drop, axis=0)))

        end = place - (sign * after + height) / slope
        rest = sign * (height + slope * (end - place)) + after
        # Rounding must not exchange the sides where nothing is left between them.
        position = ops.stack([near[0] - 1, ops.maximum(near[1] + 1, near[0])])
        kept = offset + ops.where(done, position, width - 1)
        new = (end, sign * slope, rest)
        arrays = [put(array, kept, value) for array, value in zip(arrays, new, strict=True)]
        clips = put(clips, ops.stack([row, row + rows * (n + 1)]) + rows * ops.where(done, k, n), end)

        k = ops.where(done, k + 1, k)
        near = ops.where(done, position, ops.where(drop, near + to_next, near))
        fresh = (end, *start(k, end))
        crossed = (knot, there + sign * height_change, slope + sign * slope_change)
        choices = zip(fresh, crossed, line, strict=True)
        line = [ops.where(done, a, ops.where(drop, b, c)) for a, b, c in choices]
        # The next iteration's knots are read here, because reading before writing would copy the arrays.
        return k, ops.where(done, position, ends), near, line, read(arrays, near), arrays, clips

    def read(arrays: Three, near: Tensor) -> Three:
        return [ops.take(array, offset + ops.clip(near, 0, width - 1)) for array in arrays]

    k = ops.zeros((rows,), "int32")
    # The start has two knots without a change.
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
        # `ops.maximum` computes in float32 on PyTorch.
        now = ops.where(later < low, low, ops.where(later > high, high, later))
        return now, backend.scatter_update(solution, index * rows + row, now)

    _, solution = ops.fori_loop(0, n, backward, (clips[0, n - 1], ops.zeros((n * rows,), dtype)))
    return ops.transpose(ops.reshape(solution, (n, rows)))


# The regularizer.


@keras.saving.register_keras_serializable(package="minimand")
class TotalVariation(WeightRegularizer):
    """TotalVariation penalises the absolute differences between neighbouring weights along axes.

    Use TotalVariation where the entries of an axis are in order (time, frequency, pixels), to get weights that are
    constant in pieces.

    R(w) = strength * sum over `axis` of sum |D w|, at every position of the other axes, D w = w[i+1] - w[i]

    `order=2` takes D twice, which favours piecewise linear weights, and so on. With `periodic`, the first entry is the
    neighbour of the last. `isotropic` sums sqrt(sum over `axis` of (D w)^2), the length of the vector of an entry's
    differences along the axes. Subgradients are 0 where differences are 0.

    The axes of Keras's weights are

    - Conv1D, Conv2D, Conv3D: positions, input channels, filters; depthwise: positions, channels, multiplier. The
      positions are `axis="spatial"`.
    - Dense: inputs, units. `axis=0` is for inputs in order, such as a signal's samples. A flattened array has the
      `shape` of the array: with `shape=(28, 28)`, the weights (784, units) are taken as (28, 28, units).
    - EinsumDense: as in its equation. Embedding: tokens, features; `axis=0` is for tokens in order, such as ages.
    - LSTM, GRU, and their recurrent kernels: inputs, then the units of each gate in turn. With `gates=4` (LSTM) or 3
      (GRU), differences along the last axis stay within a gate.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        axis: an axis or several, or `"spatial"`: all but the last two or, with `shape`, those of `shape`.
        order: how often differences are taken, >= 1.
        isotropic: whether the differences along several axes are taken as a vector; for order 1.
        periodic: whether the axes are closed to rings.
        gates: number >= 1 of equal parts of the last axis, with no differences between parts.
        shape: shape that the first axis is taken apart to, in row-major order, or None; `axis` counts the axes after
            that.
        reduction: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of a shape that has these axes, a scalar. `prox`, for a single axis at order 1 without
        `periodic`, is exact: fused neighbours are equal to the last digit. `prox` is a recursion along the axis, which
        is slow for wide layers.

    Raises:
        ValueError: a number is out of its range, `isotropic` is combined with a single axis or an order above 1; on
            call, the weights do not have these axes, an axis is too short for a difference, or `gates` does not divide
            the last axis.
        TypeError: `axis` is not an integer, a sequence of them or `"spatial"`.
        NotImplementedError: `prox` with other arguments than the stated ones.

    Source: Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60 (1992);
    higher orders: Kim et al., "l1 trend filtering", SIAM Review 51 (2009); `prox`: Johnson, JCGS 22 (2013).

    Examples:
        >>> import minimand
        >>> penalty = minimand.regularizers.TotalVariation(0.1, axis=0)
        >>> round(float(penalty([[0.0, 1.0], [2.0, 1.0]])), 6)
        0.2
        >>> [float(w) for w in minimand.regularizers.TotalVariation(1.0, axis=0).prox([0.0, 1.0, 5.0], 1.0)]
        [1.0, 1.0, 4.0]
    """

    def __init__(
        self,
        strength: Any,
        axis: int | Sequence[int] | str,
        *,
        order: int = 1,
        isotropic: bool = False,
        periodic: bool = False,
        gates: int = 1,
        shape: Sequence[int] | None = None,
        reduction: str = "sum",
    ) -> None:
        super().__init__(strength, reduction=reduction)
        self.axis: Any = _checked_axis(axis)
        self.order = check_int("TotalVariation", "order", order, minimum=1)
        self.isotropic = check_bool("TotalVariation", "isotropic", isotropic)
        self.periodic = check_bool("TotalVariation", "periodic", periodic)
        self.gates = check_int("TotalVariation", "gates", gates, minimum=1)
        self.shape = None
        if shape is not None:
            sizes = check_several("TotalVariation", "shape", shape)
            self.shape = tuple(check_int("TotalVariation", "shape", size, minimum=1) for size in sizes)
        if isotropic and (order > 1 or (self.axis != "spatial" and len(self.axis) == 1)):
            raise ValueError(
                "TotalVariation: isotropic=True needs several axes and order=1. "
                f"Received: axis={axis!r}, order={order!r}"
            )

    def _layout(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        """The shape in which differences of weights of this shape are taken, and the axes in that shape."""
        view = shape
        if self.shape is not None:
            if not shape or math.prod(self.shape) != shape[0]:
                raise ValueError(
                    "TotalVariation: `shape` must have as many entries as the first axis of the weights. "
                    f"Received: shape={self.shape}, weights of shape {shape}"
                )
            view = (*self.shape, *shape[1:])
        rank = len(view)
        if self.axis == "spatial":
            axes = list(range(rank - 2 if self.shape is None else len(self.shape)))
        elif all(-rank <= axis < rank for axis in self.axis):
            axes = sorted({axis % rank for axis in self.axis})
        else:
            raise ValueError(
                f"TotalVariation: `axis` must be an axis of the weights. Received: axis={self.axis}, weights of shape "
                f"{view}"
            )
        if not axes:
            raise ValueError(
                'TotalVariation: axis="spatial" needs the weights of a convolution, of rank 3 or more, or `shape`. '
                f"Received: weights of shape {shape}. Name an axis whose entries are in order by its number."
            )
        if self.gates > 1:
            if view[-1] % self.gates:
                raise ValueError(
                    "TotalVariation: `gates` must divide the last axis of the weights. "
                    f"Received: gates={self.gates}, weights of shape {shape}"
                )
            view = (*view[:-1], self.gates, view[-1] // self.gates)
            axes = [axis + 1 if axis == rank - 1 else axis for axis in axes]
        return view, axes

    def check(self, shape: tuple[int, ...]) -> None:
        (view, axes), needed = self._layout(shape), 2 if self.periodic else self.order + 1
        short = [view[axis] for axis in axes if view[axis] < needed]
        if short:
            raise ValueError(
                f"TotalVariation: an axis needs {needed} entries or more to have a difference of order {self.order}. "
                f"Received: {short[0]} along an axis of weights of shape {shape}"
            )

    def _difference(self, weights: Tensor, axis: int) -> Tensor:
        for _ in range(self.order):
            weights = ops.roll(weights, -1, axis) - weights if self.periodic else ops.diff(weights, axis=axis)
        return weights

    def penalty(self, weights: Tensor) -> Tensor:
        view, axes = self._layout(tuple(weights.shape))
        weights = ops.reshape(weights, view)
        differences = [self._difference(weights, axis) for axis in axes]
        if not self.isotropic:
            return sum(ops.sum(safe_abs(d)) for d in differences)
        if not self.periodic:
            padding = [[[0, int(k == axis)] for k in range(len(weights.shape))] for axis in axes]
            differences = [ops.pad(d, p) for d, p in zip(differences, padding, strict=True)]
        return ops.sum(safe_sqrt(sum(ops.square(d) for d in differences)))

    def require_proximal(self) -> None:
        self._require_proximal(1 if self.axis == "spatial" else len(self.axis))

    def _require_proximal(self, axes: int) -> None:
        """The penalty must be of order 1 along one axis and not periodic. Any other penalty has no proximal map."""
        if self.order > 1 or self.isotropic or self.periodic or axes > 1:
            raise NotImplementedError(
                "TotalVariation: the proximal map is for a single axis at order=1, without `isotropic` and `periodic`. "
                f"Received: axis={self.axis} ({axes} in number), order={self.order}, isotropic={self.isotropic}, "
                f"periodic={self.periodic}. Use WeightPenalty or `kernel_regularizer=`."
            )

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        view, axes = self._layout(tuple(weights.shape))
        self._require_proximal(len(axes))
        (axis,) = axes

        def rows(values: Tensor) -> Tensor:
            return ops.reshape(ops.moveaxis(ops.reshape(values, view), axis, -1), (-1, view[axis]))

        solution = fused_lasso(rows(weights), rows(step) if len(ops.shape(step)) else step)
        moved = (*view[:axis], *view[axis + 1 :], view[axis])
        return ops.reshape(ops.moveaxis(ops.reshape(solution, moved), -1, axis), weights.shape)


def _checked_axis(axis: Any) -> tuple[int, ...] | str:
    if isinstance(axis, str) and axis == "spatial":
        return axis
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
    if not axes or not all(isinstance(each, int) and not isinstance(each, bool) for each in axes):
        raise TypeError(
            f'TotalVariation: `axis` must be an integer, a sequence of them or "spatial". Received: axis={axis!r}'
        )
    return axes
