"""Adam with steps in units of the gradient's standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion._running_moments import newest_weight, sum_of_squared_weights
from kriterion._validation import check_float
from kriterion.backend import Tensor


@keras.saving.register_keras_serializable(package="kriterion")
class AdaBelief(keras.optimizers.Optimizer):
    """Adam, with steps in units of the gradient's standard deviation in place of its root mean square; centred right.

    w <- w - a m_t / (sqrt(s_t) + epsilon), s_t = mean over i of (g_i - m_(i - 1))^2 / (1 + rho_(i - 1))

    m is the running mean of the gradient (decay beta_1), the mean in s a running one too (decay beta_2), both
    bias-corrected, and rho_i the sum of squares of the weights in m_i. A gradient is compared with the mean of those
    before it, which it has no part in, so that E[(g_i - m_(i - 1))^2] = (1 + rho_(i - 1)) Var g: each term is unbiased.
    The first, with m_0 = 0 and rho_0 = 0, is g_1^2; it makes the first step that of Adam, and its part in s_t falls as
    1 / t, then as beta_2^t.

    The published form takes (g_t - m_t)^2 with an m_t that starts at 0 and has g_t in it: nearly g^2 in the first
    steps, and 2 beta_1^2 / (1 + beta_1) times the variance in the long run. Where gradients hardly vary, steps become
    large in either.

    Args:
        learning_rate: a, or a schedule of it.
        beta_1: decay of the gradient's mean, 0 < beta_1 < 1.
        beta_2: decay of the variance's mean, 0 < beta_2 < 1.
        epsilon: number > 0 that bounds the steps.
        name: name of the optimizer.
        **kwargs: `weight_decay`, `clipnorm`, `use_ema`, `gradient_accumulation_steps` and so on, as in
            `keras.optimizers.Optimizer`.

    Raises:
        ValueError: a number is out of its range.

    Source: Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", NeurIPS 2020,
    algorithm 2; the centring is derived in `docs/gradient-variance.md`.

    Examples:
        >>> import keras, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(kriterion.optimizers.AdaBelief(1e-3), "mse")
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "ada_belief",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, name=name, **kwargs)
        self.beta_1 = check_float("AdaBelief", "beta_1", beta_1, above=0.0, below=1.0)
        self.beta_2 = check_float("AdaBelief", "beta_2", beta_2, above=0.0, below=1.0)
        self.epsilon = check_float("AdaBelief", "epsilon", epsilon, above=0.0)

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self._means, self._beliefs = self.add_optimizer_variables(variables, ("mean", "belief"))

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook; `iterations` also counts steps that only accumulate a gradient."""
        self.update_count.assign_add(1)
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        """Keras's hook for one variable."""
        index = self._get_variable_index(variable)
        mean, belief = self._means[index], self._beliefs[index]
        gradient, rate = ops.cast(gradient, variable.dtype), ops.cast(learning_rate, variable.dtype)
        count = self.update_count.value
        rho = ops.where(count > 1, sum_of_squared_weights(self.beta_1, ops.where(count > 1, count - 1, 1)), 0.0)
        first, second = (ops.cast(newest_weight(beta, count), variable.dtype) for beta in (self.beta_1, self.beta_2))
        difference = gradient - mean
        # By Keras's methods: TensorFlow's own variables arrive here.
        self.assign_add(mean, first * difference)
        square = ops.square(difference) / ops.cast(1 + rho, variable.dtype)
        self.assign(belief, (1 - second) * belief + second * square)
        self.assign_sub(variable, rate * mean / (ops.sqrt(belief) + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
