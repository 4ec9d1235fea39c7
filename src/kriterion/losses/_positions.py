"""Which positions of the predictions have parameters of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from kriterion._validation import check_bool, check_int, check_several, is_number
from kriterion.backend import Tensor


class Positions:
    """One parameter for each position along some axes of the predictions, for all of them, or for each group.

    Args:
        owner: the loss, for messages.
        axis: the axis, or axes.
        shared: whether there is one parameter for all positions.
        groups: for each position along the only axis, the number of its parameter.
    """

    def __init__(self, owner: str, axis: int | Sequence[int], shared: bool, groups: Sequence[int] | None) -> None:
        self.owner, self.shared = owner, check_bool(owner, "shared", shared)
        axes = [axis] if is_number(axis) else check_several(owner, "axis", axis)
        self.axes = tuple(check_int(owner, "axis", each) for each in axes)
        if groups is not None:
            groups = [check_int(owner, "groups", group) for group in check_several(owner, "groups", groups)]
        self.groups = groups
        if self.groups is not None:
            numbers = sorted(set(self.groups))
            if shared or len(self.axes) != 1 or numbers != list(range(len(numbers))):
                raise ValueError(
                    f"{owner}: `groups` numbers the positions of one axis from 0 without a gap, and excludes `shared`. "
                    f"Received: groups={groups!r}, axis={axis!r}, shared={shared!r}"
                )

    def build(self, y_pred_shape: tuple[int | None, ...]) -> list[int]:
        """The shape of the parameters for predictions of this shape."""
        # Predictions (batch,) are one output dimension.
        shape = tuple(y_pred_shape) if len(y_pred_shape) > 1 else (*y_pred_shape, 1)
        rank = len(shape)
        if any(not -rank < axis < rank or axis % rank == 0 for axis in self.axes):
            raise ValueError(
                f"{self.owner}: `axis` must name axes after the batch's. Received: axis={self.axes!r}, "
                f"y_pred of shape {tuple(y_pred_shape)}"
            )
        axes = sorted({axis % rank for axis in self.axes})
        sizes = [1] if self.shared else [shape[axis] for axis in axes]
        if None in sizes:
            raise ValueError(
                f"{self.owner}: an axis with parameters of its own must have a known size (the last axis, if `axis` "
                f"does not say otherwise). Received: axis={self.axes!r}, y_pred of shape {tuple(y_pred_shape)}. "
                "With `shared=True` no size needs to be known."
            )
        if self.groups is not None and len(self.groups) != sizes[0]:
            raise ValueError(
                f"{self.owner}: `groups` must have a number for each of the {sizes[0]} positions. "
                f"Received: {len(self.groups)} numbers"
            )
        self.sizes = [int(size) for size in sizes if size is not None]
        # 1 where an axis has no parameters of its own.
        self._broadcast = [shape[axis] if axis in axes and not self.shared else 1 for axis in range(1, rank)]
        return self.sizes if self.groups is None else [len(set(self.groups))]

    def each(self, parameter: Tensor) -> Tensor:
        """The parameter of each position along the axes."""
        return parameter if self.groups is None else ops.take(parameter, ops.convert_to_tensor(self.groups), axis=0)

    def spread(self, values: Tensor) -> Tensor:
        """What is given at each position, in a shape that broadcasts to the predictions'."""
        return ops.reshape(values, self._broadcast)

    def rows(self, values: Tensor) -> Tensor:
        """Values of the predictions' shape as (all values of a position, position)."""
        kept = [axis for axis, size in enumerate(self._broadcast, start=1) if size != 1]
        others = [axis for axis in range(len(values.shape)) if axis not in kept]
        return ops.reshape(ops.transpose(values, (*others, *kept)), (-1, math.prod(self.sizes)))

    def of_group(self, values: Tensor) -> Tensor:
        """The mean over the positions that share a parameter, of one value for each position."""
        if self.groups is None:
            return ops.reshape(values, self.sizes)
        members = ops.one_hot(self.groups, len(set(self.groups)), dtype=values.dtype)
        return ops.sum(members * values[:, None], axis=0) / ops.sum(members, axis=0)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"axis": list(self.axes), "shared": self.shared, "groups": self.groups}
