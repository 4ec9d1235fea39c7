"""Variational inference: noise on the weights whose size is trained, and the noise of the optimizer IVON."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._config import config_of, from_config
from minimand._selection import Select, by_path, shifted
from minimand._validation import check_bool, check_choice, check_float, check_int
from minimand.backend import Tensor
from minimand.optimizers import IVON
from minimand.transforms._base import Batch, Objective, SizedTransform, Weights
from minimand.transforms._noise import PER, SIGNS, NoisePlacement, mean_of

# Divergences of a normal posterior from a prior.


def normal_divergence(mean: Tensor, log_stddev: Tensor, prior_stddev: float) -> Tensor:
    """KL(N(m, s^2) || N(0, p^2)) = sum of log(p / s) + (s^2 + m^2) / (2 p^2) - 1/2."""
    squares = ops.square(mean) + ops.exp(2.0 * log_stddev)
    return ops.sum(math.log(prior_stddev) - 0.5 - log_stddev + squares / (2.0 * prior_stddev**2))


def empirical_bayes_divergence(mean: Tensor, log_stddev: Tensor) -> Tensor:
    """The least KL(N(m, s^2) || N(0, p^2)) over p, at p^2 = mean(m^2 + s^2).

    The derivative by p is 0 at the minimum, so the gradient equals the gradient at fixed p.
    """
    count = math.prod(mean.shape)
    best = ops.sum(ops.square(mean) + ops.exp(2.0 * log_stddev)) / count
    return 0.5 * count * ops.log(best) - ops.sum(log_stddev)


@keras.saving.register_keras_serializable(package="minimand")
class ScaleMixturePrior:
    """A prior of two normal laws, a wide and a narrow one, for each weight.

    Use `ScaleMixturePrior` in `VariationalWeightNoise` if many weights should be close to 0 and a few large.

    p(w) = a N(w; 0, s1^2) + (1 - a) N(w; 0, s2^2)

    Args:
        wide: standard deviation s1 > 0.
        narrow: standard deviation s2 > 0.
        share: probability 0 < a < 1 of the wide one.

    Raises:
        ValueError: a number is out of its range.

    Source: Blundell et al., "Weight uncertainty in neural networks", ICML 2015, equation 7.

    Examples:
        >>> import minimand
        >>> prior = minimand.transforms.ScaleMixturePrior(1.0, 0.01, share=0.25)
    """

    def __init__(self, wide: float = 1.0, narrow: float = 0.0025, *, share: float = 0.5) -> None:
        self.wide = check_float("ScaleMixturePrior", "wide", wide, above=0.0)
        self.narrow = check_float("ScaleMixturePrior", "narrow", narrow, above=0.0)
        self.share = check_float("ScaleMixturePrior", "share", share, above=0.0, below=1.0)

    def divergence(self, mean: Tensor, noise: Tensor, log_stddev: Tensor) -> Tensor:
        """Log q(w) - log p(w) at a draw w = m + s e: an unbiased estimate of KL(q || p)."""
        value = mean + ops.exp(log_stddev) * noise
        log_posterior = -0.5 * ops.square(noise) - log_stddev
        parts = [
            np.float32(math.log(share / stddev)) - ops.square(value) / (2.0 * stddev**2)
            for share, stddev in ((self.share, self.wide), (1.0 - self.share, self.narrow))
        ]
        return ops.sum(log_posterior - ops.logaddexp(*parts))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal prior."""
        return config_of(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A prior made from `get_config()`."""
        return from_config(cls, config)


# Mean-field variational inference.

_MOPED_SHARE = 0.1
# The least standard deviation of a weight that is zero when training starts from a trained model.
_MOPED_LEAST = 1e-3


@keras.saving.register_keras_serializable(package="minimand")
class VariationalWeightNoise(SizedTransform):
    """Mean-field variational inference: normal noise on the weights, with trained sizes and a prior.

    Use `VariationalWeightNoise` for predictions with uncertainty, or to find out which weights matter.

    L(w) -> E_e[ L(w + s e) ] + c KL( N(w, s^2) || prior ), e ~ N(0, I), s = exp(r), r trained

    With L the mean negative log likelihood of the examples and c = 1 / N, N the size of the training set, this is the
    negative evidence lower bound per example, and N(w, s^2) is the variational posterior. So the loss must be a
    negative log likelihood: a cross-entropy, or `losses.UncertaintyWeighted` or `AdaptiveStudentT` for regression.
    Squared error is the negative log likelihood of a normal law of variance 1/2.

    A step evaluates `samples` draws. Each draw is the same for all examples of a batch; with `antithetic`, the negative
    of each draw is evaluated too. The KL divergence is exact and summed over the weights; the divergence from a
    `ScaleMixturePrior` is estimated at the same draws. `evaluate` and `predict` use w, the posterior's mean;
    `Trainer.predict_samples` draws from the posterior.

    Args:
        prior: standard deviation > 0 of a normal prior; `"empirical_bayes"`, one for each weight tensor, the best at
            every step, in closed form; or a `ScaleMixturePrior`.
        kl_weight: c >= 0, or `"auto"`: 1 / N with the number of training examples in an epoch of `fit`. Examples with
            a sample weight of 0 do not count. `fit` counts arrays, and a `keras.utils.PyDataset`, `tf.data.Dataset` or
            torch `DataLoader` with a length, which may be read once for it. A generator counts as `steps_per_epoch`
            batches of the size of the first.
        temperature: factor >= 0 of the divergence; a factor below 1 gives a "cold" posterior, narrower than Bayes's.
        warm_up: number >= 0 of training steps in which the divergence's factor rises from 0 in proportion.
        init: initial standard deviation > 0, or `"moped"`, to start from a trained model: a tenth of each weight's
            size, and a prior that is centred at the weights at the start.
        select: which weights get noise: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
            function of the variable.
        samples: number >= 1 of draws a step.
        antithetic: whether each draw is used with both signs.
        per: `"batch"` or `"example"`: the unit that has a draw of its own, as in `WeightNoise`.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: a number is out of its range, a name is unknown, `select` chooses nothing, or no kernel for
            `per="example"`, a `ScaleMixturePrior` is not per batch; in `fit`, the number of training examples is not
            known.
        TypeError: `antithetic` is not a boolean.
        NotImplementedError: in training with `per="example"`, a layer is called twice in one pass.

    Source: Graves, "Practical variational inference for neural networks", NIPS 2011; Blundell et al., "Weight
    uncertainty in neural networks", ICML 2015; moped: Krishnan, Subedar and Tickoo, "Specifying weight priors in
    Bayesian deep neural networks with empirical Bayes", AAAI 2020.

    Examples:
        >>> import minimand
        >>> noise = minimand.transforms.VariationalWeightNoise(prior="empirical_bayes", seed=0)
    """

    def __init__(
        self,
        *,
        prior: float | str | ScaleMixturePrior = 1.0,
        kl_weight: float | str = "auto",
        temperature: float = 1.0,
        warm_up: int = 0,
        init: float | str = 0.01,
        select: Select = "all",
        samples: int = 1,
        antithetic: bool = False,
        per: str = "batch",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        automatic = isinstance(kl_weight, str) and kl_weight == "auto"
        super().__init__(automatic=automatic, remedy="kl_weight=1 / examples", select=select, seed=seed, name=name)
        owner = "VariationalWeightNoise"
        if prior != "empirical_bayes" and not isinstance(prior, ScaleMixturePrior):
            prior = check_float(owner, "prior", prior, above=0.0)
        if not automatic:
            kl_weight = check_float(owner, "kl_weight", kl_weight, minimum=0.0)
        if init != "moped":
            init = check_float(owner, "init", init, above=0.0)
        self.prior, self.kl_weight, self.init = prior, kl_weight, init
        self.antithetic = check_bool(owner, "antithetic", antithetic)
        self.per = check_choice(owner, "per", per, PER)
        if per != "batch" and isinstance(prior, ScaleMixturePrior):
            raise ValueError(
                f'VariationalWeightNoise: a ScaleMixturePrior needs per="batch". Received: per={per!r}. Use a normal '
                'prior or prior="empirical_bayes", whose divergence does not depend on draws of the weights.'
            )
        self.temperature = check_float(owner, "temperature", temperature, minimum=0.0)
        self.warm_up = check_int(owner, "warm_up", warm_up, minimum=0)
        self.samples = check_int(owner, "samples", samples, minimum=1)
        if self.warm_up:
            self.add_step_counter()

    def build(self, model: keras.Model) -> None:
        super().build(model)
        self.placement = NoisePlacement(self, model, "normal")
        self.weights = list(model.trainable_variables)
        for weight in self.selected:
            self.add_weight_like(weight, "log_stddev", _like(weight, self._initial_log_stddev))
            if self.init == "moped":
                self.add_weight_like(weight, "center", _like(weight, ops.copy), trainable=False)

    def _initial_log_stddev(self, value: Tensor) -> Tensor:
        if isinstance(self.init, str):
            return ops.log(ops.clip(_MOPED_SHARE * ops.abs(value), _MOPED_LEAST, 1e30))
        return ops.full_like(value, math.log(self.init))

    def _log_stddev(self, weight: keras.Variable) -> Tensor:
        return self.variable_of(weight, "log_stddev").value

    def _stddev(self, weight: keras.Variable) -> Tensor:
        return ops.exp(self._log_stddev(weight))

    def _steps(self, variables: Sequence[keras.Variable], noise: Sequence[Tensor]) -> list[Tensor]:
        return [self._stddev(variable) * e for variable, e in zip(variables, noise, strict=True)]

    draws_weights = True

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """Weights drawn from the posterior."""
        noise = backend.noise("normal", [tuple(v.shape) for v in self.selected], seed)
        return shifted(weights, self.mask, self._steps(self.selected, noise))

    def divergence(self, weights: Weights, draws: Sequence[Sequence[Tensor]]) -> Tensor:
        """KL(posterior || prior), summed over the selected weights; the draws are for a `ScaleMixturePrior`."""
        total: Any = 0.0
        for index, (variable, weight) in enumerate(zip(self.selected, compress(weights, self.mask), strict=True)):
            log_stddev = self._log_stddev(variable)
            mean = ops.cast(weight, "float32")
            if self.init == "moped":
                mean = mean - self.variable_of(variable, "center").value
            if isinstance(self.prior, ScaleMixturePrior):
                signed = [sign * noise[index] for noise in draws for sign in SIGNS[self.antithetic]]
                parts = [self.prior.divergence(mean, noise, log_stddev) for noise in signed]
                total = total + sum(parts) / len(parts)
            elif isinstance(self.prior, str):
                total = total + empirical_bayes_divergence(mean, log_stddev)
            else:
                total = total + normal_divergence(mean, log_stddev, self.prior)
        return total

    def _weight_of_step(self) -> Any:
        """The factor of the divergence in this step, which is counted."""
        weight = 1.0 / self.training_examples.value if isinstance(self.kl_weight, str) else self.kl_weight
        if not self.warm_up:
            return self.temperature * weight
        return self.temperature * weight * ops.minimum(ops.cast(self.next_step(), "float32") / self.warm_up, 1.0)

    def apply(self, objective: Objective) -> Objective:
        def bound(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            shared = list(compress(self.weights, self.placement.on_weights))
            draws: list[list[Tensor]] = []

            def draw(seed: Tensor) -> list[Tensor]:
                draws.append(backend.noise("normal", [tuple(variable.shape) for variable in shared], seed))
                return self._steps(shared, draws[-1])

            def stddev_of(index: int) -> Tensor:
                return self._stddev(self.weights[index])

            loss, aux = self.placement.mean_over_draws(objective, weights, batch, draw, stddev_of)
            penalty = self._weight_of_step() * self.divergence(weights, draws)
            return loss + ops.cast(penalty, loss.dtype), aux

        return bound

    def signal_to_noise(self) -> dict[str, np.ndarray]:
        """|w| / s of each selected weight, by the weight's path; a weight with a small ratio may be set to 0.

        Raises:
            ValueError: the transform has not been built by a trainer.

        Source: Graves, NIPS 2011, section 6.
        """
        if not self.built:
            raise ValueError(
                "VariationalWeightNoise.signal_to_noise: needs a transform that a trainer has built. Received: a "
                "transform without variables. Train with the transform first."
            )
        ratios = [
            np.abs(ops.convert_to_numpy(weight.value)) / ops.convert_to_numpy(ops.stop_gradient(self._stddev(weight)))
            for weight in self.selected
        ]
        return by_path("VariationalWeightNoise.signal_to_noise", self.selected, ratios)


def _like(weight: keras.Variable, start: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An initializer that is a function of a weight's value when it is called, which may be after `build`."""
    return lambda shape, dtype=None: ops.cast(start(weight.value), dtype)


# The noise that goes with the optimizer IVON.


@keras.saving.register_keras_serializable(package="minimand")
class IVONNoise(SizedTransform):
    """Weights drawn from the posterior that the optimizer `IVON` maintains.

    Use `IVONNoise` together with the optimizer `IVON`, which needs it.

    L(w) -> E_e[ L(w + s e) ], e ~ N(0, I), s = 1 / sqrt(N (h + d))

    h is the optimizer's running estimate of the Hessian's diagonal, from products of gradient and noise, and d its
    weight decay. The noise is in the objective alone; the model's own weights are never noisy.

    Args:
        examples: N > 0, or `"auto"`: the number of training examples in an epoch of `fit`
            (see `VariationalWeightNoise`). A smaller number gives more noise.
        select: which weights get noise: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
            function of the variable.
        samples: number >= 1 of draws a step, over which gradient and Hessian are averaged.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: a number is out of its range, `select` chooses nothing, the optimizer is not an `IVON`; in `fit`,
            the number of training examples is not known.

    Source: Shen et al., "Variational learning is effective for large deep networks", ICML 2024, algorithm 1, lines 1
    to 3.

    Examples:
        >>> import minimand
        >>> noise = minimand.transforms.IVONNoise(seed=0)
    """

    def __init__(
        self,
        *,
        examples: float | str = "auto",
        select: Select = "all",
        samples: int = 1,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        automatic = isinstance(examples, str) and examples == "auto"
        super().__init__(automatic=automatic, remedy="examples=", select=select, seed=seed, name=name)
        self.examples = examples if automatic else check_float("IVONNoise", "examples", examples, above=0.0)
        self.samples = check_int("IVONNoise", "samples", samples, minimum=1)

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        if not isinstance(optimizer, IVON):
            raise ValueError(
                "IVONNoise: `optimizer` must be a minimand.optimizers.IVON. "
                f"Received: optimizer={type(optimizer).__name__}. Compile with minimand.optimizers.IVON()."
            )
        self.optimizer = optimizer

    def build(self, model: keras.Model) -> None:
        super().build(model)
        start = keras.initializers.Constant(self.optimizer.hessian_init)
        for weight in self.selected:
            self.optimizer.track(weight, self.add_weight_like(weight, "hessian", start))

    draws_weights = True

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """Weights drawn from the posterior, such that the derivative by h is the estimate of the Hessian's diagonal.

        The estimate is k = g e / s, with the gradient g at the noisy weights: the noise s e gets the derivative e / s
        by h.
        """
        examples = self.training_examples.value if isinstance(self.examples, str) else self.examples
        noise = backend.noise("normal", [tuple(v.shape) for v in self.selected], seed)

        def of_tensors(hessian: Tensor, e: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            stddev = ops.rsqrt(examples * (hessian + self.optimizer.decay))
            return e * stddev, (e / stddev, stddev)

        hessians = [self.variable_of(weight, "hessian").value for weight in self.selected]
        return shifted(weights, self.mask, map(backend.custom_derivative(of_tensors), hessians, noise))

    def apply(self, objective: Objective) -> Objective:
        def noisy(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            draws = [self.sample(weights, self.seed_generator.next()) for _ in range(self.samples)]
            return mean_of([partial(objective, draw) for draw in draws], batch)

        return noisy
