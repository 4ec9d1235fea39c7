"""Noise on the weights whose size is learned: mean-field variational inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion import backend
from kriterion._selection import Select, check_select, selection, shifted
from kriterion._validation import check_bool, check_choice, check_float, check_int
from kriterion.backend import Tensor
from kriterion.transforms._passes import Pass, mean_of
from kriterion.transforms._placement import PER, SIGNS, Placement
from kriterion.transforms._priors import ScaleMixturePrior, empirical_bayes_divergence, normal_divergence
from kriterion.transforms._sized import SizedTransform
from kriterion.transforms.base import Batch, Objective, Weights

_MOPED_SHARE = 0.1
# The least standard deviation of a weight that is zero when training starts from a trained model.
_MOPED_LEAST = 1e-3


@keras.saving.register_keras_serializable(package="kriterion")
class LearnedWeightNoise(SizedTransform):
    """The evidence bound: normal noise on the weights, its size trained, at the cost of its distance from a prior.

    L(w) -> E_e[ L(w + s e) ] + c KL( N(w, s^2) || prior ), e ~ N(0, I), s = exp(r), r trained

    With L the mean negative log likelihood of the examples and c = 1 / N, N the size of the training set, this is the
    negative evidence lower bound per example, and N(w, s^2) the variational posterior. So the loss must be a negative
    log likelihood: a cross-entropy, or `losses.UncertaintyWeighted` or `AdaptiveStudentT` for regression; squared
    error is that of a normal law of variance 1/2.

    A step evaluates `samples` draws, each the same for all examples of a batch, and with `antithetic` its negative too.
    The KL divergence is exact, and summed over the weights; that of a `ScaleMixturePrior` is estimated at the same
    draws. `evaluate` and `predict` use w, the posterior's mean; `Trainer.predict_samples` draws from the posterior.

    Args:
        prior: standard deviation > 0 of a normal prior; `"empirical_bayes"`, one for each weight tensor, the best at
            every step, in closed form; or a `ScaleMixturePrior`.
        kl_weight: c >= 0, or `"auto"`: 1 / N with the number of training examples that `fit` is given. It is known
            of arrays, and of a `keras.utils.PyDataset`, `tf.data.Dataset` or torch `DataLoader` that has a length.
        temperature: factor >= 0 of the divergence; below 1, a "cold" posterior, narrower than Bayes's.
        warm_up: number >= 0 of training steps in which the divergence's factor rises from 0 in proportion.
        init: initial standard deviation > 0, or `"moped"`, to start from a trained model: a tenth of each weight's
            size, and a prior that is centred at the weights as they are then.
        select: which weights get noise: `"all"`, `"kernels"` (rank 2 or more), a regular expression of paths, or a
            function of the variable.
        samples: number >= 1 of draws a step.
        antithetic: whether each draw is used with both signs.
        per: `"batch"`, `"example"` or `"position"`: what has a draw of its own, as in `WeightNoise`.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: a number is out of its range, a name is unknown, `select` chooses nothing, or nothing that `per`
            can work for, a `ScaleMixturePrior` is not per batch; in `fit`, the number of training examples is not
            known.
        TypeError: `antithetic` is not a boolean.
        NotImplementedError: as `WeightNoise`, for `per`.

    Source: Graves, "Practical variational inference for neural networks", NIPS 2011; Blundell et al., "Weight
    uncertainty in neural networks", ICML 2015; moped: Krishnan, Subedar and Tickoo, "Specifying weight priors in
    Bayesian deep neural networks with empirical Bayes", AAAI 2020.

    Examples:
        >>> import kriterion
        >>> noise = kriterion.transforms.LearnedWeightNoise(prior="empirical_bayes", seed=0)
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
        super().__init__(automatic=automatic, remedy="kl_weight=1 / examples", seed=seed, name=name)
        owner = "LearnedWeightNoise"
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
                "LearnedWeightNoise: a ScaleMixturePrior, whose divergence is estimated at the draws of the weights, "
                f'needs per="batch". Received: per={per!r}'
            )
        self.temperature = check_float(owner, "temperature", temperature, minimum=0.0)
        self.warm_up = check_int(owner, "warm_up", warm_up, minimum=0)
        self.select = check_select(select, owner)
        self.samples = check_int(owner, "samples", samples, minimum=1)
        self.log_stddevs: dict[str, keras.Variable] = {}
        self.centers: dict[str, keras.Variable] = {}
        if warm_up:
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")

    def build(self, model: keras.Model) -> None:
        self.chosen = selection(model.trainable_variables, self.select, "LearnedWeightNoise")
        self.placement = Placement(model, self.chosen, self.per, "LearnedWeightNoise")
        self.weights = list(model.trainable_variables)
        self.selected = list(compress(self.weights, self.chosen))
        for weight in self.selected:
            if weight.path not in self.log_stddevs:
                self.log_stddevs[weight.path] = self._made("log_stddev", weight, self._initial_log_stddev)
                if self.init == "moped":
                    self.centers[weight.path] = self._made("center", weight, ops.copy, trainable=False)

    def _initial_log_stddev(self, value: Tensor) -> Tensor:
        if isinstance(self.init, str):
            return ops.log(ops.clip(_MOPED_SHARE * ops.abs(value), _MOPED_LEAST, 1e30))
        return ops.full_like(value, math.log(self.init))

    def _made(self, kind: str, weight: keras.Variable, start: Any, trainable: bool = True) -> keras.Variable:
        """A variable like a weight, whose first value is a function of the weight's."""

        def initial(shape: Any, dtype: Any = None) -> Tensor:
            # Called when the weight has its value, which may be after `build`.
            return ops.cast(start(weight.value), dtype)

        name = f"{weight.path.replace('/', '_')}_{kind}"
        return self.add_weight(weight.shape, initial, "float32", trainable=trainable, name=name)

    def _stddev(self, variable: keras.Variable) -> Tensor:
        return ops.exp(self.log_stddevs[variable.path].value)

    def _steps(self, variables: Sequence[keras.Variable], noise: Sequence[Tensor]) -> list[Tensor]:
        return [self._stddev(variable) * e for variable, e in zip(variables, noise, strict=True)]

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """Weights drawn from the posterior."""
        noise = backend.noise("normal", [tuple(v.shape) for v in self.selected], seed)
        return shifted(weights, self.chosen, self._steps(self.selected, noise))

    def divergence(self, weights: Weights, draws: Sequence[Sequence[Tensor]]) -> Tensor:
        """KL(posterior || prior), summed over the chosen weights; where it has no closed form, at these unit draws."""
        total: Any = 0.0
        for index, (variable, weight) in enumerate(zip(self.selected, compress(weights, self.chosen), strict=True)):
            log_stddev = self.log_stddevs[variable.path].value
            mean = ops.cast(weight, "float32")
            if self.init == "moped":
                mean = mean - self.centers[variable.path].value
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
        """The divergence's factor; advances the count of steps."""
        weight = 1.0 / self.examples.value if isinstance(self.kl_weight, str) else self.kl_weight
        if not self.warm_up:
            return self.temperature * weight
        step = self.step.value
        rising = ops.minimum(ops.cast(step, "float32") / self.warm_up, 1.0)
        self.step.assign(step + 1)
        return self.temperature * weight * rising

    def apply(self, objective: Objective) -> Objective:
        def bound(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            shared = list(compress(self.weights, self.placement.on_weights))
            shapes = [tuple(variable.shape) for variable in shared]
            passes: list[Pass] = []
            draws = []
            for _ in range(self.samples):
                noise = backend.noise("normal", shapes, self.seed_generator.next()) if shapes else []
                draws.append(noise)
                passes += self.placement.passes(
                    objective, weights, self._steps(shared, noise), lambda index: self._stddev(self.weights[index]),
                    self.seed_generator, antithetic=self.antithetic,
                )  # fmt: skip
            loss, outcome = mean_of(passes, batch)
            penalty = self._weight_of_step() * self.divergence(weights, draws)
            return loss + ops.cast(penalty, loss.dtype), outcome

        return bound

    def signal_to_noise(self) -> dict[str, np.ndarray]:
        """|w| / s of each chosen weight, by its path: where it is small, the weight may as well be 0.

        Raises:
            ValueError: the transform has not been built by a trainer.

        Source: Graves, NIPS 2011, section 6.
        """
        if not self.built:
            raise ValueError("LearnedWeightNoise.signal_to_noise: train with the transform first.")
        return {
            variable.path: np.abs(ops.convert_to_numpy(variable.value))
            / np.exp(ops.convert_to_numpy(self.log_stddevs[variable.path].value))
            for variable in self.selected
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "prior": keras.saving.serialize_keras_object(self.prior),
            "kl_weight": self.kl_weight,
            "temperature": self.temperature,
            "warm_up": self.warm_up,
            "init": self.init,
            "select": self.select,
            "samples": self.samples,
            "antithetic": self.antithetic,
            "per": self.per,
        }
