"""Classes as indices or as probabilities; predictions of them as probabilities or as logits."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kriterion.backend import Tensor

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
