"""The improved variational online Newton optimizer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from minimand._validation import check_float
from minimand.backend import Tensor
from minimand.optimizers._base import MeasuredOptimizer


@keras.saving.register_keras_serializable(package="minimand")
class IVON(MeasuredOptimizer):
    """IVON learns a Gaussian posterior over the weights by Newton-like steps, with one gradient a step.

    Use IVON in place of Adam when predictions need calibrated uncertainty; `Trainer.predict_samples` draws from the
    posterior.

    m <- b1 m + (1 - b1) g, h <- b2 h + (1 - b2) k + (1 - b2)^2 (h - k)^2 / (2 (h + d)),
    w <- w - a (h0 + d) (m / (1 - b1^t) + d w) / (h + d)

    The gradient g and the estimate k of the Hessian's diagonal are taken at weights with noise, which are drawn from
    N(w, 1 / (N (h + d))). The transform `transforms.IVONNoise` draws that noise, so `Trainer.compile` needs both. The
    last term of h keeps h + d positive. N(w, 1 / (N (h + d))) approximates the posterior of the weights under the prior
    N(0, 1 / (N d)) if the loss is the mean negative log likelihood of N examples.

    Weights without noise, and variables of losses, are trained by SGD with momentum, because their h stays h0.

    Args:
        learning_rate: a, or a schedule of it; of the size of SGD's, not Adam's.
        hessian_init: h0 > 0. The larger, the smaller the first noise; a usual range is 0.01 to 1.
        beta_1: decay of the gradient's mean, 0 <= b1 < 1.
        beta_2: decay of the Hessian's mean, 0 <= b2 < 1; nearer to 1 than Adam's.
        weight_decay: d >= 0, the prior's precision over N.
        name: name of the optimizer.
        **kwargs: `clipnorm`, `use_ema`, `gradient_accumulation_steps` and so on, as in `keras.optimizers.Optimizer`.

    Raises:
        ValueError: a number is out of its range; on the first batch, `transforms` has no `IVONNoise`.
        NotImplementedError: on the first batch, with several replicas of `tf.distribute`.

    Source: Shen et al., "Variational learning is effective for large deep networks", ICML 2024, algorithm 1.

    Examples:
        >>> import keras, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile(minimand.optimizers.IVON(0.1), "mse", transforms=[minimand.transforms.IVONNoise()])
    """

    transform = "IVONNoise"

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

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        self._momentums = {id(v): self.add_variable_from_reference(v, "momentum") for v in weights}

    def _update(self, weight: keras.Variable, gradient: Tensor, rate: Tensor, state: Any, measured: Any) -> None:
        momentum = self._momentums[id(weight)]
        momentum.assign(self.beta_1 * momentum.value + (1.0 - self.beta_1) * ops.cast(gradient, momentum.dtype))
        # With gradient accumulation, `iterations` is a tensor and not a variable.
        count = ops.cast(self.iterations, "float32") + 1.0
        correction = 1.0 - ops.power(ops.cast(self.beta_1, "float32"), count)
        decay = self.decay if self._use_weight_decay(weight) else 0.0
        step = momentum.value / ops.cast(correction, momentum.dtype) + decay * weight.value
        if measured is not None:
            hessian, share = state.value, 1.0 - self.beta_2
            estimate = ops.cast(measured, hessian.dtype)
            correction = 0.5 * share**2 * ops.square(hessian - estimate) / (hessian + self.decay)
            hessian = hessian + share * (estimate - hessian) + correction
            state.assign(hessian)
            step = step * ((self.hessian_init + self.decay) / (hessian + self.decay))
        weight.assign(weight.value - ops.cast(rate * step, weight.dtype))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight_decay": self.decay}
