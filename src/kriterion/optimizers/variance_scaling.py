"""Updates scaled by how certain their direction is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="kriterion")
class VarianceScaling(OptimizerWrapper):
    """Any Keras optimizer, with each weight's update scaled down where the gradient is mostly noise.

    update -> gamma * update, gamma = m^2 / (m^2 + rho s)

    m and v are running means of the gradient and its square (decay beta, bias-corrected), s = (v - m^2) / (1 - rho)
    is the unbiased estimate of the gradient's variance, and rho s the variance of m, with
    rho = (1 - beta) (1 + beta^t) / ((1 + beta) (1 - beta^t)). gamma is the factor that minimises the expected squared
    distance to the noise-free update, for an update that averages gradients as m does (SGD with momentum, Adam).

    The update is scaled, not the gradient: Adam divides any lasting scale of the gradient out again. Weight decay is
    not scaled. At the first step, where no variance is known, and for weights that never had a gradient, gamma is 1.

    Args:
        optimizer: the Keras optimizer that computes the updates. An unbuilt copy of it is used. Its weight decay,
            clipping, averaging and gradient accumulation keep their meaning.
        beta: decay of the running means, 0 < beta < 1.
        name: name of the optimizer.

    Raises:
        ValueError: `beta` is outside of its range.
        TypeError: `optimizer` is not a Keras optimizer, or one that wraps others (put those outside).
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    sections 3 (variance adaptation) and 4 (M-SVAG, and the correction of s by rho).

    Example:
    >>> import keras, kriterion
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(kriterion.optimizers.VarianceScaling(keras.optimizers.SGD(0.1, momentum=0.9)), "mse")
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer | str, *, beta: float = 0.9, name: str = "variance_scaling"
    ) -> None:
        super().__init__(optimizer, name=name)
        self.beta = check_float("VarianceScaling", "beta", beta, above=0.0)
        if self.beta >= 1.0:
            raise ValueError(f"VarianceScaling: `beta` must be < 1. Received: beta={beta!r}")

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self.means, self.squares = self.add_optimizer_variables(variables, ("mean", "square"))

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook between clipping and weight decay before, and averaging after."""
        self.refuse_replicas()
        factors = self._factors(grads, trainable_variables)
        before = [ops.copy(variable) for variable in trainable_variables]
        self.inner_optimizer.apply(grads, trainable_variables)
        for variable, old, factor in zip(trainable_variables, before, factors, strict=True):
            variable.assign(old + factor * (variable.value - old))

    def _factors(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]) -> list[Tensor]:
        """Update the running moments; return gamma for each weight."""
        self.update_count.assign_add(1)
        coefficients = factor_coefficients(self.update_count, self.beta)
        factors = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = self._get_variable_index(variable)
            mean, square = self.means[index], self.squares[index]
            gradient = ops.cast(gradient, mean.dtype)
            # Not square + (1 - beta) (gradient^2 - square): an infinite square must stay so, not become inf - inf.
            mean.assign(self.beta * mean.value + (1 - self.beta) * gradient)
            square.assign(self.beta * square.value + (1 - self.beta) * gradient * gradient)
            factors.append(variance_factor(mean.value, square.value, coefficients))
        return factors

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


def factor_coefficients(count: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`(a, b)` such that gamma = mean^2 / (a mean^2 + b square), after `count` >= 1 gradients with decay `beta`.

    With q = 1 - beta^t and r = rho / (1 - rho), a = 1 - r and b = r q: the bias corrections and the difference
    s = (square / q - (mean / q)^2) / (1 - rho) are brought together, to pass over the weights as little as possible.
    """
    weight, before = _one_minus_power(beta, count), _one_minus_power(beta, count - 1)
    # At the first gradient s is 0 and r infinite; any finite r does.
    ratio = (1 - beta) * (2 - weight) / ops.where(count > 1, 2 * beta * before, 1.0)
    return 1 - ratio, ratio * weight


def variance_factor(mean: Tensor, square: Tensor, coefficients: tuple[Tensor, Tensor]) -> Tensor:
    """Gamma from running means that started at zero; 1 where there was never a gradient.

    Args:
        mean: running mean of the gradient, not bias-corrected.
        square: running mean of its square, not bias-corrected.
        coefficients: those of `factor_coefficients`.
    """
    a, b = (ops.cast(coefficient, mean.dtype) for coefficient in coefficients)
    # The bounds keep 0 / 0 and inf / inf away.
    float16 = keras.backend.standardize_dtype(mean.dtype) == "float16"
    limits = np.finfo("float16" if float16 else "float32")
    squared = ops.clip(mean * mean, float(limits.tiny), float(limits.max))
    # At most 1: rounding may make the sum too small where gradients are nearly constant.
    return squared / ops.maximum(squared, a * squared + b * square)


def _one_minus_power(beta: float, count: Tensor) -> Tensor:
    """1 - beta^count, without cancellation."""
    return -ops.expm1(math.log(beta) * ops.cast(count, "float32"))
