"""Sums of the gradients g_i of a batch's examples, and estimates of the variance of the g_i."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import keras
from keras import ops

from minimand import backend
from minimand._batches import Batch, first_leaf, micro_batches
from minimand._objective import DataObjective, Objective, Weights
from minimand._ops import at_least_float32, compute_dtype
from minimand._scope import isolated
from minimand._selection import merged
from minimand.backend import Tensor


@dataclass(frozen=True)
class ExampleGradients:
    """The gradients g_i, i = 1, ..., n, of the examples of a batch; their mean is the gradient of the batch.

    Args:
        objective: an objective.
        weights: values of the weights at which the gradients are taken.
        batch: the examples.
        mask: which weights' gradients are wanted.
        differentiable: whether functions of the gradients can be differentiated by the weights.
        kept: gives the gradient for the batch with a `gradient_weight`, from a pass that has taken place.
    """

    objective: Objective
    weights: Weights
    batch: Batch
    mask: Sequence[bool]
    differentiable: bool = True
    kept: Callable[[Tensor | None], list[Tensor]] | None = None

    @property
    def count(self) -> Tensor:
        """The number n: a tensor where the framework traces with an unknown batch size."""
        return ops.shape(first_leaf(self.batch.x))[0]

    @property
    def dtype(self) -> str:
        """Name of the type to compute squares in: float64 for float64, else float32."""
        return compute_dtype(self.weights[0])

    def whole(self) -> tuple[Batch, Tensor]:
        """A batch and a factor: the gradient of the objective on it, times the factor, is sum_i g_i.

        If possible, the batch is the plain one, whose gradient training takes too: a compiler computes it once.
        """
        count = ops.cast(self.count, self.dtype)
        double = keras.backend.standardize_dtype(self.weights[0].dtype) == self.dtype
        if isinstance(self.objective, DataObjective) and self.objective.of_rows_alone and double:
            return self.batch.plain(), count
        # In half precision the gradients of single outputs might vanish without the factor n.
        return self.batch._replace(gradient_weight=count * ops.ones((self.count,), self.dtype)), ops.ones_like(count)

    def of(self, batch: Batch) -> list[Tensor]:
        """The gradient of the objective, on the batch, with another `gradient_weight`, or on another batch."""
        if self.kept is not None and batch.x is self.batch.x:
            return self.kept(batch.gradient_weight)
        function = isolated(self.objective)

        def loss(values: Sequence[Tensor]) -> tuple[Tensor, None]:
            return function(merged(self.weights, self.mask, values), batch)[0], None

        selected = list(compress(self.weights, self.mask))
        if self.differentiable:
            return backend.pure_value_and_gradient(loss, selected)[1]
        return backend.value_and_gradient(loss, selected, differentiable=False)[1]

    def sum(self, example_weights: Tensor) -> list[Tensor]:
        """sum_i c_i g_i for weights c (n,)."""
        count = ops.cast(self.count, example_weights.dtype)
        total = self.of(self.batch._replace(gradient_weight=count * example_weights))
        if isinstance(self.objective, DataObjective):
            return total
        # The terms that transforms add to the loss for all examples together.
        shared = self.of(self.batch._replace(gradient_weight=0.0))
        return [a - b for a, b in zip(total, shared, strict=True)]

    def mean(self) -> list[Tensor]:
        """The gradient of the batch, without the gradient of terms that belong to no example."""
        if isinstance(self.objective, DataObjective):
            batch, factor = self.whole()
            return [g * ops.cast(factor / ops.cast(self.count, self.dtype), g.dtype) for g in self.of(batch)]
        return self.sum(ops.ones((self.count,), "float32") / ops.cast(self.count, "float32"))

    def inner_products(self, direction: Sequence[Tensor]) -> Tensor:
        """g_i' u for each example, (n,): the derivatives of (sum_i c_i g_i)' u by the c_i."""
        differentiable = replace(self, differentiable=True)
        fixed = [ops.stop_gradient(u) for u in direction]

        def product(values: Sequence[Tensor]) -> tuple[Tensor, None]:
            return sum(ops.sum(g * u) for g, u in zip(differentiable.sum(values[0]), fixed, strict=True)), None

        return backend.value_and_gradient(product, [ops.ones((self.count,), self.dtype)], differentiable=False)[1][0]

    def probe(self, seed: Tensor) -> list[Tensor]:
        """Tensors v, in float32 or float64, such that E[v^2] is the unbiased variance of the g_i, for every weight.

        v = sum_i (s_i - mean s) g_i / sqrt(n - 1), with random signs s_i; 0 for a single example.

        As sum_i (s_i - mean s) g_i = sum_i s_i (g_i - mean g) and E[s_i s_k] is 1 for i = k and else 0, E[v^2] =
        sum_i (g_i - mean g)^2 / (n - 1). The variance of v^2 is 2 (E[v^2]^2 - sum_i (g_i - mean g)^4 / (n - 1)^2).
        """
        (signs,) = backend.noise("rademacher", [(self.count,)], seed)
        degrees = ops.cast(ops.maximum(self.count - 1, 1), signs.dtype)
        return [at_least_float32(v) for v in self.sum((signs - ops.mean(signs)) / ops.sqrt(degrees))]

    def micro_batches(self, count: int) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor]]:
        """`(gradients, mean, variance)` from K consecutive parts of b examples, for each weight.

        The gradients are a list of K tensors G_k; the mean is mean G, and the variance, which is that of one example's
        gradient, is b / (K - 1) sum_k (G_k - mean G)^2. A batch of unknown size may turn out to have n < K examples;
        then mean and variance are those of the first n parts.
        """
        parts, size, kept = micro_batches(self.batch, count)
        # Mapped over a leading axis, or stacked along one, the K gradients take XLA four times as long.
        of_parts = [self.of(part) for part in parts]
        gradients = [[ops.cast(g, self.dtype) for g in same] for same in zip(*of_parts, strict=True)]
        shares = [ops.cast(share, self.dtype) for share in kept]
        number = sum(shares)
        # A single part has the variance 0.
        factor = ops.cast(size, self.dtype) / ops.cast(ops.maximum(number - 1, 1), self.dtype)
        means, variances = [], []
        for same in gradients:
            mean = sum(s * g for s, g in zip(shares, same, strict=True)) / number
            means.append(mean)
            variances.append(factor * sum(s * ops.square(g - mean) for s, g in zip(shares, same, strict=True)))
        return gradients, means, variances
