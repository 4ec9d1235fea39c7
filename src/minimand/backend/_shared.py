"""Functions that two or three backends share: counted steps, the eager step, loops, and random numbers."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._batches import first_leaf

# JAX and PyTorch count steps outside of the step, so that a transform that acts in every k-th step costs nothing else.


def counting(trainer: Any) -> list[Any]:
    """The trainer's transforms that count steps."""
    return [transform for transform in trainer.transforms if transform.counts_steps]


@contextlib.contextmanager
def counted(transforms: Sequence[Any]) -> Iterator[tuple[bool, ...]]:
    """Count the step that runs inside; yields which of the transforms act in it."""
    try:
        yield tuple(transform.tick() for transform in transforms)
    finally:
        for transform in transforms:
            transform.stop_counting()


# TensorFlow and PyTorch assign variables in place, and map by a loop.


def minimise(trainer: Any, data: Any, differentiate: Any) -> dict[str, Any]:
    """One training step: evaluate and differentiate the objective, and assign only after both have succeeded.

    `differentiate(function, values)` returns `(aux, gradients)` of a function returning `(scaled loss, aux)`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables = trainer.trainable_variables
    non_trainable = trainer.non_trainable_variables
    metrics = trainer.metrics_variables
    current = [variable.value for variable in non_trainable], [variable.value for variable in metrics]

    def objective(values: list[Any]) -> tuple[Any, Any]:
        loss, aux = trainer.evaluate_objective(values, *current, (x, y, sample_weight))
        return trainer.optimizer.scale_loss(loss), (loss, aux)

    (loss, (y_pred, new_non_trainable, new_metrics)), gradients = differentiate(objective, variables)
    old, new = [*current[0], *current[1]], [*new_non_trainable, *new_metrics]
    for variable, before, value in zip(non_trainable + metrics, old, new, strict=True):
        if value is not before:
            variable.assign(value)
    trainer.optimizer.apply(gradients, variables)
    trainer.track_loss(loss, ops.shape(first_leaf(x))[0])
    return trainer.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def stacked(results: list[Any]) -> Any:
    """Results of one structure as one structure; each leaf gets a leading axis."""
    return keras.tree.map_structure(lambda *leaves: ops.stack(leaves), *results)


# Random numbers of mean 0 and variance 1, from 32 or 16 random bits each.


@functools.cache
def normal_quantiles() -> np.ndarray:
    """65,536 equally probable values, ascending: the normal quantiles at (k + 1/2) / 65536, scaled to variance 1."""
    quantile = NormalDist().inv_cdf
    upper = np.array([quantile((k + 0.5) / 65536) for k in range(32768, 65536)])
    return (np.concatenate([-upper[::-1], upper]) / np.sqrt(np.mean(upper**2))).astype("float32")


def hashed_noise(law: str, shapes: Sequence[tuple[int, ...]], seed: Any) -> list[Any]:
    """As `Backend.noise`, from a hash of position and seed: one elementwise pass, which XLA vectorises.

    XLA's own generators take ten times as long on a CPU. The hash is the first word of pcg3d: Jarzynski and Olano,
    "Hash functions for GPU rendering", Journal of Computer Graphics Techniques 9(3), 2020.
    """
    start, parts = 0, []
    for shape in shapes:
        count = math.prod(shape)
        index = ops.cast(ops.arange(count, dtype="int32"), "uint32") + np.uint32(start % 2**32)
        parts.append(_numbers(law, ops.reshape(_pcg3d(index, seed), shape)))
        start += count
    return parts


def _pcg3d(index: Any, seed: Any) -> Any:
    a, c = np.uint32(1664525), np.uint32(1013904223)
    seed = ops.cast(seed, "uint32")
    x, y, z = index * a + c, seed[0] * a + c, seed[1] * a + c
    x = x + y * z
    y = y + z * x
    z = z + x * y
    x, y, z = (v ^ ops.right_shift(v, 16) for v in (x, y, z))
    return x + y * z


def _numbers(law: str, bits: Any) -> Any:
    if law == "normal":
        return ops.take(normal_quantiles(), ops.cast(ops.right_shift(bits, 16), "int32"))
    if law == "rademacher":
        return 1.0 - 2.0 * ops.cast(ops.cast(ops.right_shift(bits, 31), "int32"), "float32")
    centred = ops.cast(ops.cast(ops.right_shift(bits, 8), "int32"), "float32") - (2.0**23 - 0.5)
    return centred * (math.sqrt(12) / 2**24)
