"""Mean and variance of the gradients of single examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand._batches import Batch
from minimand._objective import DataObjective, data_objective_of
from minimand._validation import check_bool, check_choice, check_int, check_rows
from minimand.backend import Tensor
from minimand.gradients._exact import check_separable, exact_moments
from minimand.gradients._examples import ExampleGradients

ESTIMATORS = ("exact", "probe", "micro_batch")
# A bound on the mismatch of squared outputs, far above the effect of rounding and below that of batch statistics.
_MISMATCH = 1e-5


# In a training step.


def estimated_variance(gradients: ExampleGradients, estimator: str, micro_batches: int, seed: Tensor) -> list[Tensor]:
    """The variance V of one example's gradient, by weight tensor."""
    if estimator == "probe":
        return [ops.square(v) for v in gradients.probe(seed)]
    return mean_and_variance(gradients, estimator, micro_batches, seed)[1]


def mean_and_variance(
    gradients: ExampleGradients, estimator: str, micro_batches: int, seed: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of a batch, and the variance V of one example's gradient, by weight tensor."""
    if estimator == "probe":
        return gradients.mean(), estimated_variance(gradients, estimator, micro_batches, seed)
    if estimator == "micro_batch":
        return gradients.micro_batches(micro_batches)[1:]
    return exact_moments(gradients)[:2]


# Moments of given data, with standard errors.


@dataclass(frozen=True)
class GradientMoments:
    """Mean and variance of the gradients g_i of the n examples of a batch; lists are aligned with the weights.

    `gradient_moments` returns it for a model; `GradientMoments.of_examples` makes it from known gradients. The variance
    is unbiased and belongs to one example: V = sum_i (g_i - mean g)^2 / (n - 1). The variance of the batch's gradient
    is V / n.

    Attributes:
        mean: the gradient of the batch, the mean of the g_i.
        variance: V, or an estimate of it, >= 0.
        mean_error: sqrt(V / n), the standard error of the mean as an estimate of the mean over all data.
        variance_error: standard error of the estimate of this batch's V; 0 if V is exact.
        trace: sum of V over all weights.
        trace_error: standard error of the estimate of the trace; 0 if the trace is exact, infinite if the error is not
            known.
        variance_along_mean: variance of the inner products of the g_i with the mean, estimated as V is.
        examples: n.

    Source: the notation is that of McCandlish et al., "An empirical model of large-batch training", 2018, section 2.

    Examples:
        >>> import numpy as np, minimand
        >>> g = np.array([[1.0, 2.0], [3.0, 2.0]])
        >>> moments = minimand.gradients.GradientMoments.of_examples([g])
        >>> moments.mean, moments.variance, float(moments.trace)
        ([array([2., 2.])], [array([2., 0.])], 2.0)
    """

    mean: list[np.ndarray]
    variance: list[np.ndarray]
    mean_error: list[np.ndarray]
    variance_error: list[np.ndarray]
    trace: float
    trace_error: float
    variance_along_mean: float
    examples: int

    @classmethod
    def of_examples(cls, gradients: Sequence[Any]) -> GradientMoments:
        """The moments of known gradients: for each weight an array (n, ...), n >= 2."""
        arrays = [np.asarray(g, dtype="float64") for g in gradients]
        n = len(arrays[0])
        mean = [g.mean(axis=0) for g in arrays]
        products = sum((g * m).reshape(n, -1).sum(axis=1) for g, m in zip(arrays, mean, strict=True))
        return _moments(mean, [g.var(axis=0, ddof=1) for g in arrays], n, float(np.var(products, ddof=1)))

    @property
    def squared_norm(self) -> float:
        """|mean g|^2 - trace / n: the squared norm of the gradient over all data, without bias; may be negative."""
        return float(sum(np.sum(np.square(m, dtype="float64")) for m in self.mean) - self.trace / self.examples)


def _moments(
    mean: list[np.ndarray],
    variance: list[np.ndarray],
    examples: int,
    along_mean: float,
    relative_error: float = 0.0,
    trace_error: float = 0.0,
) -> GradientMoments:
    return GradientMoments(
        mean=mean,
        variance=variance,
        mean_error=[np.sqrt(v / examples) for v in variance],
        variance_error=[relative_error * v for v in variance],
        trace=float(sum(np.sum(v, dtype="float64") for v in variance)),
        trace_error=float(trace_error),
        variance_along_mean=float(along_mean),
        examples=examples,
    )


def gradient_moments(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    estimator: str = "exact",
    samples: int = 8,
    micro_batches: int = 8,
    training: bool = True,
    seed: int | None = None,
) -> GradientMoments:
    """Mean and variance of the gradients of a batch's examples, for any compiled Keras model.

    Use `gradient_moments` to measure the noise of the gradient; `noise_scale` and the other functions of this package
    take its result.

    mean g = sum_i g_i / n, V = sum_i (g_i - mean g)^2 / (n - 1)

    g_i is n times the contribution of example i to the gradient of the compiled loss, with its sample weight, mask and
    reduction. Penalties (`add_loss`, regularizers, transforms) are left out. The estimators of V are

    - `"exact"`: V itself. Dense layers, EinsumDense layers that use each weight once for an example, and convolutions
      that a functional or Sequential model calls once take one backward pass for all examples; other weights take a
      pass for each example.
    - `"probe"`: from S extra backward passes, v = sum_i (s_i - mean s) g_i with random signs s_i: E[v^2] = (n - 1) V,
      for all layers. The relative standard error is at most sqrt(2 / S) for each weight, and far less for the trace.
    - `"micro_batch"`: b / (K - 1) sum_k (G_k - mean G)^2 from the gradients G_k of K random parts of b examples. Each
      part is a batch of its own, so batch normalisation works. The relative standard error is
      sqrt(2 (n - K) / ((K - 1) (n + 1))), if the gradients are about normal.

    Args:
        model: a compiled `keras.Model` or `minimand.Trainer`.
        x: inputs (n, ...) with n >= 2: an array or tensor, or a structure of them.
        y: targets.
        sample_weight: weights of the examples.
        estimator: one of the three above.
        samples: number S >= 1 of probes.
        micro_batches: number K >= 2 of parts, at most n; n mod K examples are left out.
        training: whether layers are in training mode. All gradients see the same dropout.
        seed: integer seed of the signs and parts, or None.

    Returns:
        `GradientMoments`: arrays aligned with `model.trainable_variables` (for a trainer, of its model).

    Raises:
        TypeError: `model` is not a Keras model, the data are not arrays.
        ValueError: the model is not compiled, an argument is out of its range, or examples depend on each other (batch
            normalisation in training) and the estimator takes them apart.

    Source: McCandlish et al., "An empirical model of large-batch training", 2018, section 2; closed forms: Dangel,
    Kunstner and Hennig, "BackPACK", ICLR 2020, section 2; signs: as in Hutchinson, "A stochastic estimator of the trace
    of the influence matrix", Communications in Statistics 18 (1989).

    Examples:
        >>> import keras, numpy as np, minimand
        >>> line = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        >>> model = keras.Sequential([keras.Input((1,)), line])
        >>> model.compile("sgd", "mse")
        >>> moments = minimand.gradients.gradient_moments(model, np.ones((2, 1)), np.array([[1.0], [2.0]]))
        >>> moments.mean, moments.trace  # g = -2 y
        ([array([[-3.]], dtype=float32)], 2.0)
    """
    owner = "gradient_moments"
    if not isinstance(model, keras.Model):
        raise TypeError(f"{owner}: `model` must be a keras.Model or a minimand.Trainer. Received: {type(model)}")
    if not model.compiled:
        raise ValueError(
            f"{owner}: `model` must be compiled. Received: {model.name}, which is not compiled. Call its `compile` "
            "with a loss."
        )
    check_choice(owner, "estimator", estimator, ESTIMATORS)
    check_int(owner, "samples", samples, minimum=1)
    check_int(owner, "micro_batches", micro_batches, minimum=2)
    check_bool(owner, "training", training)
    data = keras.tree.map_structure(lambda a: None if a is None else ops.convert_to_tensor(a), (x, y, sample_weight))
    count = check_rows(owner, "`x`, `y` and `sample_weight`", data)
    if count < 2 or (estimator == "micro_batch" and count < micro_batches):
        least = micro_batches if estimator == "micro_batch" else 2
        raise ValueError(f"{owner}: `x` must have at least {least} examples for a variance. Received: {count}")
    model._symbolic_build(data_batch=data)
    objective = data_objective_of(model, training)
    if training:
        check_separable(estimator, objective.model, owner)
    evaluate = partial(_evaluated, model, objective, data)
    if estimator == "exact":
        return _exact(evaluate, count)
    if estimator == "probe":
        return _probes(evaluate, count, samples, seed)
    if any(getattr(loss, "reduction", None) == "sum" for loss in keras.tree.flatten(model.loss)):
        raise ValueError(
            f'{owner}: estimator="micro_batch" needs losses that are means over a batch, since its parts are smaller '
            'than the batch. Received: a loss with reduction="sum". Use estimator="probe" or "exact".'
        )
    return _micro_batches(evaluate, count, micro_batches, seed)


def _evaluated(owner: keras.Model, objective: DataObjective, data: Any, function: Any, *tensors: Tensor) -> Any:
    """`function(gradients, *tensors)` on a batch at the present weights, as NumPy arrays; compiled once."""

    def at(values: Sequence[Tensor], data: Any, *tensors: Tensor) -> Any:
        with keras.StatelessScope(list(zip(owner.variables, values, strict=True))):
            weights = [v.value for v in objective.model.trainable_variables]
            every = [True] * len(weights)
            gradients = ExampleGradients(objective, weights, Batch(*data), every, differentiable=False)
            return function(gradients, *tensors)

    # Not through Keras, which would track the contents.
    made = vars(owner).setdefault("_gradient_functions", {})
    key = function, objective.training, *map(id, objective.model.trainable_variables)
    loss = owner._compile_loss
    if key not in made or made[key][0] is not loss:
        made[key] = loss, backend.jit(at)
    found = made[key][1]([v.value for v in owner.variables], data, *tensors)
    return keras.tree.map_structure(ops.convert_to_numpy, found)


def _exact_moments(gradients: ExampleGradients) -> tuple[Any, Tensor]:
    return exact_moments(gradients), gradients.inner_products(gradients.mean())


def _exact(evaluate: Callable[..., Any], n: int) -> GradientMoments:
    (mean, variance, mismatch), products = evaluate(_exact_moments)
    if mismatch > _MISMATCH:
        raise ValueError(
            'gradient_moments: estimator="exact" needs examples that do not depend on each other. Received: a model '
            "whose outputs for single examples differ from its outputs in the batch (relative difference "
            f'{math.sqrt(mismatch):.1e}). Use estimator="probe" or "micro_batch".'
        )
    return _moments(mean, variance, n, np.var(products, ddof=1, dtype="float64"))


def _probes(evaluate: Callable[..., Any], n: int, samples: int, seed: int | None) -> GradientMoments:
    mean = evaluate(ExampleGradients.mean)
    total, traces, along = [np.zeros_like(m) for m in mean], [], []
    for words in np.random.SeedSequence(seed).generate_state(2 * samples).reshape(samples, 2) >> 1:
        found = evaluate(ExampleGradients.probe, ops.convert_to_tensor(words.astype("int32")))
        squares = [np.square(v) for v in found]
        total = [t + s for t, s in zip(total, squares, strict=True)]
        traces.append(sum(np.sum(s, dtype="float64") for s in squares))
        along.append(sum(np.sum(v * m, dtype="float64") for v, m in zip(found, mean, strict=True)) ** 2)
    error = np.std(traces, ddof=1) / math.sqrt(samples) if samples > 1 else math.inf
    variance = [t / samples for t in total]
    return _moments(mean, variance, n, np.mean(along), math.sqrt(2 / samples), error)


def _of_parts(gradients: ExampleGradients, rows: Tensor) -> tuple[Any, ...]:
    """Mean and variance from parts with these rows (K, b); their squared distances and inner products with the mean."""
    order = ops.reshape(rows, (-1,))
    batch = keras.tree.map_structure(
        lambda leaf: None if leaf is None else ops.take(leaf, order, axis=0), gradients.batch
    )
    of_parts, mean, variance = replace(gradients, batch=batch).micro_batches(rows.shape[0])
    pairs = [list(zip(part, mean, strict=True)) for part in zip(*of_parts, strict=True)]
    distances = [sum(ops.sum(ops.square(g - m)) for g, m in part) for part in pairs]
    return mean, variance, distances, [sum(ops.sum(g * m) for g, m in part) for part in pairs]


def _micro_batches(evaluate: Callable[..., Any], n: int, parts: int, seed: int | None) -> GradientMoments:
    size = n // parts
    rows = np.random.default_rng(seed).permutation(n)[: size * parts].reshape(parts, size)
    mean, variance, distances, products = evaluate(_of_parts, ops.convert_to_tensor(rows.astype("int32")))
    left = (n - parts) / (n + 1)
    # Jackknife over the parts, for the share of the variance that comes from the division of the batch.
    spread = np.var(distances, ddof=1, dtype="float64")
    error = size * math.sqrt(left * parts * spread) / (parts - 2) if parts > 2 else math.inf
    along = size * np.var(products, ddof=1, dtype="float64")
    return _moments(mean, variance, n, along, math.sqrt(2 * left / (parts - 1)), error)
