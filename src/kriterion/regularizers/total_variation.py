"""Total variation of weights along an axis."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor


@keras.saving.register_keras_serializable(package="kriterion")
class TotalVariation(keras.regularizers.Regularizer):
    """The sum of absolute differences between neighbours along one axis: favours piecewise constant weights.

    R(w) = strength * sum |w[i+1] - w[i]| over axis `axis`, at every position of the other axes

    Its subgradient is taken as 0 where neighbours are equal.

    Args:
        strength: coefficient >= 0.
        axis: the axis along which neighbours are compared. It must be an ordered one: time or pixels, as axes 0 and 1
            of a Conv2D kernel (height, width, in, out); the units of a Dense layer have no order.

    Returns:
        As a call: for weights of any shape with at least `axis` + 1 axes, a scalar.

    Raises:
        ValueError: `strength` is negative or not finite; on call, the weights have no such axis.
        TypeError: `axis` is not an integer.

    Source: Rudin, Osher and Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60 (1992);
    the one-dimensional anisotropic form.

    Example:
    >>> import kriterion
    >>> penalty = kriterion.regularizers.TotalVariation(0.1, axis=0)
    >>> round(float(penalty([[0.0, 1.0], [2.0, 1.0]])), 6)
    0.2
    """

    def __init__(self, strength: float, axis: int) -> None:
        self.strength = check_float("TotalVariation", "strength", strength, minimum=0.0)
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise TypeError(f"TotalVariation: `axis` must be an integer. Received: axis={axis!r}")
        self.axis = axis

    def __call__(self, x: Tensor) -> Tensor:
        x = ops.convert_to_tensor(x)
        rank = len(x.shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"TotalVariation: `axis` must be an axis of the weights. Received: axis={self.axis}, "
                f"weights of shape {tuple(x.shape)}"
            )
        steps = ops.diff(x, axis=self.axis)
        # |d| as d sign(d): the slope of `ops.abs` at 0 is not 0 on every backend.
        return ops.cast(self.strength, x.dtype) * ops.sum(steps * ops.stop_gradient(ops.sign(steps)))

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "axis": self.axis}
