"""Optimizers that use the variance of the gradient: SNRScaling, SVAG, M-SVAG and AdaBelief."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from minimand._config import config_of
from minimand._validation import check_choice, check_float
from minimand.backend import Tensor
from minimand.gradients._running import (
    newest_weight,
    shrinkage,
    sum_of_squared_weights,
    updated,
    variance_per_squared_deviation,
)
from minimand.optimizers._base import MeasuredOptimizer, OptimizerWrapper, refuse_replicas

# Any optimizer, with smaller updates where the gradient is mostly noise.


@keras.saving.register_keras_serializable(package="minimand")
class SNRScaling(OptimizerWrapper):
    """SNRScaling wraps any Keras optimizer and scales down the update of each weight whose gradient is mostly noise.

    Use SNRScaling when small batches make the gradient noisy and the optimizer is otherwise well tuned.

    update -> gamma * update, gamma = m^2 / (m^2 + rho s)

    m and s are the running mean and the unbiased running variance of the gradient (decay beta, bias-corrected). rho s
    is the variance of m, with rho = (1 - beta) (1 + beta^t) / ((1 + beta) (1 - beta^t)). gamma minimises the expected
    squared distance to the noise-free update, for an update that averages gradients as m does (SGD with momentum,
    Adam).

    SNRScaling scales the update and not the gradient, because Adam divides any lasting scale of the gradient out again.
    Weight decay is not scaled. gamma is 1 at the first step, where no variance is known, and for weights that never had
    a gradient.

    Args:
        optimizer: the Keras optimizer that computes the updates. An unbuilt copy of it is used. Its weight decay,
            clipping, averaging and gradient accumulation keep their meaning.
        beta: decay of the running means, 0 < beta < 1.
        granularity: `"weight"` for a gamma of each weight; `"tensor"` for one of each weight tensor, from the sums of
            m^2 and s over it, which keeps the direction of the tensor's update.
        name: name of the optimizer.

    Raises:
        ValueError: `beta` is outside of its range, or `granularity` is unknown.
        TypeError: `optimizer` is not a Keras optimizer, or wraps others (put those outside).
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    sections 3 (variance adaptation) and 4 (M-SVAG, and the correction of s by rho).

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.SNRScaling(keras.optimizers.SGD(0.1, momentum=0.9)), "mse")
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | str,
        *,
        beta: float = 0.9,
        granularity: str = "weight",
        name: str = "snr_scaling",
    ) -> None:
        super().__init__(optimizer, name=name)
        self.beta = check_float("SNRScaling", "beta", beta, above=0.0, below=1.0)
        self.granularity = check_choice("SNRScaling", "granularity", granularity, ("weight", "tensor"))

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self.means, self.deviations = self.add_optimizer_variables(weights, ("mean", "squared_deviation"))

    def _backend_update_step(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], rate: Tensor) -> None:
        """Keras's hook between clipping and weight decay before, and averaging after."""
        refuse_replicas(self)
        factors = self._factors(grads, variables)
        before = [ops.copy(variable) for variable in variables]
        self.wrapped.apply(grads, variables)
        for variable, old, factor in zip(variables, before, factors, strict=True):
            variable.assign(old + factor * (variable.value - old))

    def _factors(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]) -> list[Tensor]:
        """Update the running moments; return gamma for each weight."""
        self.update_count.assign_add(1)
        count = self.update_count.value
        weight = newest_weight(self.beta, count)
        # rho s, the variance of the mean, over the squared deviation.
        ratio = sum_of_squared_weights(self.beta, count) * variance_per_squared_deviation(self.beta, count)
        factors = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = self._get_variable_index(variable)
            mean, deviation = self.means[index], self.deviations[index]
            new_mean, new_deviation = updated(mean.value, deviation.value, gradient, weight)
            mean.assign(new_mean)
            deviation.assign(new_deviation)
            noise = ops.cast(ratio, new_deviation.dtype) * new_deviation
            factors.append(shrinkage(new_mean, noise, by_tensor=self.granularity == "tensor"))
        return factors


# Gradient descent with smaller steps where the gradient is mostly noise.


class _VarianceAware(MeasuredOptimizer):
    """Base class of SVAG and M-SVAG, whose steps go along a direction d: w <- w - a d m^2 / (m^2 + Var d)."""

    transform = "MiniBatchVariance"
    _along_mean: ClassVar[bool]
    """Tell whether d is the mean m of the gradients, or the gradient g."""

    def __init__(
        self,
        learning_rate: Any = 0.1,
        *,
        beta: float = 0.9,
        variance: str = "running",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        owner = type(self).__name__
        super().__init__(learning_rate, name=name or owner.lower(), **kwargs)
        self.beta = check_float(owner, "beta", beta, above=0.0, below=1.0)
        self.variance = check_choice(owner, "variance", variance, ("running", "mini_batch"))

    @property
    def needs_transform(self) -> bool:
        return self.variance == "mini_batch"

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self._means = {id(v): self.add_variable_from_reference(v, "mean") for v in weights}
        unmeasured = [v for v in weights if id(v) not in self._tracked.states]
        self._deviations = {id(v): self.add_variable_from_reference(v, "squared_deviation") for v in unmeasured}

    def _backend_update_step(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], rate: Tensor) -> None:
        """Keras's hook; `iterations` also counts steps that only accumulate a gradient."""
        super()._backend_update_step(grads, variables, rate)
        self.update_count.assign_add(1)

    def _update(self, weight: keras.Variable, gradient: Tensor, rate: Tensor, state: Any, measured: Any) -> None:
        mean, count = self._means[id(weight)], self.update_count.value + 1
        gradient = ops.cast(gradient, mean.dtype)
        newest = ops.cast(newest_weight(self.beta, count), mean.dtype)
        if measured is None:
            deviation = self._deviations[id(weight)]
            new_mean, new_deviation = updated(mean.value, deviation.value, gradient, newest)
            deviation.assign(new_deviation)
            factor = variance_per_squared_deviation(self.beta, count)
            if self._along_mean:
                factor = factor * sum_of_squared_weights(self.beta, count)
            noise = ops.cast(factor, mean.dtype) * new_deviation
        else:
            new_mean = mean.value + newest * (gradient - mean.value)
            # Keras averages accumulated gradients, which divides their variance.
            noise = ops.cast(measured, mean.dtype) / (self.gradient_accumulation_steps or 1)
            if self._along_mean:
                noise = ops.square(1 - newest) * state.value + ops.square(newest) * noise
            state.assign(noise)
        mean.assign(new_mean)
        step = shrinkage(new_mean, noise) * (new_mean if self._along_mean else gradient)
        weight.assign(weight.value - ops.cast(rate * step, weight.dtype))


@keras.saving.register_keras_serializable(package="minimand")
class SVAG(_VarianceAware):
    """SVAG is gradient descent in which each weight's step shrinks with the noise of its gradient.

    Use SVAG in place of SGD without momentum when small batches make the gradient noisy; `MSVAG` has momentum.

    w <- w - a gamma g, gamma = m^2 / (m^2 + s)

    g is the gradient, m is the running mean of g (decay beta, bias-corrected), and s is the variance of g. gamma
    minimises the expected squared distance to the noise-free step. The variance is

    - `"running"`: estimated from the gradients of earlier steps, s = sum_i w_i (g_i - m)^2 / (1 - rho), with the
      weights w_i of the gradients in m and rho = sum_i w_i^2. s is unbiased while the true gradient stays the same. In
      the first step no variance is known, and gamma is 1.
    - `"mini_batch"`: measured between the examples of each batch by `transforms.MiniBatchVariance`, which
      `Trainer.compile` needs too. This variance does not take a drift of the gradient for noise.

    Args:
        learning_rate: a, or a schedule of it.
        beta: decay of the running mean, 0 < beta < 1.
        variance: `"running"` or `"mini_batch"`.
        name: name of the optimizer.
        **kwargs: `weight_decay`, `clipnorm`, `use_ema`, `gradient_accumulation_steps` and so on, as in
            `keras.optimizers.Optimizer`. Gradients are clipped; the variances of `MiniBatchVariance` are not.

    Raises:
        ValueError: an argument is out of its range; on the first batch, mini-batch variance without its transform.
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    section 3 (the factor) and equation 4 (the variance of a mini-batch).

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.SVAG(0.1), "mse")
    """

    _along_mean = False


@keras.saving.register_keras_serializable(package="minimand")
class MSVAG(_VarianceAware):
    """M-SVAG is gradient descent with momentum in which each weight's step shrinks with the noise of its mean gradient.

    Use MSVAG in place of SGD with momentum when small batches make the gradient noisy.

    w <- w - a gamma m, gamma = m^2 / (m^2 + Var m)

    m is the running mean of the gradient (decay beta, bias-corrected). gamma minimises the expected squared distance to
    the noise-free step. With the weights w_i of the gradients in m and rho = sum_i w_i^2, the variance is

    - `"running"`: Var m = rho s with s = sum_i w_i (g_i - m)^2 / (1 - rho), which is unbiased while the true gradient
      stays the same. In the first step no variance is known, and gamma is 1.
    - `"mini_batch"`: Var m = sum_i w_i^2 s_i, with the variance s_i between the examples of each batch. The transform
      `transforms.MiniBatchVariance` measures s_i, so `Trainer.compile` needs both. This variance does not take a drift
      of the gradient for noise.

    Args:
        learning_rate: a, or a schedule of it; of the size of SGD's without momentum, since m is a mean and not a sum.
        beta: decay of the running mean, 0 < beta < 1.
        variance: `"running"` or `"mini_batch"`.
        name: name of the optimizer.
        **kwargs: as in `SVAG`.

    Raises:
        ValueError: an argument is out of its range; on the first batch, mini-batch variance without its transform.
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    section 4 and algorithm 1 (running variance), equation 4 (the variance of a mini-batch).

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.MSVAG(0.1), "mse")
    """

    _along_mean = True


# Adam with steps in units of the gradient's standard deviation.


@keras.saving.register_keras_serializable(package="minimand")
class AdaBelief(keras.optimizers.Optimizer):
    """AdaBelief is Adam with steps in units of the gradient's standard deviation instead of its root mean square.

    Use AdaBelief in place of Adam; it takes larger steps where the gradient varies little. The centring of this version
    is unbiased.

    w <- w - a m_t / (sqrt(s_t) + epsilon), s_t = mean over i of (g_i - m_(i - 1))^2 / (1 + rho_(i - 1))

    m is the running mean of the gradient (decay beta_1), and the mean in s is a running mean too (decay beta_2). Both
    are bias-corrected. rho_i is the sum of squares of the weights in m_i. Each gradient is compared with the mean of
    the gradients before it, in which it has no part, so that E[(g_i - m_(i - 1))^2] = (1 + rho_(i - 1)) Var g and each
    term is unbiased. The first term, with m_0 = 0 and rho_0 = 0, is g_1^2. It makes the first step that of Adam, and
    its share of s_t falls as 1 / t, then as beta_2^t.

    The published form uses (g_t - m_t)^2, with an m_t that starts at 0 and contains g_t. That is nearly g^2 in the
    first steps, and 2 beta_1^2 / (1 + beta_1) times the variance in the long run. Steps become large in either form
    where gradients hardly vary.

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
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.AdaBelief(1e-3), "mse")
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

    def _backend_update_step(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], rate: Tensor) -> None:
        """Keras's hook; `iterations` also counts steps that only accumulate a gradient."""
        self.update_count.assign_add(1)
        super()._backend_update_step(grads, variables, rate)

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        """Keras's hook for one variable."""
        index = self._get_variable_index(variable)
        mean, belief = self._means[index], self._beliefs[index]
        gradient, rate = ops.cast(gradient, variable.dtype), ops.cast(learning_rate, variable.dtype)
        count = self.update_count.value
        rho = ops.where(count > 1, sum_of_squared_weights(self.beta_1, ops.where(count > 1, count - 1, 1)), 0.0)
        first, second = (ops.cast(newest_weight(beta, count), variable.dtype) for beta in (self.beta_1, self.beta_2))
        difference = gradient - mean
        # Keras's methods, because TensorFlow's own variables arrive here.
        self.assign_add(mean, first * difference)
        square = ops.square(difference) / ops.cast(1 + rho, variable.dtype)
        self.assign(belief, (1 - second) * belief + second * square)
        self.assign_sub(variable, rate * mean / (ops.sqrt(belief) + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        return config_of(self, super().get_config())
