"""The general robust loss with a fixed shape and scale."""

from __future__ import annotations

from typing import Any

import keras

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.losses._floats import mean_over_last_axis
from kriterion.losses.base import aligned, without_masked
from kriterion.losses.robust import chosen_shape, general_robust


@keras.saving.register_keras_serializable(package="kriterion")
class GeneralRobust(keras.losses.Loss):
    """Barron's general robust loss.

    rho(x) = |a-2|/a ((x^2/(c^2 |a-2|) + 1)^(a/2) - 1), x = y_pred - y_true, averaged over the last axis

    a = 2 is half the squared error of x/c, 1 pseudo-Huber, 0 Cauchy, -2 Geman-McClure, -inf Welsch: the smaller a,
    the less an outlier counts. Works in stock `compile`; it has no variables (`AdaptiveRobust` learns a and c).

    Args:
        alpha: shape a, any float, -inf and inf included; by default 1.
        scale: c > 0, in units of the targets: residuals well below it are treated as by squared error.
        lam: instead of `alpha`, the power-transform coordinate (`kriterion.losses.shape_of_power`), in [-inf, 1].
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss.

    Raises:
        ValueError: `alpha` is not a number, `scale` is not positive, shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equation 8.

    Examples:
        >>> import numpy as np, kriterion
        >>> loss = kriterion.losses.GeneralRobust(alpha=0.0, scale=1.0)
        >>> round(float(loss(np.array([[0.0]]), np.array([[2.0**0.5]]))), 6)  # log(1 + x^2/2)
        0.693147
    """

    def __init__(
        self,
        alpha: float | None = None,
        scale: float = 1.0,
        *,
        lam: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "general_robust",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        shape = chosen_shape("GeneralRobust", alpha, lam)
        self.alpha = 1.0 if shape is None else shape
        self.scale = check_float("GeneralRobust", "scale", scale, above=0.0)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return super().__call__(*without_masked(y_true, y_pred), sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("GeneralRobust", y_true, y_pred)
        return mean_over_last_axis(general_robust(y_pred - y_true, self.alpha, self.scale))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale}
