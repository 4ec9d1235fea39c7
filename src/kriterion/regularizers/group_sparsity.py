"""Weights that vanish by groups."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor

_AXES = {"output": -1, "input": -2}


@keras.saving.register_keras_serializable(package="kriterion")
class GroupSparsity(keras.regularizers.Regularizer):
    """The group lasso: pushes whole groups of weights towards zero together.

    R(w) = strength * sum over groups g of sqrt(p_g) ||w_g||_2, with p_g weights in group g

    The gradient at a group that is all zero is the smallest subgradient, 0. Gradient steps on this penalty make groups
    small, never exactly zero.

    Args:
        strength: coefficient >= 0.
        groups: `"output"`, one group for each output unit or filter (last axis of a Dense, Conv or EinsumDense
            kernel), or `"input"`, one for each input unit or channel (last axis but one).

    Returns:
        As a call: for weights of rank 2 or more, a scalar.

    Raises:
        ValueError: `strength` is negative or not finite, `groups` is unknown; on call, the weights have rank below 2.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68 (2006);
    for networks, Scardapane et al., "Group sparse regularization for deep neural networks", Neurocomputing 241 (2017).

    Example:
    >>> import kriterion
    >>> penalty = kriterion.regularizers.GroupSparsity(0.1)
    >>> round(float(penalty([[3.0, 0.0], [4.0, 0.0]])), 6)  # 0.1 * sqrt(2) * 5
    0.707107
    """

    def __init__(self, strength: float, groups: str = "output") -> None:
        self.strength = check_float("GroupSparsity", "strength", strength, minimum=0.0)
        self.groups = check_choice("GroupSparsity", "groups", groups, tuple(_AXES))

    def __call__(self, x: Tensor) -> Tensor:
        x = ops.convert_to_tensor(x)
        rank = len(x.shape)
        if rank < 2:
            raise ValueError(
                "GroupSparsity: the weights must have rank 2 or more (a kernel). "
                f"Received: weights of shape {tuple(x.shape)}"
            )
        group_axis = rank + _AXES[self.groups]
        others = tuple(axis for axis in range(rank) if axis != group_axis)
        size = math.prod(x.shape[axis] for axis in others)
        squares = ops.sum(ops.square(x), axis=others)
        # The square root's derivative at 0 is infinite, and 0 * inf is NaN also where `where` discards it.
        positive = squares > 0
        norms = ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)
        return ops.cast(self.strength * math.sqrt(size), x.dtype) * ops.sum(norms)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "groups": self.groups}
