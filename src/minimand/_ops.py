"""Tensor operations that Keras lacks: precision, elementary functions with finite derivatives, targets and logits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from minimand.backend import Tensor

# Precision.


def compute_dtype(*values: Any) -> str:
    """Float64 if a tensor among the values has it, else float32, because squares overflow in half precision."""
    dtypes = [keras.backend.standardize_dtype(value.dtype) for value in values if hasattr(value, "dtype")]
    return "float64" if "float64" in (dtypes or [keras.config.floatx()]) else "float32"


def at_least_float32(value: Tensor) -> Tensor:
    """The tensor in float64 if it has that dtype, else in float32."""
    return ops.cast(value, compute_dtype(value))


# Elementary functions that keep float64 and NaN and have finite derivatives, on every backend.


def at_least(value: Tensor, bound: Any) -> Tensor:
    """max(v, bound); `ops.maximum` would give up float64."""
    return ops.where(value <= bound, bound, value)


def at_most(value: Tensor, bound: Any) -> Tensor:
    """min(v, bound); `ops.minimum` would give up float64."""
    return ops.where(value >= bound, bound, value)


def safe_abs(value: Tensor) -> Tensor:
    """|v|, with derivative 0 at 0; the derivative of `ops.abs` there depends on the backend."""
    return value * ops.stop_gradient(ops.sign(value))


def safe_sqrt(squares: Tensor) -> Tensor:
    """The square root, with value 0 and derivative 0 at 0."""
    # The derivative of `ops.sqrt` is infinite at 0, and `where` multiplies that by 0, which gives NaN.
    zero = squares <= 0
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squares)))


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, with value 0 and derivatives 0 where the denominator is 0."""
    # On PyTorch, the derivatives of `ops.divide_no_nan` are NaN there before Keras 3.15.
    zero = ops.equal(denominator, 0)
    return ops.where(zero, 0.0, numerator / ops.where(zero, 1.0, denominator))


def nonzero_sqrt(squares: Tensor) -> Tensor:
    """The square root of the nearest positive normal float32 number: a divisor, with derivative 0 at 0."""
    limits = np.finfo("float32")
    return ops.sqrt(ops.clip(squares, float(limits.tiny), float(limits.max)))


def soft_threshold(value: Tensor, threshold: Any) -> Tensor:
    """sign(v) max(|v| - threshold, 0), the proximal map of the absolute value."""
    return ops.sign(value) * ops.relu(ops.abs(value) - threshold)


def mean_over_last_axis(value: Tensor) -> Tensor:
    """The mean over the last axis; `ops.mean` would compute in float32."""
    return ops.sum(value, axis=-1) / ops.cast(ops.shape(value)[-1], value.dtype)


# Targets and predictions of classifiers.

# The least probability that Keras's own cross-entropies take.
_LEAST_PROBABILITY = 1e-7


def one_hot_targets(owner: str, y_true: Tensor, shape: tuple[int | None, ...], num_classes: int, dtype: str) -> Tensor:
    """Targets as class probabilities (batch, ..., K); NaN for an index outside of 0, ..., K - 1.

    Args:
        owner: the loss or score, for messages.
        y_true: class indices (batch, ...) or (batch, ..., 1), or probabilities (batch, ..., K).
        shape: (batch, ...), the shape of the loss's values.
        num_classes: K.
        dtype: dtype of the result.
    """
    given, rank = tuple(y_true.shape), len(shape)
    fits = all(size is None or other is None or size == other for size, other in zip(given, shape, strict=False))
    if not fits or given[rank:] not in ((), (1,), (num_classes,)) or len(given) < rank:
        raise ValueError(
            f"{owner}: targets must be class indices {tuple(shape)}, or one-hot {(*shape, num_classes)} for "
            f"{num_classes} classes. Received: y_true of shape {given}"
        )
    if given[rank:] == (num_classes,):
        return ops.cast(y_true, dtype)
    if given[rank:] == (1,):
        y_true = ops.squeeze(y_true, -1)
    if not keras.backend.is_float_dtype(y_true.dtype):
        y_true = ops.cast(y_true, "int32")
    same = ops.expand_dims(y_true, -1) == ops.arange(num_classes, dtype=y_true.dtype)
    return ops.where(ops.any(same, axis=-1, keepdims=True), ops.cast(same, dtype), np.nan)


def as_logits(y_pred: Tensor, from_logits: bool, *, binary: bool) -> Tensor:
    """Predictions as logits, the argument of a sigmoid (`binary`) or of a softmax."""
    if from_logits:
        return y_pred
    clipped = ops.clip(y_pred, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return ops.log(clipped) - ops.log1p(-clipped) if binary else ops.log(clipped)
