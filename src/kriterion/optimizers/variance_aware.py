"""Gradient descent that shrinks each weight's step by the noise in it: SVAG and M-SVAG."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._running_moments import (
    newest_weight,
    shrinkage,
    sum_of_squared_weights,
    updated,
    variance_per_spread,
)
from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor


@keras.saving.register_keras_serializable(package="kriterion")
class VarianceAware(keras.optimizers.Optimizer):
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
        >>> import keras, kriterion
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        >>> model.compile(kriterion.optimizers.VarianceAware(0.1), "mse")
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

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        if self.variance == "mini_batch" and not self._measured.noises:
            raise ValueError(
                'VarianceAware: variance="mini_batch" needs the variance between the examples of a batch. Train with a '
                "kriterion.Trainer, and give `compile` transforms=[kriterion.transforms.MiniBatchVariance()]. "
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
            factor = variance_per_spread(self.beta, count)
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
