"""Noise on the weights, in training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from kriterion._selection import Select, check_select, selection, shifted
from kriterion._validation import check_bool, check_choice, check_float, check_int
from kriterion.backend import Tensor
from kriterion.transforms._passes import mean_of
from kriterion.transforms._placement import PER, Placement
from kriterion.transforms._random_weights import (
    DISTRIBUTIONS,
    MODES,
    TABLE_POSITIONS,
    scale_of,
    table_noise,
    table_values,
    unit_noise,
)
from kriterion.transforms.base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="kriterion")
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
        >>> import kriterion
        >>> noise = kriterion.transforms.WeightNoise(0.1, mode="filter", antithetic=True, seed=0)
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
        self.chosen = selection(model.trainable_variables, self.select, "WeightNoise")
        self.placement = Placement(model, self.chosen, self.per, "WeightNoise")
        if self._varies and not hasattr(self, "step"):
            self.step = self.add_weight((), "zeros", "int32", trainable=False, name="step")
        if self.draws == "table":
            sizes = [math.prod(v.shape) for v, c in zip(model.trainable_variables, self.chosen, strict=True) if c]
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

    def _noise(self, weights: Weights, chosen: Sequence[bool], stddev: Any, seed: Tensor) -> list[Tensor]:
        """Noise for each of the chosen weights."""
        some = list(compress(weights, chosen))
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

    def sample(self, weights: Weights, seed: Tensor) -> list[Tensor]:
        """The weights with noise, whatever `start` and `stop` are; at the schedule's present standard deviation."""
        stddev = self.stddev(self.step.value) if callable(self.stddev) else self.stddev
        return shifted(weights, self.chosen, self._noise(weights, self.chosen, stddev, seed))

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
