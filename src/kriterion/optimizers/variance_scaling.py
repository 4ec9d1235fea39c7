"""Updates scaled by how certain their direction is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion._running_moments import (
    newest_weight,
    shrinkage,
    sum_of_squared_weights,
    updated,
    variance_per_spread,
)
from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor
from kriterion.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="kriterion")
class VarianceScaling(OptimizerWrapper):
    """Any Keras optimizer, with each weight's update scaled down where the gradient is mostly noise.

    update -> gamma * update, gamma = m^2 / (m^2 + rho s)

    m and s are the running mean and unbiased variance of the gradient (decay beta, bias-corrected), and rho s is the
    variance of m, rho = (1 - beta) (1 + beta^t) / ((1 + beta) (1 - beta^t)). gamma is the factor that minimises the
    expected squared distance to the noise-free update, for an update that averages gradients as m does (SGD with
    momentum, Adam).

    The update is scaled, not the gradient: Adam divides any lasting scale of the gradient out again. Weight decay is
    not scaled. At the first step, where no variance is known, and for weights that never had a gradient, gamma is 1.

    Args:
        optimizer: the Keras optimizer that computes the updates. An unbuilt copy of it is used. Its weight decay,
            clipping, averaging and gradient accumulation keep their meaning.
        beta: decay of the running means, 0 < beta < 1.
        granularity: `"weight"` for a gamma of each weight; `"tensor"` for one of each weight tensor, of the sums of m^2
            and s over it, which keeps the direction of its update.
        name: name of the optimizer.

    Raises:
        ValueError: `beta` is outside of its range, or `granularity` unknown.
        TypeError: `optimizer` is not a Keras optimizer, or one that wraps others (put those outside).
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    sections 3 (variance adaptation) and 4 (M-SVAG, and the correction of s by rho).

    Examples:
        >>> import keras, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(kriterion.optimizers.VarianceScaling(keras.optimizers.SGD(0.1, momentum=0.9)), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        *,
        beta: float = 0.9,
        granularity: str = "weight",
        name: str = "variance_scaling",
    ) -> None:
        super().__init__(optimizer, name=name)
        self.beta = check_float("VarianceScaling", "beta", beta, above=0.0, below=1.0)
        self.granularity = check_choice("VarianceScaling", "granularity", granularity, ("weight", "tensor"))

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self.means, self.spreads = self.add_optimizer_variables(variables, ("mean", "spread"))

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook between clipping and weight decay before, and averaging after."""
        self.refuse_replicas()
        factors = self._factors(grads, trainable_variables)
        before = [ops.copy(variable) for variable in trainable_variables]
        self.wrapped.apply(grads, trainable_variables)
        for variable, old, factor in zip(trainable_variables, before, factors, strict=True):
            variable.assign(old + factor * (variable.value - old))

    def _factors(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]) -> list[Tensor]:
        """Update the running moments; return gamma for each weight."""
        self.update_count.assign_add(1)
        count = self.update_count.value
        weight = newest_weight(self.beta, count)
        # rho s, the variance of the mean, over the spread.
        noise = sum_of_squared_weights(self.beta, count) * variance_per_spread(self.beta, count)
        factors = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = self._get_variable_index(variable)
            mean, spread = self.means[index], self.spreads[index]
            new_mean, new_spread = updated(mean.value, spread.value, gradient, weight)
            mean.assign(new_mean)
            spread.assign(new_spread)
            noise_of_mean = ops.cast(noise, new_spread.dtype) * new_spread
            factors.append(shrinkage(new_mean, noise_of_mean, by_tensor=self.granularity == "tensor"))
        return factors

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "granularity": self.granularity}
