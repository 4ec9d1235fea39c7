"""Weights in groups: their norms, and the proximal map of a sum of norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from kriterion._elementary import at_least, root_of_squares
from kriterion.backend import Tensor


def labels_for(owner: str, labels: np.ndarray, shape: tuple[int, ...], name: str = "weights") -> np.ndarray:
    """The labels with as many axes as weights of this shape, to which they must broadcast."""
    short = len(shape) - labels.ndim
    if short < 0 or any(a not in (1, b) for a, b in zip(labels.shape, shape[short:], strict=True)):
        raise ValueError(
            f"{owner}: labels in `groups` must broadcast to the weights. "
            f"Received: labels of shape {labels.shape}, {name} of shape {shape}"
        )
    return labels.reshape((1,) * short + labels.shape)


class Groups(Protocol):
    """Disjoint groups of the entries of tensors."""

    sizes: Any
    """Number of entries of each group: a number, or an array of the shape of `sums`."""

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over each group."""
        ...

    def spread(self, values: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        """For each entry of the parts its group's value, in shapes that broadcast to the parts'."""
        ...


class AxisGroups:
    """Groups that are the axes `axes` of a tensor, seen in the shape `view`; the other axes tell them apart."""

    def __init__(self, view: tuple[int, ...], axes: tuple[int, ...]) -> None:
        self.view, self.axes = view, axes
        self.sizes = math.prod(view[axis] for axis in axes)

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        return ops.sum(ops.reshape(parts[0], self.view), axis=self.axes, keepdims=True)

    def spread(self, values: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        shape = tuple(parts[0].shape)
        if len(shape) == len(self.view):
            return [values]
        return [ops.reshape(ops.broadcast_to(values, self.view), shape)]


class LabelGroups:
    """Groups of equal labels, in one or several tensors; entries with negative labels are in none.

    Args:
        labels: for each part, integers in a shape that broadcasts to the part's.
        shapes: shapes of the parts.
    """

    def __init__(self, labels: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> None:
        # The last group takes what is in none; its size is 0.
        found = np.unique(np.concatenate([each[each >= 0].ravel() for each in labels]))
        self.count = len(found)
        self.labels = [np.where(each >= 0, np.searchsorted(found, each), self.count).astype("int32") for each in labels]
        self.sizes = np.zeros(self.count + 1)
        for each, shape in zip(self.labels, shapes, strict=True):
            np.add.at(self.sizes, each.ravel(), math.prod(shape) // each.size)
        self.sizes[-1] = 0.0

    def sums(self, parts: Sequence[Tensor]) -> Tensor:
        total: Any = 0.0
        for part, labels in zip(parts, self.labels, strict=True):
            axes = tuple(axis for axis, size in enumerate(labels.shape) if size == 1 and part.shape[axis] > 1)
            flat = ops.reshape(ops.sum(part, axis=axes) if axes else part, (-1,))
            # Not `ops.segment_sum`, which is in float32 on PyTorch.
            start = ops.zeros((self.count + 1,), flat.dtype)
            total = total + ops.scatter_update(start, labels.reshape(-1, 1), flat, reduction="add")
        return total

    def spread(self, values: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
        return [ops.reshape(ops.take(values, each.ravel()), each.shape) for each in self.labels]


def norms(groups: Groups, parts: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each group."""
    return root_of_squares(groups.sums([ops.square(part) for part in parts]))


def shrunk(groups: Groups, parts: Sequence[Tensor], steps: Sequence[Any], factors: Any) -> list[Tensor]:
    """argmin_u sum over groups f_g ||u_g|| + sum (u - w)^2 / (2 s): the proximal map of the group lasso.

    A group is 0 if and only if ||w_g / s_g|| <= f_g. Else u = w r / (r + s f_g), with its norm r: the root of
    phi(r) = sum (w / (r + s f_g))^2 = 1. With equal steps s that is r = ||w_g|| - s f_g. Otherwise it is found by
    Newton's method for phi^(-1/2), which is increasing and concave, so that from the left of the root the iterates
    increase to it, and one step from the right leads there.

    Args:
        groups: the groups.
        parts: w.
        steps: s >= 0, for each part: a scalar, the same for all of them, or of the part's shape.
        factors: f >= 0, a scalar or of the shape of `groups.sums(parts)`.

    Source: Yuan and Lin, JRSS B 68 (2006), section 2 (equal steps); Yun, Lozano and Yang, "Adaptive proximal gradient
    methods for structured neural networks", NeurIPS 2021 (other diagonal metrics); the concavity, as for the secular
    equation of trust regions: Conn, Gould and Toint, "Trust-region methods", 2000, section 7.3.
    """
    squares = [ops.square(part) for part in parts]
    length = root_of_squares(groups.sums(squares))
    if all(len(ops.shape(step)) == 0 for step in steps):
        kept = length - steps[0] * factors
        ratio = ops.where(kept <= 0, 0.0, kept / ops.where(length <= 0, 1.0, length))
        return [part * share for part, share in zip(parts, groups.spread(ratio, parts), strict=True)]
    return _shrunk_each(groups, parts, squares, steps, factors, length)


def _shrunk_each(
    groups: Groups,
    parts: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Any],
    factors: Any,
    length: Tensor,
) -> list[Tensor]:
    """`shrunk` with a step for each entry."""
    limits = np.finfo(keras.backend.standardize_dtype(length.dtype))
    of_group = groups.spread(factors + ops.zeros_like(length), parts)
    # Where nothing is shrunk and nothing is there, 0 / 0 must be 0.
    shifts = [ops.clip(step * f, float(limits.tiny), np.inf) for step, f in zip(steps, of_group, strict=True)]
    lengths = groups.sums([ops.square(part / shift) for part, shift in zip(parts, shifts, strict=True)])
    positive = ops.logical_not(lengths <= 1.0)
    # To first order in the steps.
    first = groups.sums([square * shift for square, shift in zip(squares, shifts, strict=True)])
    start = at_least(length - first / ops.where(length > 0, length * length, 1.0), 0.01 * length)
    start = ops.where(positive, start, 0.0)

    def improve(root: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        inverse = [1.0 / (r + shift) for r, shift in zip(groups.spread(root, parts), shifts, strict=True)]
        terms = [square * each * each for square, each in zip(squares, inverse, strict=True)]
        phi = groups.sums(terms)
        slope = groups.sums([term * each for term, each in zip(terms, inverse, strict=True)])
        better = root + phi * (ops.sqrt(phi) - 1.0) / ops.where(slope > 0, slope, 1.0)
        better = ops.where(positive, at_least(better, 0.1 * root), 0.0)
        return better, ops.abs(better - root)

    # After a relative change d the relative error is 1.5 d^2 at most: with a = 1 / (r + shift) and the weights of the
    # terms of phi, it is 1.5 r Var(a) / E(a), and 0 < r a < 1.
    tolerance = math.sqrt(float(limits.eps)) / 2
    root, _ = ops.while_loop(
        lambda root, change: ops.any(ops.logical_and(positive, change > tolerance * root)),
        improve,
        (start, length),
        maximum_iterations=50,
    )
    roots = groups.spread(root, parts)
    return [part * (r / (r + shift)) for part, r, shift in zip(parts, roots, shifts, strict=True)]
