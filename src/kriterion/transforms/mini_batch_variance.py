"""The variance of each batch's gradient, for the optimizer VarianceAware."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._validation import check_choice, check_int
from kriterion.backend import Tensor
from kriterion.optimizers import VarianceAware
from kriterion.transforms._gradient_statistics import (
    ESTIMATORS,
    check_model,
    check_objective,
    estimated_variance,
    fixed_gradients,
)
from kriterion.transforms.base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class MiniBatchVariance(Transform):
    """Gives the optimizer `VarianceAware(variance="mini_batch")` the variance of each step's gradient.

    L(w) -> L(w); s_j = V_j / n for each weight, with the variance V_j of one example's gradient in a batch of n

    The estimate takes one more gradient (`"probe"`), K smaller ones (`"micro_batch"`), or is exact. A single example
    has no variance: s = 0.

    Args:
        estimator: `"probe"`, `"micro_batch"` or `"exact"`, as in `gradients.gradient_moments`.
        micro_batches: number K >= 2 of parts.
        seed: integer seed of the probe's signs, or None.
        name: name of the transform.

    Raises:
        ValueError: an argument is out of its range; in `compile`, another optimizer, batch normalisation without
            `"micro_batch"`, or `"exact"` after other transforms.

    Source: Balles and Hennig, "Dissecting Adam: the sign, magnitude and variance of stochastic gradients", ICML 2018,
    equation 4.

    Examples:
        >>> import keras, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> optimizer = kriterion.optimizers.VarianceAware(0.1, variance="mini_batch")
        >>> trainer.compile(optimizer, "mse", transforms=[kriterion.transforms.MiniBatchVariance()])
    """

    def __init__(
        self, *, estimator: str = "probe", micro_batches: int = 8, seed: int | None = None, name: str | None = None
    ) -> None:
        super().__init__(seed=seed, name=name)
        self.estimator = check_choice("MiniBatchVariance", "estimator", estimator, ESTIMATORS)
        self.micro_batches = check_int("MiniBatchVariance", "micro_batches", micro_batches, minimum=2)
        self.noises: dict[str, keras.Variable] = {}

    def bind(self, optimizer: keras.optimizers.Optimizer) -> None:
        if not isinstance(optimizer, VarianceAware) or optimizer.variance != "mini_batch":
            raise ValueError(
                'MiniBatchVariance: goes with the optimizer kriterion.optimizers.VarianceAware(variance="mini_batch"). '
                f"Received: optimizer={type(optimizer).__name__}"
            )
        self.optimizer = optimizer

    def build(self, model: keras.Model) -> None:
        check_model(self.estimator, model, "MiniBatchVariance")
        self.weights = list(model.trainable_variables)
        for weight in self.weights:
            if weight.path not in self.noises:
                name = f"{weight.path.replace('/', '_')}_noise"
                self.noises[weight.path] = self.add_weight(weight.shape, "zeros", "float32", name=name)
            self.optimizer.track(weight, self.noises[weight.path])

    def apply(self, objective: Objective) -> Objective:
        check_objective(self.estimator, objective, "MiniBatchVariance")

        def measured(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, outcome = objective(weights, batch)
            if batch.gradient_weight is not None:
                return loss, outcome
            gradients = fixed_gradients(objective, weights, batch, outcome, [True] * len(weights))
            found = estimated_variance(gradients, self.estimator, self.micro_batches, self.seed_generator.next())
            for weight, variance in zip(self.weights, found, strict=True):
                noise = self.noises[weight.path].value
                of_mean = ops.cast(ops.stop_gradient(variance) / ops.cast(gradients.count, variance.dtype), noise.dtype)
                # The value 0, with the derivative s by the optimizer's variable.
                loss = loss + ops.cast(ops.sum(of_mean * (noise - ops.stop_gradient(noise))), loss.dtype)
            return loss, outcome

        return measured

    def get_config(self) -> dict[str, Any]:
        return {"estimator": self.estimator, "micro_batches": self.micro_batches, **super().get_config()}
