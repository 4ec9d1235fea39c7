"""Adam with steps in units of the gradient's standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._validation import check_choice, check_float
from minimand.backend import Tensor
from minimand.gradients._running import (
    newest_weight,
    shrinkage,
    sum_of_squared_weights,
    updated,
    variance_per_squared_deviation,
)
from minimand.optimizers._wrapper import NeedsTransform, OptimizerWrapper

# Updates scaled by how certain their direction is.


@keras.saving.register_keras_serializable(package="minimand")
class SNRScaling(OptimizerWrapper):
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
        noise = sum_of_squared_weights(self.beta, count) * variance_per_squared_deviation(self.beta, count)
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


# Gradient descent that shrinks each weight's step by the noise in it: SVAG and M-SVAG.


@keras.saving.register_keras_serializable(package="minimand")
class VarianceAware(NeedsTransform, keras.optimizers.Optimizer):
    """Gradient descent in which each weight's step shrinks with the noise of its gradient.

    M-SVAG: w <- w - a gamma m, gamma = m^2 / (m^2 + Var m); SVAG: w <- w - a gamma g, gamma = m^2 / (m^2 + s)

    g is the gradient, m its running mean (decay beta, bias-corrected), s the variance of g, and Var m that of m. gamma
    is the factor that minimises the expected squared distance to the noise-free step. The variance is

    - `"running"`: estimated from the gradients of earlier steps, s = sum_i w_i (g_i - m)^2 / (1 - rho) with their
      weights w_i in m and rho = sum_i w_i^2, which is unbiased while the true gradient stays, and Var m = rho s;
    - `"mini_batch"`: that of the examples of each batch, by `transforms.MiniBatchVariance`, which `compile` must be
      given too, for one of a `Trainer`; no drift of the gradient is taken for noise. Var m = sum_i w_i^2 s_i.

    In the first step with running variance, where none is known, gamma is 1.

    Args:
        learning_rate: a, or a schedule of it; of the size of SGD's without momentum, since m is a mean and not a sum.
        beta: decay of the running mean, 0 < beta < 1.
        form: `"m-svag"` or `"svag"`.
        variance: `"running"` or `"mini_batch"`.
        name: name of the optimizer.
        **kwargs: `weight_decay`, `clipnorm`, `use_ema`, `gradient_accumulation_steps` and so on, as in
            `keras.optimizers.Optimizer`. Gradients are clipped, the variances of `MiniBatchVariance` are not.

    Raises:
        ValueError: an argument is out of its range; on the first batch, mini-batch variance without its transform.
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    section 3 (the factors), section 4 and algorithm 1 (M-SVAG, running variance), equation 4 (that of a mini-batch).

    Examples:
        >>> import keras, minimand
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(minimand.optimizers.VarianceAware(0.1), "mse")
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        *,
        beta: float = 0.9,
        form: str = "m-svag",
        variance: str = "running",
        name: str = "variance_aware",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, name=name, **kwargs)
        self.beta = check_float("VarianceAware", "beta", beta, above=0.0, below=1.0)
        self.form = check_choice("VarianceAware", "form", form, ("m-svag", "svag"))
        self.variance = check_choice("VarianceAware", "variance", variance, ("running", "mini_batch"))
        # Not an attribute of its own: Keras would take what is in it for variables of the optimizer.
        self._measured = SimpleNamespace(noises={})

    def track(self, weight: keras.Variable, noise: keras.Variable) -> None:
        """Called by `MiniBatchVariance`: `noise` holds Var m of `weight`, and gets s as its gradient."""
        self._measured.noises[id(weight)] = noise

    @property
    def needs_transform(self) -> bool:
        return self.variance == "mini_batch"

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        if self.variance == "mini_batch" and not self._measured.noises:
            raise ValueError(
                'VarianceAware: variance="mini_batch" needs the variance between the examples of a batch. Train with a '
                "minimand.Trainer, and give `compile` transforms=[minimand.transforms.MiniBatchVariance()]. "
                "Received: no MiniBatchVariance"
            )
        super().build(variables)
        held = {id(noise) for noise in self._measured.noises.values()}
        own = [v for v in variables if id(v) not in held]
        self.update_count = self.add_variable((), dtype="int32", name="update_count")
        self._means = {id(v): self.add_variable_from_reference(v, "mean") for v in own}
        self._spreads = {
            id(v): self.add_variable_from_reference(v, "spread") for v in own if id(v) not in self._measured.noises
        }

    def _clip_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Keras's hook: clip the gradients, and leave variances as they are."""
        held = {id(noise) for noise in self._measured.noises.values()}
        if not held or len(grads) != len(self._trainable_variables):
            return super()._clip_gradients(grads)
        kept = [k for k, v in enumerate(self._trainable_variables) if id(v) in held]
        others = [k for k in range(len(grads)) if k not in kept]
        clipped = dict(zip(others, super()._clip_gradients([grads[k] for k in others]), strict=True))
        return [clipped.get(k, gradient) for k, gradient in enumerate(grads)]

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook between clipping and weight decay before, and averaging after."""
        if backend.replicas() > 1:
            raise NotImplementedError(
                "VarianceAware does not work with tf.distribute, where each replica would have its own variance. "
                f"Received: {backend.replicas()} replicas. Train on one device, or on JAX with keras.distribution."
            )
        self.update_count.assign_add(1)
        gradients = {id(v): gradient for v, gradient in zip(trainable_variables, grads, strict=True)}
        for variable in trainable_variables:
            mean = self._means.get(id(variable))
            if mean is None:
                continue
            gradient = ops.cast(gradients[id(variable)], mean.dtype)
            noise = self._noise(variable, mean, gradient, gradients)
            factor = shrinkage(mean.value, noise)
            step = factor * (gradient if self.form == "svag" else mean.value)
            variable.assign(variable.value - ops.cast(learning_rate * step, variable.dtype))

    def _noise(
        self, variable: keras.Variable, mean: keras.Variable, gradient: Tensor, gradients: dict[int, Tensor]
    ) -> Tensor:
        """The variance of m, or of g for SVAG; the running mean is updated."""
        count = self.update_count.value
        weight = ops.cast(newest_weight(self.beta, count), mean.dtype)
        held = self._measured.noises.get(id(variable))
        if held is None:
            spread = self._spreads[id(variable)]
            new_mean, new_spread = updated(mean.value, spread.value, gradient, weight)
            spread.assign(new_spread)
            factor = variance_per_squared_deviation(self.beta, count)
            if self.form == "m-svag":
                factor = factor * sum_of_squared_weights(self.beta, count)
            noise = ops.cast(factor, mean.dtype) * new_spread
        else:
            new_mean = mean.value + weight * (gradient - mean.value)
            # A gradient that Keras averages over several steps has a variance that much smaller.
            noise = ops.cast(gradients[id(held)], mean.dtype) / (self.gradient_accumulation_steps or 1)
            if self.form == "m-svag":
                noise = ops.square(1 - weight) * held.value + ops.square(weight) * noise
            held.assign(noise)
        mean.assign(new_mean)
        return noise

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "form": self.form, "variance": self.variance}


# Adam with steps in units of the gradient's standard deviation.


@keras.saving.register_keras_serializable(package="minimand")
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
