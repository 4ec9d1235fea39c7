"""A threshold at a quantile of scores or losses."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor
from kriterion.losses._floats import working_float
from kriterion.losses._tail_loss import TailLoss


@keras.saving.register_keras_serializable(package="kriterion")
class QuantileThreshold(TailLoss):
    """A threshold that is exceeded by a share 1 - q of the training examples: for anomaly detection.

    min over t of mean_i l_i + q (v_i - t)+ + (1 - q) (t - v_i)+, v_i = stop_gradient(l_i)

    The network is trained by the wrapped loss as if there were no threshold; t goes to the q-quantile of that loss,
    such as an autoencoder's error. Without a wrapped loss v_i are the predictions themselves, scores that something
    else trains (another output's loss, or earlier training), and l_i = 0. The minimum over t alone is finite.

    Args:
        level: q in (0, 1).
        loss: a Keras loss, or the name of one, or None; its reduction is not used.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `threshold` is t, also in the logs. Targets of scores are not used. A sample weight
        of k makes an example count as k do, masked ones do not count.

    Raises:
        ValueError: `level` is not inside (0, 1).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Koenker, Bassett, "Regression quantiles", Econometrica 46, 1978, section 2.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> autoencoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), keras.layers.Dense(3)])
        >>> trainer = kriterion.Trainer(autoencoder)
        >>> trainer.compile("adam", kriterion.losses.QuantileThreshold(0.99, "mean_squared_error"))
        >>> x = np.random.rand(256, 3)
        >>> history = trainer.fit(x, x, verbose=0)
        >>> anomalous = np.mean((x - autoencoder.predict(x, verbose=0)) ** 2, axis=-1) > trainer.loss.threshold
    """

    loss_is_optional = True

    def __init__(
        self,
        level: float,
        loss: Any = None,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "quantile_threshold",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, level, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        trained = self.loss is not None
        values = self.values_of_loss(y_true, y_pred) if trained else _scores(y_pred)
        constants = ops.stop_gradient(values)
        above = constants - self._threshold.of(constants)
        pinball = self.level * ops.relu(above) + (1 - self.level) * ops.relu(-above)
        return values + pinball if trained else pinball


def _scores(y_pred: Tensor) -> Tensor:
    """Scores (batch, ...), in float32 or float64; an axis of one score is dropped."""
    if len(y_pred.shape) > 1 and y_pred.shape[-1] == 1:
        y_pred = ops.squeeze(y_pred, -1)
    return ops.cast(y_pred, working_float(y_pred).name)
