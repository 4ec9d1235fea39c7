"""Noise on the weights, in training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from minimand import backend
from minimand._ops import at_least_float32, nonzero_sqrt
from minimand._selection import Select, shifted
from minimand._validation import check_bool, check_choice, check_int
from minimand.backend import Tensor
from minimand.transforms._base import Batch, Objective, Schedule, Transform, Weights, value_at
from minimand.transforms._noise import PER, NoisePlacement

_DISTRIBUTIONS = ("normal", "uniform", "rademacher", "bernoulli")
_MODES = ("additive", "relative", "layer", "filter")


@keras.saving.register_keras_serializable(package="minimand")
class WeightNoise(Transform):
    """The expected loss under random noise on the weights.

    Use `WeightNoise` to find weights whose loss stays low nearby, or as DropConnect.

    L(w) -> E_e[ L(w + s c(w) e) ], with independent e of mean 0 and variance 1

    c(w) is 1 (`mode="additive"`), the weight itself (`"relative"`), or the root mean square of its tensor (`"layer"`)
    or of its output unit or filter, the last axis (`"filter"`). To second order the additive form adds
    s^2/2 tr H(w), with the Hessian H.

    Each step takes the mean over `samples` draws of the noise. Each draw is the same for all examples of the batch and
    costs an evaluation of the loss and its gradient; with `antithetic`, the negative of each draw is used too. The
    predictions of the first draw go to the metrics, and its batch statistics are kept. The gradient is taken at the
    noisy weights, through c(w) too, and applied to the clean ones.

    One draw for the batch makes a gradient whose variance does not fall with the size of the batch. With
    `per="example"` each example has noise of its own on the kernels and biases of Dense, EinsumDense and convolution
    layers; other selected weights have one draw for the batch. In a layer in which an example uses each weight once, as
    in a Dense layer of rows (batch, features), normal noise is drawn for the sums x w, which have the same law (local
    reparameterisation: nothing of the weights' size is drawn). In other layers one draw for the batch gets signs of its
    own for each example's inputs and outputs (Flipout): the noise of each example has the stated law, and the noise of
    two examples is uncorrelated.

    Args:
        stddev: standard deviation s >= 0 of the noise, in units of the weights (additive) or relative to c(w); or a
            `keras.optimizers.schedules.LearningRateSchedule` of it, by the number of training steps.
        distribution: `"normal"` (drawn from 65,536 equally probable quantiles, the largest 4.2), `"uniform"`,
            `"rademacher"` (two values), or, for relative noise, `"bernoulli"` (DropConnect): a weight is 0 with
            probability p = s^2 / (1 + s^2), and else w / (1 - p).
        mode: `"additive"`, `"relative"`, `"layer"` or `"filter"`.
        select: which weights get noise: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or a
            function of the variable.
        samples: number >= 1 of draws a step.
        antithetic: whether each draw is used with both signs, which cancels the odd orders of the noise.
        per: `"batch"` or `"example"`: the unit that has a draw of its own.
        start: the training step, from 0, from which there is noise.
        stop: the training step from which there is no noise any more, or None.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: `stddev` is negative or not finite, a number is out of its range, a name is unknown, `"bernoulli"`
            is not relative, is antithetic or is per example, `select` chooses nothing, or no kernel for
            `per="example"`.
        TypeError: `antithetic` is not a boolean.
        NotImplementedError: in training, a layer that draws noise for its sums is called twice in one pass.

    Source: An, "The effects of adding noise during backpropagation training on a generalization performance",
    Neural Computation 8 (1996), section 4; Wan et al., "Regularization of neural networks using DropConnect", ICML
    2013; antithetic pairs: Hammersley and Morton, Proc. Cambridge Phil. Soc. 52 (1956); per example: Kingma, Salimans
    and Welling, "Variational dropout and the local reparameterization trick", NIPS 2015, section 2.2; Wen et al.,
    "Flipout", ICLR 2018, section 3.

    Examples:
        >>> import minimand
        >>> noise = minimand.transforms.WeightNoise(0.1, mode="filter", antithetic=True, seed=0)
    """

    def __init__(
        self,
        stddev: Schedule,
        *,
        distribution: str = "normal",
        mode: str = "additive",
        select: Select = "kernels",
        samples: int = 1,
        antithetic: bool = False,
        per: str = "batch",
        start: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(select=select, seed=seed, name=name)
        self.stddev = self.check_schedule("stddev", stddev)
        self.distribution = check_choice("WeightNoise", "distribution", distribution, _DISTRIBUTIONS)
        self.mode = check_choice("WeightNoise", "mode", mode, _MODES)
        self.samples = check_int("WeightNoise", "samples", samples, minimum=1)
        self.antithetic = check_bool("WeightNoise", "antithetic", antithetic)
        self.per = check_choice("WeightNoise", "per", per, PER)
        self.start = check_int("WeightNoise", "start", start, minimum=0)
        self.stop = stop if stop is None else check_int("WeightNoise", "stop", stop, minimum=self.start + 1)
        if distribution == "bernoulli" and (mode != "relative" or antithetic or per != "batch"):
            raise ValueError(
                'WeightNoise: distribution="bernoulli" drops weights: it needs mode="relative", antithetic=False and '
                f'per="batch". Received: mode={mode!r}, antithetic={antithetic!r}, per={per!r}'
            )
        if self.start > 0 or self.stop is not None:
            self.add_step_counter()

    def build(self, model: keras.Model) -> None:
        super().build(model)
        self.placement = NoisePlacement(self, model, self.distribution)

    def _stddev_of_step(self) -> Any:
        """The standard deviation in this step, which is counted."""
        if self.step is None:
            return self.stddev
        step = self.next_step()
        active = step >= self.start
        if self.stop is not None:
            active = ops.logical_and(active, step < self.stop)
        return ops.where(active, ops.cast(value_at(self.stddev, step), "float32"), 0.0)

    def _scale(self, weight: Tensor) -> Tensor | float:
        """c(w), which broadcasts to the weight's shape."""
        if self.mode == "additive":
            return 1.0
        if self.mode == "relative":
            return weight
        axes = tuple(range(len(weight.shape) - (self.mode == "filter")))
        count = math.prod(weight.shape[axis] for axis in axes)
        squares = ops.sum(ops.square(at_least_float32(weight)), axis=axes, keepdims=True)
        return ops.cast(nonzero_sqrt(squares / count), weight.dtype)

    def _noise(self, weights: Weights, mask: Sequence[bool], stddev: Any, seed: Tensor) -> list[Tensor]:
        """Noise for each of these weights, s c(w) e."""
        selected = list(compress(weights, mask))
        shapes = [tuple(weight.shape) for weight in selected]
        if self.distribution == "bernoulli":
            # A weight is dropped with probability p = s^2 / (1 + s^2), and else multiplied by 1 / (1 - p) = 1 + s^2.
            square = stddev * stddev
            limit = math.sqrt(12) * (square / (1.0 + square) - 0.5)
            draws = [ops.where(uniform < limit, -1.0, square) for uniform in backend.noise("uniform", shapes, seed)]
        else:
            draws = backend.noise(self.distribution, shapes, seed, stddev)
        if self.mode == "additive":
            return draws
        return [ops.cast(e, w.dtype) * self._scale(w) for w, e in zip(selected, draws, strict=True)]

    draws_weights = True

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """The weights with noise of the schedule's present standard deviation, whatever `start` and `stop` are."""
        stddev = self.stddev if self.step is None else value_at(self.stddev, self.step.value)
        return shifted(weights, self.mask, self._noise(weights, self.mask, stddev, seed))

    def apply(self, objective: Objective) -> Objective:
        def noisy(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            if self.stddev == 0.0:
                return objective(weights, batch)
            stddev = self._stddev_of_step()

            def draw(seed: Tensor) -> list[Tensor]:
                return self._noise(weights, self.placement.on_weights, stddev, seed)

            def stddev_of(index: int) -> Tensor:
                return ops.cast(stddev * self._scale(weights[index]), weights[index].dtype)

            return self.placement.mean_over_draws(objective, weights, batch, draw, stddev_of)

        return noisy
