"""Sums of the examples' gradients and of their squares, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._elementary import single
from kriterion._objective import DataObjective, pairing
from kriterion._scope import isolated
from kriterion._selection import merged
from kriterion.backend import Tensor
from kriterion.gradients._examples import ExampleGradients
from kriterion.gradients._layer_moments import CHUNK, shadows_of, tapped_layers, taps


def check_separable(model: keras.Model, owner: str) -> None:
    """Raise a `ValueError` if a layer of the model mixes the examples of a batch in training."""
    mixing = [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if mixing:
        raise ValueError(
            f"{owner} needs examples that do not depend on each other. Received: a model with {mixing}, which in "
            'training normalise each example by the others. Use estimator="micro_batch", whose micro-batches are '
            "normalised by themselves, or freeze these layers."
        )


def exact_sums(gradients: ExampleGradients, members: Tensor | None = None) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """`(sums of g_i, sums of g_i^2, mismatch)`, for each chosen weight.

    Args:
        gradients: the gradients, of an objective of the data.
        members: (n, groups), the share of each example in each group, for sums by group, (groups, ...).

    The mismatch is the squared difference of outputs of examples by themselves and in the batch, over their square; 0
    where no example was taken by itself.
    """
    objective, weights, chosen = gradients.objective, gradients.weights, gradients.chosen
    assert isinstance(objective, DataObjective), "checked by what lets users choose the estimator"
    dtype = gradients.dtype
    ones = ops.ones((gradients.count,), dtype)
    shares = ops.reshape(ones, (-1, 1)) if members is None else members
    powers = (2,) if members is None else (1, 2)
    layers = tapped_layers(objective.model, chosen)
    shadows = [shadows_of(part, shares.shape[1], powers, dtype) for part in layers]
    # Sums of gradients by group come from the shadows: the weights need no gradients of their own.
    wanted = chosen if members is None else [False] * len(weights)
    sizes = [sum(wanted), *map(len, shadows)]
    batch, factor = gradients.whole()
    calls: list[int] = []

    def total(values: Sequence[Tensor]) -> tuple[Tensor, None]:
        parts = _split(values, sizes)
        with taps(layers, parts[1:], shares, powers) as counted:
            loss = isolated(objective)(merged(weights, wanted, parts[0]), batch)[0]
        calls.extend(counted)
        return loss, None

    start = [*compress(weights, wanted), *(shadow for part in shadows for shadow in part)]
    of_all = backend.value_and_gradient(total, start, differentiable=gradients.differentiable)[1] if start else []
    of_weights, *of_layers = _split(of_all, sizes)
    sums: dict[int, list[Tensor]] = {}
    for part, found, called in zip(layers, of_layers, calls, strict=True):
        if called == 1:
            scaled = [factor**power * s for s, power in zip(found, powers * len(part.indices), strict=True)]
            sums.update(zip(part.indices, _split(scaled, [len(powers)] * len(part.indices)), strict=True))
    rest = [c and k not in sums for k, c in enumerate(chosen)]
    mismatch = ops.zeros((), dtype)
    if any(rest):
        found, mismatch = _one_by_one(gradients, objective, rest, shares, powers)
        sums.update(zip(compress(range(len(chosen)), rest), found, strict=True))
    second = [sums[k][-1] for k in sorted(sums)]
    if members is None:
        return [factor * single(g) for g in of_weights], [s[0] for s in second], mismatch
    return [sums[k][0] for k in sorted(sums)], second, mismatch


def _one_by_one(
    gradients: ExampleGradients,
    objective: DataObjective,
    rest: Sequence[bool],
    members: Tensor,
    powers: tuple[int, ...],
) -> tuple[list[list[Tensor]], Tensor]:
    """The sums for weights without a closed form: each example passes through the model by itself."""
    weights, batch = gradients.weights, gradients.batch
    y_pred, upstream, random = objective.predictions(weights, batch)
    if random:
        paths = [v.path for v in compress(objective.model.trainable_variables, rest)]
        raise ValueError(
            'estimator="exact" passes each example through the model by itself for weights without a closed form, with '
            f"other random numbers than it has in the batch. Received: a model with dropout or noise, and {paths}. Use "
            'estimator="probe" or "micro_batch", or the model in evaluation.'
        )
    outputs = keras.tree.flatten(y_pred)
    upstream = [ops.cast(gradients.count, u.dtype) * u for u in upstream]
    # A structure without the leaves that are None.
    inputs = keras.tree.flatten(batch.x)

    def of_example(row: Any) -> list[Tensor]:
        x, factors, expected, share = row
        x = keras.tree.pack_sequence_as(batch.x, [leaf[None] for leaf in x])

        def paired(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            found = objective.outputs(merged(weights, rest, values), x)
            flat = keras.tree.flatten(found)
            off = sum(ops.sum(ops.square(single(a - e[None]))) for a, e in zip(flat, expected, strict=True))
            return pairing(found, [factor[None] for factor in factors]), off

        function = isolated(paired)
        (_, off), found = backend.value_and_gradient(
            function, list(compress(weights, rest)), differentiable=gradients.differentiable
        )
        wanted = [single(g) ** power for g in found for power in powers]
        return [*(ops.reshape(share, (-1, *[1] * len(g.shape))) * g[None] for g in wanted), off]

    size = sum(_entries(weight) for weight in compress(weights, rest)) * len(powers) * members.shape[1]
    rows = (inputs, upstream, [ops.stop_gradient(o) for o in outputs], members)
    *sums, off = backend.summed(of_example, rows, max(1, CHUNK // size))
    scale = sum(ops.sum(ops.square(single(output))) for output in outputs)
    return _split(sums, [len(powers)] * sum(rest)), off / (scale + 1e-30)


def _entries(tensor: Tensor) -> int:
    size = 1
    for length in tensor.shape:
        size *= length
    return size


def _split(values: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Consecutive parts of these lengths."""
    remaining = iter(values)
    return [[next(remaining) for _ in range(size)] for size in sizes]
