"""Cross-entropy for balanced error, where the classes' frequencies are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kriterion._classes import as_logits, memberships
from kriterion._validation import check_bool, check_float, check_several
from kriterion.backend import Tensor
from kriterion.losses._floats import working_float
from kriterion.losses.base import without_masked


@keras.saving.register_keras_serializable(package="kriterion")
class LogitAdjusted(keras.losses.Loss):
    """Cross-entropy of logits to which the logarithms of the classes' frequencies are added, in training only.

    l = -log softmax(f(x) + tau log pi)_y

    With tau = 1 the f that minimises it ranks the classes as if all were equally frequent: the error to which this is
    consistent is the balanced one, the mean of the classes' own. Nothing is learned, and reweighting the examples,
    which an overparametrised network fits away, is not needed. Predict with f itself.

    Args:
        frequencies: of the classes in training, positive: counts or probabilities; two for one output of a sigmoid.
        tau: strength, at least 0; 0 is plain cross-entropy.
        from_logits: whether predictions are logits; else they are probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, for class indices (batch, ...) or one-hot targets (batch, ..., K) and predictions
        (batch, ..., K), or (batch, ..., 1) with K = 2; NaN for a target that is none of the classes.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: a frequency is not positive, `tau` is negative, or the shapes do not fit.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10 and theorem 1.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", kriterion.losses.LogitAdjusted([900, 90, 10]))
        >>> history = model.fit(np.random.rand(8, 4), np.arange(8) % 3, verbose=0)
    """

    def __init__(
        self,
        frequencies: Sequence[float],
        *,
        tau: float = 1.0,
        from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "logit_adjusted",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = "LogitAdjusted"
        each = check_several(owner, "frequencies", frequencies)
        self.frequencies = [check_float(owner, "frequencies", f, above=0.0) for f in each]
        if len(self.frequencies) < 2:
            raise ValueError(f"{owner}: `frequencies` must be those of 2 classes or more. Received: {frequencies!r}")
        self.tau = check_float(owner, "tau", tau, minimum=0.0)
        self.from_logits = check_bool(owner, "from_logits", from_logits)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return super().__call__(*without_masked(y_true, y_pred), sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        count = len(self.frequencies)
        if y_pred.shape[-1] not in ((1, 2) if count == 2 else (count,)) or len(y_pred.shape) < 2:
            raise ValueError(
                f"LogitAdjusted: predictions must have a last axis of {count}, the number of `frequencies`"
                f"{' (or 1, for class 1)' if count == 2 else ''}. Received: y_pred of shape {tuple(y_pred.shape)}"
            )
        y_pred = ops.cast(y_pred, working_float(y_pred).name)
        # The same up to a constant, and no logarithm of a count overflows the softmax.
        shift = self.tau * np.log(np.divide(self.frequencies, np.max(self.frequencies)))
        logits = as_logits(y_pred, self.from_logits, binary=y_pred.shape[-1] == 1)
        if y_pred.shape[-1] == 1:
            logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
        targets = memberships("LogitAdjusted", y_true, logits.shape[:-1], count, y_true.dtype)
        adjusted = logits + ops.convert_to_tensor(shift, logits.dtype)
        return -ops.sum(ops.cast(targets, logits.dtype) * ops.log_softmax(adjusted, axis=-1), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "frequencies": self.frequencies,
            "tau": self.tau,
            "from_logits": self.from_logits,
        }
