"""Random numbers for weights: unit noise of a law, and the scale that a mode gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kriterion import backend
from kriterion._elementary import single
from kriterion.backend import Tensor
from kriterion.transforms._roots import root

DISTRIBUTIONS = ("normal", "uniform", "rademacher", "bernoulli")
MODES = ("additive", "relative", "layer", "filter")
# Positions at which a slice of the table may start.
TABLE_POSITIONS = 65536


def unit_noise(distribution: str, shapes: Sequence[tuple[int, ...]], seed: Tensor, stddev: Any) -> list[Tensor]:
    """Tensors of independent numbers of mean 0 and standard deviation `stddev`, a scalar, in float32."""
    if distribution != "bernoulli":
        return backend.noise(distribution, shapes, seed, stddev)
    # A weight is dropped with probability p = s^2 / (1 + s^2), and else multiplied by 1 / (1 - p) = 1 + s^2.
    square = stddev * stddev
    limit = math.sqrt(12) * (square / (1.0 + square) - 0.5)
    return [ops.where(uniform < limit, -1.0, square) for uniform in backend.noise("uniform", shapes, seed)]


def scale_of(mode: str, weight: Tensor) -> Tensor | float:
    """c(w): the unit of the noise on a weight, which broadcasts to its shape."""
    if mode == "additive":
        return 1.0
    if mode == "relative":
        return weight
    return root_mean_square(weight, tuple(range(len(weight.shape) - (mode == "filter"))))


def root_mean_square(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Over these axes, which are kept; its derivative at 0 is 0."""
    count = math.prod(weight.shape[axis] for axis in axes)
    squares = ops.sum(ops.square(single(weight)), axis=axes, keepdims=True)
    return ops.cast(root(squares / count), weight.dtype)


def table_values(distribution: str, length: int, seed: int) -> np.ndarray:
    """Independent numbers of mean 0 and variance 1 for a table of noise."""
    random = np.random.default_rng([seed, 0x7AB1E])
    if distribution == "uniform":
        values = random.uniform(-math.sqrt(3), math.sqrt(3), length)
    elif distribution == "rademacher":
        values = random.choice([-1.0, 1.0], length)
    else:
        values = random.standard_normal(length)
    return values.astype("float32")


def table_noise(table: Tensor, shapes: Sequence[tuple[int, ...]], seed: Tensor, stddev: Any) -> list[Tensor]:
    """Slices of the table from random positions, with random signs, times `stddev`."""
    positions, signs = backend.noise("uniform", [(len(shapes),)] * 2, seed)
    starts = ops.cast(ops.floor((positions / math.sqrt(12) + 0.5) * TABLE_POSITIONS), "int32")
    factors = ops.sign(signs) * stddev
    return [
        ops.reshape(ops.slice(table, starts[k : k + 1], (math.prod(shape),)), shape) * factors[k]
        for k, shape in enumerate(shapes)
    ]
