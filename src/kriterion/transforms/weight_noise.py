"""Noise on the weights, in training only."""

from __future__ import annotations

from typing import Any

import keras

from kriterion._selection import Select, check_select, selection
from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor
from kriterion.transforms.base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class WeightNoise(Transform):
    """The expected loss under Gaussian noise on the weights.

    L(w) -> E_e[ L(w + s e) ] (additive) or E_e[ L(w (1 + s e)) ] (relative), e ~ N(0, I)

    The expectation is taken by one draw a step, the same for all examples of the batch. The gradient is taken at
    the noisy weights and applied to the clean ones. To second order the additive form adds s^2/2 tr H(w).

    Args:
        stddev: standard deviation s >= 0 of the noise, in units of the weights (additive) or relative to each.
        mode: `"additive"` or `"relative"`.
        select: which weights get noise: `"kernels"` (rank 2 or more), `"all"`, a regular expression of paths, or a
            function of the variable.
        seed: integer seed, or None.
        name: name of the transform.

    Raises:
        ValueError: `stddev` is negative or not finite, `mode` is unknown, `select` chooses nothing.

    Source: An, "The effects of adding noise during backpropagation training on a generalization performance",
    Neural Computation 8 (1996), section 4.

    Example:
    >>> import kriterion
    >>> noise = kriterion.transforms.WeightNoise(0.1, mode="relative", seed=0)
    """

    def __init__(
        self,
        stddev: float,
        *,
        mode: str = "additive",
        select: Select = "kernels",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(seed=seed, name=name)
        self.stddev = check_float("WeightNoise", "stddev", stddev, minimum=0.0)
        self.mode = check_choice("WeightNoise", "mode", mode, ("additive", "relative"))
        self.select = check_select(select, "WeightNoise")

    def build(self, model: keras.Model) -> None:
        self.chosen = selection(model.trainable_variables, self.select, "WeightNoise")

    def perturbed(self, weights: Weights) -> list[Tensor]:
        """The weights with a fresh draw of noise."""
        if self.stddev == 0.0:
            return list(weights)
        noisy = []
        for weight, chosen in zip(weights, self.chosen, strict=True):
            if chosen:
                noise = self.stddev * keras.random.normal(weight.shape, dtype=weight.dtype, seed=self.seed_generator)
                weight = weight + (noise * weight if self.mode == "relative" else noise)
            noisy.append(weight)
        return noisy

    def apply(self, objective: Objective) -> Objective:
        def noisy(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            return objective(self.perturbed(weights), batch)

        return noisy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "stddev": self.stddev, "mode": self.mode, "select": self.select}
