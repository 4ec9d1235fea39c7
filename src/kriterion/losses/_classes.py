"""Targets of classification in either form."""

from __future__ import annotations

from keras import ops

from kriterion._elementary import one_hot
from kriterion.backend import Tensor

_LEAST_PROBABILITY = 1e-7


def memberships(owner: str, y_true: Tensor, shape: tuple[int | None, ...], count: int) -> Tensor:
    """Class indices (batch, ...) or (batch, ..., 1), or probabilities (batch, ..., K), as probabilities.

    NaN where an index is none of 0, ..., K - 1.

    Args:
        owner: the loss, for messages.
        y_true: the targets, floating.
        shape: (batch, ...), of the loss's values.
        count: K, the number of classes.
    """
    rank = len(shape)
    if len(y_true.shape) == rank + 1 and y_true.shape[-1] == count:
        return y_true
    if len(y_true.shape) == rank + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
    if len(y_true.shape) != rank:
        raise ValueError(
            f"{owner}: targets must be class indices {tuple(shape)}, or one-hot {(*shape, count)} for {count} classes. "
            f"Received: y_true of shape {tuple(y_true.shape)}"
        )
    return one_hot(y_true, count, y_true.dtype)


def as_logits(y_pred: Tensor, from_logits: bool, *, binary: bool) -> Tensor:
    """Logits as they are; probabilities as logits that give them, by a sigmoid (`binary`) or a softmax."""
    if from_logits:
        return y_pred
    # As Keras's own cross-entropies.
    clipped = ops.clip(y_pred, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return ops.log(clipped) - ops.log1p(-clipped) if binary else ops.log(clipped)
