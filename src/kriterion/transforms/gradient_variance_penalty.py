"""A penalty on the variance of the per-example gradients."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._scope import isolated
from kriterion._validation import check_float, check_int
from kriterion.backend import Tensor
from kriterion.transforms._micro_batches import micro_batches
from kriterion.transforms.base import Batch, Objective, Transform, Weights


@keras.saving.register_keras_serializable(package="kriterion")
class GradientVariancePenalty(Transform):
    """A penalty on the variance of the gradient between examples, summed over the weights.

    L(w) -> L(w) + c sum_j Var_i[ dL_i/dw_j ]

    The variance is estimated without bias, and for any layer, from the gradients G_k of K micro-batches of b
    examples each: b / (K - 1) sum_k (G_k - mean G)^2. The penalty's own gradient is exact (a gradient of a
    gradient). A step takes about four times a plain one.

    A batch of n < K examples gives n micro-batches of one; of a batch that K does not divide, the last n mod K
    examples count in L alone; a single example has no variance and adds nothing. Layers that mix examples
    (BatchNormalization) see each micro-batch as their batch, and noise layers draw the same noise for each.

    Args:
        strength: coefficient c >= 0.
        micro_batches: number K >= 2 of micro-batches.
        name: name of the transform.

    Raises:
        ValueError: `strength` is negative or not finite, `micro_batches` is less than 2.

    Source: the penalty is the trace form of Rame, Dancette and Cord, "Fishr: invariant gradient variances for
    out-of-distribution generalization", ICML 2022, section 3; the estimate is that of the mean of b examples, whose
    variance is 1/b of one example's.

    Example:
    >>> import kriterion
    >>> penalty = kriterion.transforms.GradientVariancePenalty(1e-3, micro_batches=4)
    """

    def __init__(self, strength: float, *, micro_batches: int = 4, name: str | None = None) -> None:
        super().__init__(name=name)
        self.strength = check_float("GradientVariancePenalty", "strength", strength, minimum=0.0)
        self.micro_batches = check_int("GradientVariancePenalty", "micro_batches", micro_batches, minimum=2)

    def apply(self, objective: Objective) -> Objective:
        def penalised(weights: Weights, batch: Batch) -> tuple[Tensor, Any]:
            loss, outcome = objective(weights, batch)
            variance = _total_gradient_variance(isolated(objective), weights, batch, self.micro_batches)
            return loss + ops.cast(self.strength * variance, loss.dtype), outcome

        return penalised

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "micro_batches": self.micro_batches, "name": self.name}


def _total_gradient_variance(objective: Objective, weights: Weights, batch: Batch, count: int) -> Tensor:
    """B / (K - 1) sum over micro-batches k and weights of (G_k - mean G)^2, in float32 at least."""
    parts, size, kept = micro_batches(batch, count)

    def gradient(part: Batch) -> list[Tensor]:
        return backend.value_and_gradient(lambda values: objective(values, part), weights)[1]

    # Mapped over a leading axis, or stacked along one, the K gradients take XLA four times as long.
    gradients = [gradient(part) for part in parts]
    # Keras's own promotion gives up float64.
    double = any(keras.backend.standardize_dtype(g.dtype) == "float64" for g in gradients[0])
    dtype = "float64" if double else "float32"
    kept = [ops.cast(share, dtype) for share in kept]
    used = sum(kept)
    total = ops.zeros((), dtype)
    for same_weight in zip(*gradients, strict=True):
        each = [ops.cast(g, dtype) for g in same_weight]
        mean = sum(share * g for share, g in zip(kept, each, strict=True)) / used
        for share, g in zip(kept, each, strict=True):
            total = total + share * ops.sum(ops.square(g - mean))
    # A single micro-batch has no spread: total is 0.
    return ops.cast(size, dtype) * total / ops.cast(ops.maximum(used - 1, 1), dtype)
