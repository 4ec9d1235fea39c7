"""A loss that weights examples by their error."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.losses._example_weighted import ExampleWeighted, robust_example_weights
from kriterion.losses._order_statistics import weighted_quantile
from kriterion.losses.robust import chosen_shape


@keras.saving.register_keras_serializable(package="kriterion")
class ErrorWeighted(ExampleWeighted):
    """Iteratively reweighted losses: less weight to large errors, or, mining hard examples, to all others.

    mean_i v_i l_i, e_i^2 = max(l_i, 0), v_i = (e_i^2/(c^2 |a-2|) + 1)^(a/2-1), or v_i = 1 if l_i is among the
    `hardest` and 0 if not

    The weight is c^2 rho'(e)/e of the general robust loss: 1 where there is no error. With squared error the gradient
    is that of 2 c^2 rho: iteratively reweighted least squares, one step at a time.

    Not proper: a constant prediction under squared error converges to the M-estimate of rho, sum_i rho'(y_i - m) = 0,
    which is the mean for symmetric distributions only; under `hardest`, to the mean of the hardest examples, which
    goes from the mean (1) to the midrange (0).

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        alpha: shape a <= 2 of the robust loss, -inf included; by default 0, Cauchy's.
        lam: instead of `alpha`, the power-transform coordinate (`kriterion.losses.shape_of_power`), at most 0.
        scale: c > 0, in units of the square root of the loss: errors well below it have full weight.
        hardest: instead, the fraction in (0, 1] of the batch, rounded up, that counts: hard-example mining.
        differentiate: whether the gradient goes through the weights; those of `hardest` have none.
        normalize: whether the weights are divided by their mean, so that the learning rate keeps its meaning.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss. A sample weight of k makes an example count as k do, in `hardest` as well.

    Raises:
        TypeError: `differentiate` or `normalize` is not a boolean.
        ValueError: an argument is outside of its range, or excludes another.

    Source: Holland, Welsch, "Robust regression using iteratively reweighted least-squares", Communications in
    Statistics 6, 1977, with the weights of Barron, CVPR 2019, equation 9; Shrivastava, Gupta, Girshick, "Training
    region-based object detectors with online hard example mining", CVPR 2016, section 4.

    Examples:
        >>> import numpy as np, kriterion
        >>> loss = kriterion.losses.ErrorWeighted("mean_squared_error", alpha=0.0, scale=1.0, reduction="none")
        >>> value = loss(np.zeros((2, 1)), np.array([[0.0], [2.0]]))  # weights 1 and 1/(2^2/2 + 1)
        >>> [round(float(v), 4) for v in value]
        [0.0, 1.3333]
    """

    def __init__(
        self,
        loss: Any,
        *,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        hardest: float | None = None,
        differentiate: bool = False,
        normalize: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "error_weighted",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            loss, differentiate=differentiate, normalize=normalize, reduction=reduction, name=name, dtype=dtype
        )
        owner = "ErrorWeighted"
        self.alpha: Any = chosen_shape(owner, alpha, lam, maximum=2.0)
        self.scale: Any = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        self.hardest = None if hardest is None else check_float(owner, "hardest", hardest, above=0.0, maximum=1.0)
        if hardest is None:
            self.alpha = 0.0 if self.alpha is None else self.alpha
            self.scale = 1.0 if self.scale is None else self.scale
        elif self.alpha is not None or scale is not None or differentiate:
            raise ValueError(
                f"{owner}: `hardest` mines hard examples, the opposite of the robust weight, and its weights 0 and 1 "
                "have no derivative: it excludes `alpha`, `lam`, `scale` and `differentiate`. "
                f"Received: hardest={hardest!r}, alpha={alpha!r}, lam={lam!r}, scale={scale!r}, "
                f"differentiate={differentiate!r}"
            )

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        if self.hardest is not None:
            flat = ops.reshape(values, (-1,))
            bound = -weighted_quantile(-flat, ops.reshape(importance, (-1,)), self.hardest)
            return ops.cast(values >= bound, values.dtype)
        return robust_example_weights(ops.relu(values) / self.scale**2, self.alpha)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "scale": self.scale, "hardest": self.hardest}
