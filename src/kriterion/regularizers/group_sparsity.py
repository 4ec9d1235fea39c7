"""Weights that vanish by groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._validation import check_bool, check_int
from kriterion.backend import Tensor
from kriterion.regularizers._groups import AxisGroups, Groups, LabelGroups, labels_for, norms, shrunk
from kriterion.regularizers.base import WeightRegularizer

_NAMES = ("output", "input", "channel", "position", "unit")


@keras.saving.register_keras_serializable(package="kriterion")
class GroupSparsity(WeightRegularizer):
    """The group lasso: pushes whole groups of weights to zero together.

    R(w) = strength * sum over groups g of sqrt(p_g) ||w_g||_2, with p_g weights in group g

    The gradient at a group that is all zero is the smallest subgradient, 0. Gradient steps on this penalty make groups
    small, never exactly zero: for that there is `prox`, and `optimizers.Proximal`, which takes it at each step.

    What is a group, for weights whose last two axes are inputs and outputs (Dense, Conv1D, Conv2D, Conv3D):

    - `"output"`: all weights of an output unit or filter (last axis). Also a feature of an Embedding.
    - `"input"` or `"channel"`: of an input unit or channel (last axis but one). Also a channel of a depthwise
      convolution, and a token of an Embedding.
    - `"position"`: of a position of a convolution's window (all axes but the last two).
    - `"unit"`: as `"output"`, where the last axis holds the units of each of `splits` gates in turn, with those of a
      unit's gates together: LSTM (`splits=4`) and GRU (3).
    - `("block", (rows, columns))`: blocks of so many inputs and outputs, at each position.
    - `("axes", axes)`: one for each index along these axes. `("axes", (-2, -1))` are the filters of a depthwise
      convolution; for EinsumDense's (inputs, heads, features), `("axes", 1)` are heads.
    - an array of integers that broadcasts to the weights: equal ones are a group, negative ones in none.

    Groups across several variables are those of `JointGroupSparsity`.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        groups: as above.
        weight_by_size: whether there is the factor sqrt(p_g), without which large groups are favoured.
        splits: number >= 1 of gates, for `"unit"`.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of rank 2 or more (of any rank by labels or axes), a scalar. `prox` is exact, for a step
        of each weight too.

    Raises:
        ValueError: a number is out of its range, `groups` or `reduce` is unknown, `splits` goes with other groups than
            `"unit"`; on call, the weights have a rank below 2, no such axis, no axis of positions, or a size that does
            not divide.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68 (2006);
    for networks, Scardapane et al., "Group sparse regularization for deep neural networks", Neurocomputing 241 (2017).

    Examples:
        >>> import kriterion
        >>> penalty = kriterion.regularizers.GroupSparsity(0.1)
        >>> round(float(penalty([[3.0, 0.0], [4.0, 0.0]])), 6)  # 0.1 * sqrt(2) * 5
        0.707107
        >>> [float(w) for w in penalty.prox([[3.0, 0.01], [4.0, 0.01]], 0.5)[:, 1]]
        [0.0, 0.0]
    """

    def __init__(
        self,
        strength: Any,
        groups: Any = "output",
        *,
        weight_by_size: bool = True,
        splits: int = 1,
        reduce: str = "sum",
    ) -> None:
        super().__init__(strength, reduce=reduce)
        owner = type(self).__name__
        self.groups = _checked_groups(groups, owner)
        self.weight_by_size = check_bool(owner, "weight_by_size", weight_by_size)
        self.splits = check_int(owner, "splits", splits, minimum=1)
        if splits > 1 and not (isinstance(groups, str) and groups == "unit"):
            raise ValueError(
                f'{owner}: `splits` goes with groups="unit". Received: splits={splits!r}, groups={groups!r}'
            )
        self._found: dict[tuple[int, ...], Groups] = {}

    def check(self, shape: tuple[int, ...]) -> None:
        self._grouping(shape)

    def _grouping(self, shape: tuple[int, ...]) -> Groups:
        """The groups of weights of this shape, found once."""
        if shape not in self._found:
            self._found[shape] = self._find(shape)
        return self._found[shape]

    def _find(self, shape: tuple[int, ...]) -> Groups:
        owner, rank = type(self).__name__, len(shape)
        if isinstance(self.groups, np.ndarray):
            return LabelGroups([labels_for(owner, self.groups, shape)], [shape])
        if isinstance(self.groups, tuple) and self.groups[0] == "axes":
            if not all(-rank <= axis < rank for axis in self.groups[1]):
                raise ValueError(
                    f"{owner}: the axes in `groups` must be axes of the weights. "
                    f"Received: groups={self.groups!r}, weights of shape {shape}"
                )
            return _all_axes_but({axis % rank for axis in self.groups[1]}, shape)
        if rank < 2:
            raise ValueError(
                f"{owner}: the weights must have rank 2 or more (a kernel). Received: weights of shape {shape}"
            )
        if isinstance(self.groups, tuple):
            rows, columns = self.groups[1]
            if shape[-2] % rows or shape[-1] % columns:
                raise ValueError(
                    f"{owner}: blocks must divide the last two axes of the weights. "
                    f"Received: groups={self.groups!r}, weights of shape {shape}"
                )
            view = (*shape[:-2], shape[-2] // rows, rows, shape[-1] // columns, columns)
            return AxisGroups(view, (rank - 1, rank + 1))
        if self.groups == "unit":
            if shape[-1] % self.splits:
                raise ValueError(
                    f"{owner}: `splits` must divide the last axis of the weights. "
                    f"Received: splits={self.splits}, weights of shape {shape}"
                )
            return AxisGroups((*shape[:-1], self.splits, shape[-1] // self.splits), tuple(range(rank)))
        if self.groups == "position":
            if rank < 3:
                raise ValueError(
                    f'{owner}: groups="position" needs the weights of a convolution, of rank 3 or more. '
                    f"Received: weights of shape {shape}"
                )
            return _all_axes_but(set(range(rank - 2)), shape)
        return _all_axes_but({rank - 1 if self.groups == "output" else rank - 2}, shape)

    def _factors(self, groups: Groups) -> Any:
        """What each group's norm is multiplied by."""
        if not self.weight_by_size:
            return np.float64(np.asarray(groups.sizes) > 0)
        return np.sqrt(groups.sizes)

    def penalty(self, weights: Tensor) -> Tensor:
        groups = self._grouping(tuple(weights.shape))
        return ops.sum(ops.convert_to_tensor(self._factors(groups), weights.dtype) * norms(groups, [weights]))

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        groups = self._grouping(tuple(weights.shape))
        return shrunk(groups, [weights], [step], ops.convert_to_tensor(self._factors(groups), weights.dtype))[0]

    def get_config(self) -> dict[str, Any]:
        groups = self.groups
        if isinstance(groups, tuple):
            groups = [groups[0], list(groups[1])]
        return {
            **super().get_config(),
            "groups": groups.tolist() if isinstance(groups, np.ndarray) else groups,
            "weight_by_size": self.weight_by_size,
            "splits": self.splits,
        }


def _all_axes_but(axes: set[int], shape: tuple[int, ...]) -> AxisGroups:
    return AxisGroups(shape, tuple(axis for axis in range(len(shape)) if axis not in axes))


def _checked_groups(groups: Any, owner: str) -> Any:
    if isinstance(groups, str) and groups in _NAMES:
        return groups
    if isinstance(groups, (tuple, list)) and len(groups) == 2 and groups[0] in ("block", "axes"):
        kind, numbers = groups
        numbers = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
        integers = numbers and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)
        if integers and (kind == "axes" or (len(numbers) == 2 and min(numbers) >= 1)):
            return kind, numbers
    elif not isinstance(groups, str):
        labels = np.asarray(groups)
        if labels.size and np.issubdtype(labels.dtype, np.integer) and labels.max() >= 0:
            return labels
    raise ValueError(
        f'{owner}: `groups` must be one of {", ".join(map(repr, _NAMES))}, ("block", (rows, columns)), '
        f'("axes", axes) or an array of integers with a group. Received: groups={groups!r}'
    )
