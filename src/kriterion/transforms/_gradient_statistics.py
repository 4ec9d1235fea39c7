"""What transforms that take statistics of the examples' gradients share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from kriterion._elementary import at_least, single
from kriterion._objective import Batch, DataObjective, Objective, Weights
from kriterion.backend import Tensor
from kriterion.gradients._exact import check_separable, exact_sums
from kriterion.gradients._examples import ExampleGradients
from kriterion.gradients.moments import ESTIMATORS

__all__ = ["ESTIMATORS", "check_model", "check_objective", "estimated_variance", "fixed_gradients", "mean_and_variance"]


def check_model(estimator: str, model: keras.Model, owner: str) -> None:
    """Raise a `ValueError` if layers mix the examples that the estimator takes apart."""
    if estimator != "micro_batch":
        check_separable(model, f'{owner}: estimator="{estimator}"')


def check_objective(estimator: str, objective: Objective, owner: str) -> None:
    """Raise a `ValueError` if the estimator needs the loss of the data alone, and other transforms come before."""
    if estimator == "exact" and not isinstance(objective, DataObjective):
        raise ValueError(
            f'{owner}: estimator="exact" needs the loss of the data as it is. Received: earlier transforms. Put it '
            'first in `transforms`, or use estimator="probe".'
        )


def fixed_gradients(
    objective: Objective, weights: Weights, batch: Batch, outcome: Any, chosen: Sequence[bool]
) -> ExampleGradients:
    """The examples' gradients to take constants from, after the pass whose outcome is given."""
    fixed = [ops.stop_gradient(weight) for weight in weights]
    kept = None
    if isinstance(objective, DataObjective):
        kept = objective.kept_gradient(list(compress(weights, chosen)), batch, outcome)
    return ExampleGradients(objective, fixed, batch, chosen, differentiable=False, kept=kept)


def estimated_variance(gradients: ExampleGradients, estimator: str, micro_batches: int, seed: Tensor) -> list[Tensor]:
    """The variance V of one example's gradient, by weight tensor."""
    if estimator == "probe":
        return [ops.square(single(v)) for v in gradients.probe(seed)]
    return mean_and_variance(gradients, estimator, micro_batches, seed)[1]


def mean_and_variance(
    gradients: ExampleGradients, estimator: str, micro_batches: int, seed: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of a batch, and the variance V of one example's, by weight tensor."""
    if estimator == "probe":
        return gradients.mean(), estimated_variance(gradients, estimator, micro_batches, seed)
    if estimator == "micro_batch":
        parts = gradients.micro_batches(micro_batches)
        return parts.mean(), parts.variance()
    n = ops.cast(gradients.count, gradients.dtype)
    first, second, _ = exact_sums(gradients)
    mean = [f / n for f in first]
    # Rounding may make the difference negative where gradients hardly differ.
    variance = [ops.relu(s - n * ops.square(m)) / at_least(n - 1.0, 1.0) for s, m in zip(second, mean, strict=True)]
    return mean, variance
