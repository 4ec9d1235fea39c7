"""Student's t likelihood with learned degrees of freedom and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float, check_several
from kriterion.backend import Tensor
from kriterion.losses._likelihood import ResidualLikelihood, logit_of


@keras.saving.register_keras_serializable(package="kriterion")
class AdaptiveStudentT(ResidualLikelihood):
    """The negative log likelihood of Student's t, with learned degrees of freedom and scale per output dimension.

    -log p(x) = (n + 1)/2 log(1 + x^2/(c^2 n)) + log c + log(pi n)/2 + log Gamma(n/2) - log Gamma((n + 1)/2)

    x = y_pred - y_true, averaged over the last axis; the log of n moves between those of `df_range` by a sigmoid, c is
    c_min + c_0 softplus(v)/log 2. n = 1 is Cauchy, n -> inf normal. A likelihood can be negative. Use
    `kriterion.Trainer`; the logs of `fit` have the means `adaptive_student_t_df` and `adaptive_student_t_scale`.

    Args:
        df: a positive float fixes the degrees of freedom n; by default they are learned.
        scale: a positive float, in units of the targets, fixes the scale c; by default it is learned.
        df_range: (lo, hi), 0 < lo < hi, open bounds of learned degrees of freedom.
        init: `"robust"`: the scale starts at a fifth of the spread of the residuals in the first batch of training, and
            the trained numbers are multiplied by t/(t + 500) at step t; `"reference"`: it starts at 1.
        df_init: first degrees of freedom, strictly inside `df_range`.
        scale_init: first scale, in units of the targets, greater than `scale_min`, whatever `init` says.
        scale_min: lower bound of a learned scale, positive.
        axis: the axis, or axes, of the predictions along which each position has its own parameters.
        shared: whether one n and c serve all positions instead.
        groups: for each position along `axis` (a single one) the number, from 0, of the parameters it shares.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss; `.df` and `.scale` are NumPy arrays
        of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis with parameters has no known size, shapes of targets
            and predictions differ.

    Source: Lange, Little and Taylor, "Robust statistical modeling using the t distribution", JASA 1989; as the
        alternative to his own in Barron, CVPR 2019, supplement.

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> loss = kriterion.losses.AdaptiveStudentT()
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.df.shape, loss.scale.shape
        ((1,), (1,))
    """

    shape_name = "df"

    def __init__(
        self,
        *,
        df: float | None = None,
        scale: float | None = None,
        df_range: tuple[float, float] = (0.1, 1e4),
        init: str = "robust",
        df_init: float = 1.0,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_student_t",
        dtype: Any = None,
    ) -> None:
        owner = "AdaptiveStudentT"
        bounds = check_several(owner, "df_range", df_range, 2)
        low, high = (check_float(owner, "df_range", bound, above=0.0) for bound in bounds)
        self.df_range, self.df_init = (low, high), check_float(owner, "df_init", df_init, above=0.0)
        super().__init__(
            init=init,
            fixed_shape=None if df is None else check_float(owner, "df", df, above=0.0),
            first_shape_logit=logit_of(owner, "df", self.df_init, low, high, math.log),
            scale=scale,
            scale_init=scale_init,
            scale_min=scale_min,
            axis=axis,
            shared=shared,
            groups=groups,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def shape_of_logit(self, logit: Tensor) -> Tensor:
        low, high = (math.log(bound) for bound in self.df_range)
        return ops.exp(low + (high - low) * ops.sigmoid(logit))

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        # Up to here squares are finite.
        scaled = ops.clip(residual / scale, -(2.0**60), 2.0**60)
        return (shape + 1) / 2 * ops.log1p(scaled * scaled / shape)

    def log_normaliser(self, shape: Tensor) -> Tensor:
        return ops.log(math.pi * shape) / 2 + _log_gamma_ratio(shape / 2)

    @property
    def df(self) -> Any:
        """The degrees of freedom at each position of the axes, a NumPy array."""
        return self._read(0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "df_range": list(self.df_range), "df_init": self.df_init}


def _log_gamma_ratio(x: Tensor) -> Tensor:
    """Log Gamma(x) - log Gamma(x + 1/2), x > 0: by its recurrence up to x + 8, from there by Stirling's series."""
    steps = 8
    shifted = x + steps
    w = 1 / (shifted * shifted)
    series = 1 / 8 - w * (1 / 192 - w * (1 / 640 - w * (17 / 14336 - w * (31 / 18432))))
    return sum((ops.log1p(0.5 / (x + k)) for k in range(steps)), series / shifted - ops.log(shifted) / 2)
