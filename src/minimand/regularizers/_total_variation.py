"""Total variation of weights along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._ops import magnitude, safe_sqrt
from minimand._validation import check_bool, check_int, check_several
from minimand.backend import Tensor
from minimand.regularizers._base import WeightRegularizer

# The proximal map of total variation in one dimension, exactly, in O(n).


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
        arrays = [
            backend.scatter_update(array, kept, ops.reshape(value, (-1,)))
            for array, value in zip(arrays, new, strict=True)
        ]
        clipped = ops.stack([row, row + rows * (n + 1)]) + rows * ops.where(done, k, n)
        clips = backend.scatter_update(clips, ops.reshape(clipped, (-1,)), ops.reshape(end, (-1,)))

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
        return now, backend.scatter_update(solution, index * rows + row, now)

    _, solution = ops.fori_loop(0, n, backward, (clips[0, n - 1], ops.zeros((n * rows,), dtype)))
    return ops.transpose(ops.reshape(solution, (n, rows)))


# Total variation of weights along axes.


@keras.saving.register_keras_serializable(package="minimand")
class TotalVariation(WeightRegularizer):
    """The sum of absolute differences between neighbours along axes: favours piecewise constant weights.

    R(w) = strength * sum over `axis` of sum |D w|, at every position of the other axes, D w = w[i+1] - w[i]

    `order=2` takes D twice, which favours piecewise linear weights, and so on; with `periodic`, the last entry has the
    first as its neighbour. `isotropic` takes the length of the vector of an entry's differences along the axes,
    sqrt(sum over `axis` of (D w)^2), instead of the sum of their sizes. Subgradients are 0 where differences are 0.

    Differences make sense along an axis whose entries are in order: time, frequency, pixels. The axes of Keras's
    weights:

    - Conv1D, Conv2D, Conv3D: positions, input channels, filters; depthwise: positions, channels, multiplier. The
      positions are `axis="spatial"`.
    - Dense: inputs, units. Inputs in order, such as a signal's samples, are `axis=0`. Those of a flattened array
      have its `shape`: with `shape=(28, 28)`, the weights (784, units) are taken as (28, 28, units).
    - EinsumDense: as in its equation. Embedding: tokens, features: `axis=0` for tokens in order, such as ages.
    - LSTM, GRU, and their recurrent kernels: inputs, then the units of each gate in turn. With `splits=4` (LSTM) or 3
      (GRU), differences along the last axis stay within a gate.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        axis: an axis or several, or `"spatial"`: all but the last two or, with `shape`, those of `shape`.
        order: how often differences are taken, >= 1.
        isotropic: whether the differences along several axes are taken as a vector; for order 1.
        periodic: whether the axes are closed to rings.
        splits: number >= 1 of equal parts of the last axis, with no differences between them.
        shape: shape that the first axis is taken apart to, in row-major order, or None. It comes before `axis`.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of a shape that has these axes, a scalar. `prox`, for a single axis at order 1 without
        `periodic`, is exact: neighbours that are fused are equal to the last digit. It is a recursion along the axis,
        slow for wide layers.

    Raises:
        ValueError: a number is out of its range, `isotropic` goes with a single axis or an order above 1; on call,
            the weights do not have these axes, an axis is too short for a difference, or a size does not divide.
        TypeError: `axis` is not an integer, a sequence of them or `"spatial"`.
        NotImplementedError: `prox` of another than the stated form.

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
        splits: int = 1,
        shape: Sequence[int] | None = None,
        reduce: str = "sum",
    ) -> None:
        super().__init__(strength, reduce=reduce)
        self.axis: Any = _checked_axis(axis)
        self.order = check_int("TotalVariation", "order", order, minimum=1)
        self.isotropic = check_bool("TotalVariation", "isotropic", isotropic)
        self.periodic = check_bool("TotalVariation", "periodic", periodic)
        self.splits = check_int("TotalVariation", "splits", splits, minimum=1)
        self.shape = None
        if shape is not None:
            sizes = check_several("TotalVariation", "shape", shape)
            self.shape = tuple(check_int("TotalVariation", "shape", size, minimum=1) for size in sizes)
        if isotropic and (order > 1 or (self.axis != "spatial" and len(self.axis) == 1)):
            raise ValueError(
                "TotalVariation: isotropic=True needs several axes and order=1. "
                f"Received: axis={axis!r}, order={order!r}"
            )

    def _view(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the differences are taken in: `shape` for the first axis, two axes for the last one."""
        if self.shape is not None:
            if not shape or math.prod(self.shape) != shape[0]:
                raise ValueError(
                    "TotalVariation: `shape` must have as many entries as the first axis of the weights. "
                    f"Received: shape={self.shape}, weights of shape {shape}"
                )
            shape = (*self.shape, *shape[1:])
        if self.splits > 1:
            if not shape or shape[-1] % self.splits:
                raise ValueError(
                    "TotalVariation: `splits` must divide the last axis of the weights. "
                    f"Received: splits={self.splits}, weights of shape {shape}"
                )
            shape = (*shape[:-1], self.splits, shape[-1] // self.splits)
        return shape

    def _axes(self, shape: tuple[int, ...]) -> list[int]:
        """The axes of the view of weights of this shape."""
        view = self._view(shape)
        # The axis of the splits is none of the weights'.
        rank = len(view) - (self.splits > 1)
        if self.axis == "spatial":
            axes = list(range(rank - 2 if self.shape is None else len(self.shape)))
            if not axes:
                raise ValueError(
                    'TotalVariation: axis="spatial" needs the weights of a convolution, of rank 3 or more, or `shape`: '
                    f"other axes have no order. Received: weights of shape {shape}. Name an axis whose entries are in "
                    "order by its number."
                )
        else:
            if not all(-rank <= axis < rank for axis in self.axis):
                raise ValueError(
                    f"TotalVariation: `axis` must be an axis of the weights. Received: axis={self.axis}, "
                    f"weights of shape {view[: rank - 1] + view[-1:] if self.splits > 1 else view}"
                )
            axes = sorted({axis % rank for axis in self.axis})
        if self.splits > 1:
            axes = [axis + 1 if axis == rank - 1 else axis for axis in axes]
        return axes

    def check(self, shape: tuple[int, ...]) -> None:
        view, needed = self._view(shape), 2 if self.periodic else self.order + 1
        short = [axis for axis in self._axes(shape) if view[axis] < needed]
        if short:
            raise ValueError(
                f"TotalVariation: an axis needs {needed} entries or more to have a difference of order {self.order}. "
                f"Received: {view[short[0]]} along an axis of weights of shape {shape}"
            )

    def _difference(self, weights: Tensor, axis: int) -> Tensor:
        for _ in range(self.order):
            weights = ops.roll(weights, -1, axis) - weights if self.periodic else ops.diff(weights, axis=axis)
        return weights

    def penalty(self, weights: Tensor) -> Tensor:
        axes = self._axes(tuple(weights.shape))
        weights = ops.reshape(weights, self._view(tuple(weights.shape)))
        differences = [self._difference(weights, axis) for axis in axes]
        if not self.isotropic:
            return sum(ops.sum(magnitude(d)) for d in differences)
        if not self.periodic:
            padding = [[[0, int(k == axis)] for k in range(len(weights.shape))] for axis in axes]
            differences = [ops.pad(d, p) for d, p in zip(differences, padding, strict=True)]
        return ops.sum(safe_sqrt(sum(ops.square(d) for d in differences)))

    def require_proximal(self) -> None:
        if self.order > 1 or self.isotropic or self.periodic or (self.axis != "spatial" and len(self.axis) > 1):
            raise NotImplementedError(
                "TotalVariation: there is a proximal map for a single axis at order=1, without `isotropic` and "
                f"`periodic`. Received: axis={self.axis}, order={self.order}, isotropic={self.isotropic}, "
                f"periodic={self.periodic}. Use WeightPenalty or `kernel_regularizer=`."
            )

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        shape = tuple(weights.shape)
        view, axes = self._view(shape), self._axes(shape)
        if len(axes) > 1:
            raise NotImplementedError(
                f"TotalVariation: there is a proximal map for a single axis. Received: axes {axes} of weights of "
                f"shape {shape}"
            )
        moved = ops.moveaxis(ops.reshape(weights, view), axes[0], -1)
        if len(ops.shape(step)):
            step = ops.reshape(ops.moveaxis(ops.reshape(step, view), axes[0], -1), (-1, view[axes[0]]))
        solution = fused_lasso(ops.reshape(moved, (-1, view[axes[0]])), step)
        return ops.reshape(ops.moveaxis(ops.reshape(solution, tuple(moved.shape)), -1, axes[0]), shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "axis": self.axis if isinstance(self.axis, str) else list(self.axis),
            "order": self.order,
            "isotropic": self.isotropic,
            "periodic": self.periodic,
            "splits": self.splits,
            "shape": None if self.shape is None else list(self.shape),
        }


def _checked_axis(axis: Any) -> tuple[int, ...] | str:
    if isinstance(axis, str) and axis == "spatial":
        return axis
    axes = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
    if not axes or not all(isinstance(each, int) and not isinstance(each, bool) for each in axes):
        raise TypeError(
            f'TotalVariation: `axis` must be an integer, a sequence of them or "spatial". Received: axis={axis!r}'
        )
    return axes
