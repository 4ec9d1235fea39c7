"""The variational online Newton optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._validation import check_float
from minimand.backend import Tensor
from minimand.optimizers._wrapper import NeedsTransform


@keras.saving.register_keras_serializable(package="minimand")
class IVON(NeedsTransform, keras.optimizers.Optimizer):
    """Newton-like steps with a Hessian that weight noise estimates: variational inference, one gradient a step.

    m <- b1 m + (1 - b1) g, h <- b2 h + (1 - b2) k + (1 - b2)^2 (h - k)^2 / (2 (h + d)),
    w <- w - a (h0 + d) (m / (1 - b1^t) + d w) / (h + d)

    The gradient g and the estimate k of the Hessian's diagonal are those at weights with noise, drawn from
    N(w, 1 / (N (h + d))): `transforms.IVONNoise`, which `compile` must be given too, for one of a `Trainer`. The last
    term of h keeps h + d positive. That law is the posterior of the weights under the prior N(0, 1 / (N d)), if the
    loss is the mean negative log likelihood of N examples; `Trainer.predict_samples` draws from it.

    Weights that get no noise, and variables of losses, are trained by SGD with momentum: their h stays h0.

    Args:
        learning_rate: a, or a schedule of it; of the size of SGD's, not Adam's.
        hessian_init: h0 > 0. The larger, the smaller the first noise; a usual range is 0.01 to 1.
        beta_1: decay of the gradient's mean, 0 <= b1 < 1.
        beta_2: decay of the Hessian's mean, 0 <= b2 < 1; nearer to 1 than Adam's.
        weight_decay: d >= 0, the prior's precision over N.
        name: name of the optimizer.
        **kwargs: `clipnorm`, `use_ema`, `gradient_accumulation_steps` and so on, as in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: a number is out of its range; on the first batch, there is no `IVONNoise` in `transforms`.
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Shen et al., "Variational learning is effective for large deep networks", ICML 2024, algorithm 1.

    Examples:
        >>> import keras, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile(minimand.optimizers.IVON(0.1), "mse", transforms=[minimand.transforms.IVONNoise()])
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        *,
        hessian_init: float = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.99999,
        weight_decay: float = 1e-4,
        name: str = "ivon",
        **kwargs: Any,
    ) -> None:
        # Keras's own weight decay is another term.
        super().__init__(learning_rate, name=name, weight_decay=None, **kwargs)
        self.hessian_init = check_float("IVON", "hessian_init", hessian_init, above=0.0)
        self.beta_1 = check_float("IVON", "beta_1", beta_1, minimum=0.0, below=1.0)
        self.beta_2 = check_float("IVON", "beta_2", beta_2, minimum=0.0, below=1.0)
        self.decay = check_float("IVON", "weight_decay", weight_decay, minimum=0.0)
        # Not an attribute of its own: Keras would take what is in it for variables of the optimizer.
        self._noise = SimpleNamespace(hessians={})

    def track(self, weight: keras.Variable, hessian: keras.Variable) -> None:
        """Called by `IVONNoise`: `hessian` holds h of `weight`, and gets k as its gradient."""
        self._noise.hessians[id(weight)] = hessian

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        if not self._noise.hessians:
            raise ValueError(
                "IVON: needs the noise that its Hessian is estimated by. Train with a minimand.Trainer, and give "
                "`compile` transforms=[minimand.transforms.IVONNoise()]. Received: no IVONNoise"
            )
        super().build(variables)
        held = {id(hessian) for hessian in self._noise.hessians.values()}
        self._momentums = {
            id(v): self.add_variable_from_reference(v, "momentum") for v in variables if id(v) not in held
        }

    def _backend_update_step(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """Keras's hook between clipping before, and averaging after."""
        if backend.replicas() > 1:
            raise NotImplementedError(
                "IVON does not work with tf.distribute, where each replica would have its own noise. "
                f"Received: {backend.replicas()} replicas. Train on one device, or on JAX with keras.distribution."
            )
        gradients = {id(v): gradient for v, gradient in zip(trainable_variables, grads, strict=True)}
        count = ops.cast(self.iterations.value + 1, "float32")
        correction = 1.0 - ops.power(ops.cast(self.beta_1, "float32"), count)
        for variable in trainable_variables:
            momentum = self._momentums.get(id(variable))
            if momentum is None:
                continue
            gradient = ops.cast(gradients[id(variable)], momentum.dtype)
            momentum.assign(self.beta_1 * momentum.value + (1.0 - self.beta_1) * gradient)
            decay = self.decay if self._use_weight_decay(variable) else 0.0
            step = momentum.value / ops.cast(correction, momentum.dtype) + decay * variable.value
            hessian = self._noise.hessians.get(id(variable))
            if hessian is not None and id(hessian) in gradients:
                hessian.assign(self._updated(hessian.value, ops.cast(gradients[id(hessian)], hessian.dtype)))
                step = step * ((self.hessian_init + self.decay) / (hessian.value + self.decay))
            variable.assign(variable.value - ops.cast(learning_rate * step, variable.dtype))

    def _updated(self, hessian: Tensor, estimate: Tensor) -> Tensor:
        share = 1.0 - self.beta_2
        correction = 0.5 * share**2 * ops.square(hessian - estimate) / (hessian + self.decay)
        return hessian + share * (estimate - hessian) + correction

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hessian_init": self.hessian_init,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "weight_decay": self.decay,
        }
