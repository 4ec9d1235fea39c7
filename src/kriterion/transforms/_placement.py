"""Where the noise on a model's weights is drawn, and the objective at such draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

from kriterion._selection import shifted
from kriterion.backend import Tensor
from kriterion.transforms._example_noise import linear_layers, with_example_noise
from kriterion.transforms._passes import Pass
from kriterion.transforms.base import Objective, Weights

PER = ("batch", "example", "position")
# Of the passes of one draw, without and with antithetic ones.
SIGNS = {False: (1,), True: (1, -1)}


class Placement:
    """For each chosen weight, whether its noise is drawn in a layer, for each example, or on it, for the batch.

    Args:
        model: the built model.
        chosen: which of its trainable weights get noise.
        per: one of `PER`.
        owner: the transform, for messages.
    """

    def __init__(self, model: keras.Model, chosen: Sequence[bool], per: str, owner: str) -> None:
        self.per = per
        self.layers = [] if per == "batch" else linear_layers(model, chosen, owner)
        self.in_layers = [k for part in self.layers for k in (part.kernel, part.bias) if k is not None]
        self.on_weights = [c and k not in self.in_layers for k, c in enumerate(chosen)]

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
