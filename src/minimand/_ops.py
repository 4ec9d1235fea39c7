"""Roots of sums of squares, in any precision, that may be differentiated and divided by where they are zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from minimand.backend import Tensor

# Elementary functions of tensors that keep float64 and NaN and have finite derivatives, on every backend.


def at_least(value: Tensor, bound: Any) -> Tensor:
    """max(v, bound); `ops.maximum` would give up float64."""
    return ops.where(value <= bound, bound, value)


def at_most(value: Tensor, bound: Any) -> Tensor:
    """min(v, bound)."""
    return ops.where(value >= bound, bound, value)


def magnitude(value: Tensor) -> Tensor:
    """|v|, with derivative 0 at 0: that of `ops.abs` is not 0 on every backend."""
    return value * ops.stop_gradient(ops.sign(value))


def safe_sqrt(squares: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0.

    There it is infinite, and 0 * inf is NaN also where `where` discards it.
    """
    zero = squares <= 0
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squares)))


def soft_threshold(value: Tensor, threshold: Any) -> Tensor:
    """sign(v) max(|v| - threshold, 0): the proximal map of |v|, and exactly 0 up to the threshold."""
    return ops.sign(value) * ops.relu(ops.abs(value) - threshold)


def at_least_float32(value: Tensor) -> Tensor:
    """In float32, if it is in half precision, where squares overflow and underflow."""
    half = keras.backend.standardize_dtype(value.dtype) in ("float16", "bfloat16")
    return ops.cast(value, "float32") if half else value


# Classes as indices or as probabilities; predictions of them as probabilities or as logits.

_LEAST_PROBABILITY = 1e-7


def memberships(owner: str, y_true: Tensor, shape: tuple[int | None, ...], count: int, dtype: str) -> Tensor:
    """Class indices (batch, ...) or (batch, ..., 1), or probabilities (batch, ..., K), as probabilities.

    NaN where an index is none of 0, ..., K - 1, and would pass for right without it.

    Args:
        owner: the loss or score, for messages.
        y_true: the targets.
        shape: (batch, ...), of the loss's values.
        count: K, the number of classes.
        dtype: of what is returned.
    """
    given, rank = tuple(y_true.shape), len(shape)
    fits = all(size is None or other is None or size == other for size, other in zip(given, shape, strict=False))
    if not fits or given[rank:] not in ((), (1,), (count,)) or len(given) < rank:
        raise ValueError(
            f"{owner}: targets must be class indices {tuple(shape)}, or one-hot {(*shape, count)} for {count} classes. "
            f"Received: y_true of shape {given}"
        )
    if given[rank:] == (count,):
        return ops.cast(y_true, dtype)
    if given[rank:] == (1,):
        y_true = ops.squeeze(y_true, -1)
    if not keras.backend.is_float_dtype(y_true.dtype):
        y_true = ops.cast(y_true, "int32")
    same = ops.expand_dims(y_true, -1) == ops.arange(count, dtype=y_true.dtype)
    return ops.where(ops.any(same, axis=-1, keepdims=True), ops.cast(same, dtype), np.nan)


def as_logits(y_pred: Tensor, from_logits: bool, *, binary: bool) -> Tensor:
    """Logits as they are; probabilities as logits that give them, by a sigmoid (`binary`) or a softmax."""
    if from_logits:
        return y_pred
    # As Keras's own cross-entropies.
    clipped = ops.clip(y_pred, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return ops.log(clipped) - ops.log1p(-clipped) if binary else ops.log(clipped)


# What the robust losses need to know of a floating point format.


class Float(NamedTuple):
    """Constants of a format."""

    name: str
    epsilon: float
    largest: float
    square_limit: float  # up to here squares are finite, with room for a division by a number of order 1
    shape_limit: float  # shapes beyond it give the same loss as infinite ones
    splitter: float  # Veltkamp's constant, 2^ceil(digits / 2) + 1
    series_terms: int  # of sum (-t)^k / (k + 2)!, |t| < 1


FLOATS = {
    "float32": Float("float32", 2.0**-23, 3.4028234e38, 2.0**63, 2.0**40, 2.0**12 + 1, 10),
    "float64": Float("float64", 2.0**-52, 1.797693134862315e308, 2.0**511, 2.0**70, 2.0**27 + 1, 18),
}


def working_float(*values: Any) -> Float:
    """float64 where one of the tensors has it, else float32: half precision overflows at a residual of 256."""
    dtypes = [keras.backend.standardize_dtype(v.dtype) for v in values if hasattr(v, "dtype")]
    if "float64" in dtypes or (not dtypes and keras.config.floatx() == "float64"):
        return FLOATS["float64"]
    return FLOATS["float32"]


def absolute(value: Tensor) -> Tensor:
    """|v|, with derivative 1 at 0 on every backend."""
    return ops.where(value < 0, -value, value)


def mean_over_last_axis(value: Tensor) -> Tensor:
    """As `ops.mean`, which would compute in float32."""
    return ops.sum(value, axis=-1) / ops.cast(ops.shape(value)[-1], value.dtype)


# Roots of sums of squares, in any precision, that may be differentiated and divided by where they are zero.


def root(squares: Tensor) -> Tensor:
    """Of at least the least normal float32: never 0, and with the derivative 0 there."""
    # Not `maximum`, with which Keras gives up float64 on PyTorch.
    limits = np.finfo("float32")
    return ops.sqrt(ops.clip(squares, float(limits.tiny), float(limits.max)))
