"""The mean of the worst losses."""

from __future__ import annotations

from typing import Any

import keras

from kriterion.backend import Tensor
from kriterion.losses._running_threshold import excess
from kriterion.losses._tail_loss import TailLoss


@keras.saving.register_keras_serializable(package="kriterion")
class CVaR(TailLoss):
    """Conditional value at risk: the mean of the worst share 1 - q of the losses, with the threshold trained along.

    min over w, t of mean_i t + (l_i(w) - t)+ / (1 - q)

    At the minimum t is the value at risk, the q-quantile of the losses. A mean over each batch's own worst examples
    is too small, by 4 % for exponential losses in batches of 32 at q = 0.9; t, which persists, has no such bias. Only
    examples beyond t train the network: begin with the plain loss, and take batches much larger than 1/(1 - q). The
    minimum over t alone is finite.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        level: q in (0, 1).
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `threshold` is t, also in the logs. A sample weight of k makes an example count as
        k do, masked ones do not count.

    Raises:
        ValueError: `level` is not inside (0, 1).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Rockafellar, Uryasev, "Optimization of conditional value-at-risk", Journal of Risk 2, 2000, theorem 1.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", kriterion.losses.CVaR("mean_absolute_error", 0.9))
        >>> history = trainer.fit(np.random.rand(64, 3), np.ones((64, 1)), verbose=0)
        >>> trainer.loss.threshold > 0
        True
    """

    def __init__(
        self,
        loss: Any,
        level: float,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cvar",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, level, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        return excess(values, self._threshold.of(values), 1 - self.level)
