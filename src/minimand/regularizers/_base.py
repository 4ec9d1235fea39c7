"""The base class of penalties on weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from minimand._config import config_of, from_config
from minimand._ops import compute_dtype
from minimand._validation import check_choice, check_float
from minimand.backend import Tensor


class WeightRegularizer(keras.regularizers.Regularizer):
    """Base class of penalties strength * R(w), with a proximal map where there is one.

    Derive from WeightRegularizer to write a penalty that works as `kernel_regularizer=`, in `transforms.WeightPenalty`
    and, if the penalty has a proximal map, in `optimizers.Proximal`.

    prox_s(w) = argmin_u strength * R(u) + sum (u - w)^2 / (2 s), with a step s for all weights or one for each

    A subclass implements `penalty`, the R of a tensor. It may implement `proximal`, `projection`, and `check`, which
    refuses shapes. It keeps each argument of `__init__` as an attribute of the same name, for `get_config`.

    Args:
        strength: coefficient >= 0, or a `keras.optimizers.schedules.LearningRateSchedule` of it by the number of
            training steps, for `WeightPenalty` and `Proximal`, which count them.
        reduction: `"sum"`, or `"mean"`: the sum divided by the number of weights of the tensor.

    Returns:
        As a call: for weights of any shape that `check` accepts, a scalar.

    Raises:
        ValueError: `strength` is negative or not finite, `reduction` is unknown; on call, the regularizer refuses the
            shape of the weights, or the strength is a schedule.
        NotImplementedError: `prox` or `project` of a regularizer that has none.

    Source: proximal maps: Parikh and Boyd, "Proximal algorithms", Foundations and Trends in Optimization 1 (2014).

    Examples:
        >>> import keras, minimand
        >>> from keras import ops
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class SquaredNorm(minimand.regularizers.WeightRegularizer):
        ...     def penalty(self, weights):
        ...         return ops.sum(ops.square(weights))
        ...     def proximal(self, weights, step):
        ...         return weights / (1.0 + 2.0 * step)
        >>> float(SquaredNorm(0.5)([[1.0, 2.0]])), float(SquaredNorm(0.5).prox([4.0], 3.0)[0])
        (2.5, 1.0)
    """

    def __init__(self, strength: Any, *, reduction: str = "sum") -> None:
        owner = type(self).__name__
        if not isinstance(strength, keras.optimizers.schedules.LearningRateSchedule):
            strength = check_float(owner, "strength", strength, minimum=0.0)
        self.strength = strength
        self.reduction = check_choice(owner, "reduction", reduction, ("sum", "mean"))

    # For subclasses.

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` if the regularizer is not for weights of this shape."""

    def penalty(self, weights: Tensor) -> Tensor:
        """R of a tensor of weights, summed: a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must implement `penalty(self, weights)`.")

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        """The proximal map of R, with strength 1; `step` is a scalar or has the weights' shape."""
        raise NotImplementedError(f"{type(self).__name__} has no proximal map.")

    def projection(self, weights: Tensor) -> Tensor:
        """The nearest weights at which R is 0."""
        raise NotImplementedError(f"{type(self).__name__} has no projection.")

    def require_proximal(self) -> None:
        """Raise a `NotImplementedError` if there is no proximal map."""
        if type(self).proximal is WeightRegularizer.proximal:
            self.proximal(None, None)

    # For users.

    def __call__(self, x: Tensor) -> Tensor:
        """The penalty on a tensor of weights, or on a variable."""
        own = self.of(_shaped(x))
        x = ops.convert_to_tensor(x)
        return own.coefficient(tuple(x.shape), x.dtype) * own.penalty(x)

    def prox(self, weights: Tensor, step: Any) -> Tensor:
        """The proximal map: the weights after a proximal step.

        Args:
            weights: weights of any shape that `check` accepts.
            step: s > 0, a scalar, or a tensor of the weights' shape with a step for each weight, as for an optimizer
                with a diagonal metric.

        Returns:
            A tensor of the weights' shape.
        """
        self.require_proximal()
        own = self.of(_shaped(weights))
        weights = ops.convert_to_tensor(weights)
        exact = compute_dtype(weights)
        step = ops.convert_to_tensor(step, exact) * own.coefficient(tuple(weights.shape), exact)
        return ops.cast(own.proximal(ops.cast(weights, exact), step), weights.dtype)

    def project(self, weights: Tensor) -> Tensor:
        """The nearest weights (in the Euclidean distance) at which the penalty is 0."""
        return self.of(_shaped(weights)).projection(ops.convert_to_tensor(weights))

    # For `WeightPenalty` and `Proximal`, which hold variables.

    @property
    def scheduled(self) -> bool:
        """Tell whether the strength is a schedule."""
        return isinstance(self.strength, keras.optimizers.schedules.LearningRateSchedule)

    def of(self, variable: Any) -> WeightRegularizer:
        """The regularizer for one variable or tensor: the shape is checked, and arrays by path are looked up."""
        self.check(tuple(variable.shape))
        return self

    def at(self, iteration: Tensor) -> WeightRegularizer:
        """The regularizer with the strength that a schedule gives after `iteration` steps."""
        if not self.scheduled:
            return self
        other = copy.copy(self)
        other.strength = ops.cast(self.strength(iteration), "float32")
        return other

    def check_variables(self, variables: Sequence[keras.Variable]) -> None:
        """Raise an error if the regularizer is not for these variables."""
        for variable in variables:
            self.of(variable)

    def total(self, variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> Tensor:
        """The penalty on values of these variables."""
        return sum(self.of(variable)(value) for variable, value in zip(variables, values, strict=True))

    def proximal_step(
        self, variables: Sequence[keras.Variable], values: Sequence[Tensor], steps: Sequence[Any]
    ) -> list[Tensor]:
        """The proximal map of values of these variables, each with its step."""
        parts = zip(variables, values, steps, strict=True)
        return [self.of(variable).prox(value, step) for variable, value, step in parts]

    def coefficient(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """The strength for weights of this shape; `reduction="mean"` divides it by their number."""
        if self.scheduled:
            raise ValueError(
                f"{type(self).__name__}: `strength` must be a number where training steps are not counted. "
                f"Received: strength={self.strength!r}. Use transforms.WeightPenalty or optimizers.Proximal."
            )
        count = math.prod(shape) if self.reduction == "mean" else 1
        # `cast` would round Python's numbers to float32.
        return ops.convert_to_tensor(self.strength / count, dtype)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal regularizer."""
        return config_of(self, base=WeightRegularizer)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A regularizer made from `get_config()`."""
        return from_config(cls, config)


def _shaped(weights: Any) -> Any:
    """A tensor, or the given object if it has a shape: a variable also has a path."""
    return weights if hasattr(weights, "shape") else ops.convert_to_tensor(weights)
