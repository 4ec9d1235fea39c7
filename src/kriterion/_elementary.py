"""Elementary functions of tensors that keep float64 and NaN and have finite derivatives, on every backend."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor


def at_least(value: Tensor, bound: Any) -> Tensor:
    """max(v, bound); `ops.maximum` would give up float64."""
    return ops.where(value <= bound, bound, value)


def at_most(value: Tensor, bound: Any) -> Tensor:
    """min(v, bound)."""
    return ops.where(value >= bound, bound, value)


def magnitude(value: Tensor) -> Tensor:
    """|v|, with derivative 0 at 0: that of `ops.abs` is not 0 on every backend."""
    return value * ops.stop_gradient(ops.sign(value))


def root_of_squares(squares: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0.

    There it is infinite, and 0 * inf is NaN also where `where` discards it.
    """
    zero = squares <= 0
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squares)))


def soft_threshold(value: Tensor, threshold: Any) -> Tensor:
    """sign(v) max(|v| - threshold, 0): the proximal map of |v|, and exactly 0 up to the threshold."""
    return ops.sign(value) * ops.relu(ops.abs(value) - threshold)


def single(value: Tensor) -> Tensor:
    """In float32, if it is in half precision, where squares overflow and underflow."""
    half = keras.backend.standardize_dtype(value.dtype) in ("float16", "bfloat16")
    return ops.cast(value, "float32") if half else value
