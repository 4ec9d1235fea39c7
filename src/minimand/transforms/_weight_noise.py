"""Noise on the weights, in training only."""

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
from minimand._ops import at_least_float32, root
from minimand._selection import Select, check_select, selection, shifted
from minimand._validation import check_bool, check_choice, check_float, check_int
from minimand.backend import Tensor
from minimand.transforms._base import Batch, Objective, Pass, Transform, Weights, mean_of
from minimand.transforms._example_noise import linear_layers, with_example_noise

# Random numbers for weights: unit noise of a law, and the scale that a mode gives it.

DISTRIBUTIONS = ("normal", "uniform", "rademacher", "bernoulli")
MODES = ("additive", "relative", "layer", "filter")
# Positions at which a slice of the table may start.
TABLE_POSITIONS = 65536


def unit_noise(distribution: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, stddev: Any) -> list[Tensor]:
    """Tensors of independent numbers of mean 0 and standard deviation `stddev`, a scalar, in float32."""
    if distribution != "bernoulli":
        return backend.noise(distribution, shapes, seed, stddev)
    # A weight is dropped with probability p = s^2 / (1 + s^2), and else multiplied by 1 / (1 - p) = 1 + s^2.
    square = stddev * stddev
    limit = math.sqrt(12) * (square / (1.0 + square) - 0.5)
    return [ops.where(uniform < limit, -1.0, square) for uniform in backend.noise("uniform", shapes, seed)]


def scale_of(mode: str, weight: Tensor) -> Tensor | float:
    """c(w): the unit of the noise on a weight, which broadcasts to its shape."""
    if mode == "additive":
        return 1.0
    if mode == "relative":
        return weight
    return root_mean_square(weight, tuple(range(len(weight.shape) - (mode == "filter"))))


def root_mean_square(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Over these axes, which are kept; its derivative at 0 is 0."""
    count = math.prod(weight.shape[axis] for axis in axes)
    squares = ops.sum(ops.square(at_least_float32(weight)), axis=axes, keepdims=True)
    return ops.cast(root(squares / count), weight.dtype)


def table_values(distribution: str, length: int, seed: int) -> np.ndarray:
    """Independent numbers of mean 0 and variance 1 for a table of noise."""
    random = np.random.default_rng([seed, 0x7AB1E])
    if distribution == "uniform":
        values = random.uniform(-math.sqrt(3), math.sqrt(3), length)
    elif distribution == "rademacher":
        values = random.choice([-1.0, 1.0], length)
    else:
        values = random.standard_normal(length)
    return values.astype("float32")


def table_noise(table: Tensor, shapes: Sequence[tuple[int, ...]], seed: Tensor, stddev: Any) -> list[Tensor]:
    """Slices of the table from random positions, with random signs, times `stddev`."""
    positions, signs = backend.noise("uniform", [(len(shapes),)] * 2, seed)
    starts = ops.cast(ops.floor((positions / math.sqrt(12) + 0.5) * TABLE_POSITIONS), "int32")
    factors = ops.sign(signs) * stddev
    return [
        ops.reshape(ops.slice(table, starts[k : k + 1], (math.prod(shape),)), shape) * factors[k]
        for k, shape in enumerate(shapes)
    ]


# Where the noise on a model's weights is drawn, and the objective at such draws.

PER = ("batch", "example", "position")
# Of the passes of one draw, without and with antithetic ones.
SIGNS = {False: (1,), True: (1, -1)}


class Placement:
    """For each chosen weight, whether its noise is drawn in a layer, for each example, or on it, for the batch.

    Args:
        model: the built model.
        mask: which of its trainable weights get noise.
        per: one of `PER`.
        owner: the transform, for messages.
    """

    def __init__(self, model: keras.Model, mask: Sequence[bool], per: str, owner: str) -> None:
        self.per = per
        self.layers = [] if per == "batch" else linear_layers(model, mask, owner)
        self.in_layers = [k for part in self.layers for k in (part.kernel, part.bias) if k is not None]
        self.on_weights = [c and k not in self.in_layers for k, c in enumerate(mask)]

    def passes(
        self,
        objective: Objective,
        weights: Weights,
        steps: Sequence[Tensor],
        stddev_of: Callable[[int], Tensor],
        generator: keras.random.SeedGenerator,
        *,
        antithetic: bool,
        law: str = "normal",
    ) -> list[Pass]:
        """The objective at one draw, and with `antithetic` at its negative.

        Args:
            objective: the objective.
            weights: values for the model's trainable variables.
            steps: the noise on each of the weights `on_weights`.
            stddev_of: by its index, the standard deviation of the noise on a weight `in_layers`.
            generator: source of the numbers that are drawn in layers.
            antithetic: whether the noise is used with both signs.
            law: law of the noise on a weight, as in `Backend.noise`.
        """
        seeds = [(generator.next(), generator.next()) for _ in self.layers]
        stddevs = {index: stddev_of(index) for index in self.in_layers}

        def at(sign: int) -> Any:
            shared = partial(objective, shifted(weights, self.on_weights, steps, sign))
            return with_example_noise(shared, self.layers, stddevs, seeds, law=law, per=self.per, sign=sign)

        return [at(sign) for sign in SIGNS[antithetic]]


# Noise on the weights, in training only.


@keras.saving.register_keras_serializable(package="minimand")
class WeightNoise(Transform):
    """The expected loss under random noise on the weights.

    L(w) -> E_e[ L(w + s c(w) e) ], with independent e of mean 0 and variance 1

    c(w) is 1 (`mode="additive"`), the weight itself (`"relative"`), or the root mean square of its tensor (`"layer"`)
    or of its output unit or filter, the last axis (`"filter"`). To second order the additive form adds
    s^2/2 tr H(w), with the Hessian H.

    Each step takes the mean over `samples` draws of the noise, each the same for all examples of the batch, and with
    `antithetic` its negative too: an evaluation of the loss and its gradient each. Of several, the first one's
    predictions go to the metrics, and its batch statistics are kept. The gradient is taken at the noisy weights,
    through c(w) too, and applied to the clean ones.

    One draw for the batch makes a gradient whose variance does not fall with the size of the batch. With
    `per="example"` each example has noise of its own on the kernels and biases of Dense, EinsumDense and convolution
    layers; other weights that are chosen have one draw for the batch. Where an example uses each weight once, as in a
    Dense layer of rows (batch, features), normal noise is drawn for the sums x w, whose law is the same (local
    reparameterisation: nothing of the weights' size is drawn). Elsewhere one draw for the batch gets signs of its own
    for each example's inputs and outputs (Flipout): each example's noise has the stated law, and that of two is
    uncorrelated. `per="position"` draws for the sums of convolutions, and of Dense layers of sequences, too: each has
    the right law, but those of two positions are independent, as if each position had other weights.

    Drawing the numbers is most of the cost. With `draws="table"` they are a slice, at a random position and with a
    random sign, of a table of independent numbers that stays the same: each step's noise on a weight tensor has
    exactly the stated law, but different steps and tensors take theirs from the same table. Their noise is
    uncorrelated, not independent: 65,536 positions and two signs make 131,072 different draws of a tensor's noise. The
    table, as long as the largest weight tensor and 65,536 more, is saved with the trainer.

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
        draws: `"independent"`, or the cheaper `"table"`.
        per: `"batch"`, `"example"` or `"position"`: what has a draw of its own.
        start: the training step, from 0, from which there is noise.
        stop: the training step from which there is none any more, or None.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: `stddev` is negative or not finite, a number is out of its range, a name is unknown, `"bernoulli"`
            is not relative, antithetic or from a table, `per` does not go with the law or the draws, `select` chooses
            nothing, or nothing that `per` can work for.
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
        stddev: float | keras.optimizers.schedules.LearningRateSchedule,
        *,
        distribution: str = "normal",
        mode: str = "additive",
        select: Select = "kernels",
        samples: int = 1,
        antithetic: bool = False,
        draws: str = "independent",
        per: str = "batch",
        start: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(seed=seed, name=name)
        if not isinstance(stddev, keras.optimizers.schedules.LearningRateSchedule):
            stddev = check_float("WeightNoise", "stddev", stddev, minimum=0.0)
        self.stddev = stddev
        self.distribution = check_choice("WeightNoise", "distribution", distribution, DISTRIBUTIONS)
        self.mode = check_choice("WeightNoise", "mode", mode, MODES)
        self.select = check_select(select, "WeightNoise")
        self.samples = check_int("WeightNoise", "samples", samples, minimum=1)
        self.antithetic = check_bool("WeightNoise", "antithetic", antithetic)
        self.draws = check_choice("WeightNoise", "draws", draws, ("independent", "table"))
        self.per = check_choice("WeightNoise", "per", per, PER)
        self.table: keras.Variable | None = None
        self.start = check_int("WeightNoise", "start", start, minimum=0)
        self.stop = stop if stop is None else check_int("WeightNoise", "stop", stop, minimum=self.start + 1)
        if distribution == "bernoulli" and (mode != "relative" or antithetic or draws == "table"):
            raise ValueError(
                'WeightNoise: distribution="bernoulli" drops weights: it needs mode="relative", antithetic=False and '
                f'draws="independent". Received: mode={mode!r}, antithetic={antithetic!r}, draws={draws!r}'
            )
        if per != "batch" and (distribution == "bernoulli" or draws == "table"):
            raise ValueError(
                'WeightNoise: with distribution="bernoulli" or draws="table", noise is drawn per="batch". '
                f"Received: per={per!r}, distribution={distribution!r}, draws={draws!r}"
            )
        if per == "position" and distribution != "normal":
            raise ValueError(
                'WeightNoise: per="position" needs distribution="normal", of which sums are normal too. '
                f"Received: distribution={distribution!r}"
            )

    @property
    def _varies(self) -> bool:
        return not isinstance(self.stddev, float) or self.start > 0 or self.stop is not None

    def build(self, model: keras.Model) -> None:
        self.mask = selection(model.trainable_variables, self.select, "WeightNoise")
        self.placement = Placement(model, self.mask, self.per, "WeightNoise")
        if self._varies and not hasattr(self, "step"):
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        if self.draws == "table":
            sizes = [math.prod(v.shape) for v, c in zip(model.trainable_variables, self.mask, strict=True) if c]
            length = max(sizes) + TABLE_POSITIONS
            if self.table is None or self.table.shape[0] < length:
                self.table = self.add_weight((length,), self._table_values, "float32", trainable=False, name="table")

    def _table_values(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        seed = int(ops.convert_to_numpy(self.seed_generator.state.value)[0])
        return ops.convert_to_tensor(table_values(self.distribution, shape[0], seed), dtype)

    def _stddev_of_step(self) -> Any:
        """The standard deviation now; advances the count of steps."""
        if not self._varies:
            return self.stddev
        step = self.step.value
        stddev = self.stddev(step) if callable(self.stddev) else self.stddev
        active = step >= self.start
        if self.stop is not None:
            active = ops.logical_and(active, step < self.stop)
        stddev = ops.where(active, ops.cast(stddev, "float32"), 0.0)
        # Last, since on PyTorch the value read above is the variable's own memory.
        self.step.assign(step + 1)
        return stddev

    def _noise(self, weights: Weights, mask: Sequence[bool], stddev: Any, seed: Tensor) -> list[Tensor]:
        """Noise for each of the chosen weights."""
        some = list(compress(weights, mask))
        shapes = [tuple(weight.shape) for weight in some]
        if not some:
            return []
        if self.table is not None:
            draws = table_noise(self.table.value, shapes, seed, stddev)
        else:
            draws = unit_noise(self.distribution, shapes, seed, stddev)
        if self.mode == "additive":
            return draws
        return [ops.cast(e, w.dtype) * scale_of(self.mode, w) for w, e in zip(some, draws, strict=True)]

    draws_weights = True

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """The weights with noise, whatever `start` and `stop` are; at the schedule's present standard deviation."""
        stddev = self.stddev(self.step.value) if callable(self.stddev) else self.stddev
        return shifted(weights, self.mask, self._noise(weights, self.mask, stddev, seed))

    def apply(self, objective: Objective) -> Objective:
        def noisy(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            if self.stddev == 0.0:
                return objective(weights, batch)
            stddev = self._stddev_of_step()

            def stddev_of(index: int) -> Tensor:
                return ops.cast(stddev * scale_of(self.mode, weights[index]), weights[index].dtype)

            passes = []
            for _ in range(self.samples):
                noise = self._noise(weights, self.placement.on_weights, stddev, self.seed_generator.next())
                passes += self.placement.passes(
                    objective, weights, noise, stddev_of, self.seed_generator,
                    antithetic=self.antithetic, law=self.distribution,
                )  # fmt: skip
            return mean_of(passes, batch)

        return noisy

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "stddev": self.stddev
            if isinstance(self.stddev, float)
            else keras.saving.serialize_keras_object(self.stddev),
            "distribution": self.distribution,
            "mode": self.mode,
            "select": self.select,
            "samples": self.samples,
            "antithetic": self.antithetic,
            "draws": self.draws,
            "per": self.per,
            "start": self.start,
            "stop": self.stop,
        }
