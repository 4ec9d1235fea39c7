"""The robust loss that learns its shape and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._validation import check_choice, check_float, check_several
from kriterion.backend import Tensor
from kriterion.losses._bounded_kernel import bounded_kernel
from kriterion.losses._floats import working_float
from kriterion.losses._likelihood import ResidualLikelihood, logit_of
from kriterion.losses._robust_kernel import robust_kernel
from kriterion.losses.robust import chosen_shape, log_partition, shape_of_power


@keras.saving.register_keras_serializable(package="kriterion")
class AdaptiveRobust(ResidualLikelihood):
    """The negative log likelihood of Barron's density, with a learned shape and scale per output dimension.

    -log p(x) = rho(x; a, c) + log c + log Z(a), x = y_pred - y_true, averaged over the last axis

    a = lo + (hi - lo) sigmoid(u) and c = c_min + c_0 softplus(v)/log 2 with u and v trained, so that the
    loss finds out how heavy the residuals' tails are. A likelihood can be negative: compare it with itself only.
    Use `kriterion.Trainer`, which trains and saves the variables; stock `compile` is refused. The logs of `fit` have
    the mean shape and scale as `adaptive_robust_alpha` and `adaptive_robust_scale`, after the loss's name.

    Args:
        alpha: a float in [0, inf] fixes the shape; by default it is learned.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 1].
        scale: a positive float, in units of the targets, fixes the scale; by default it is learned.
        alpha_range: (lo, hi), 0 <= lo < hi, open bounds of a learned shape. Beyond 2 tails are lighter than normal
            ones, and the loss costs three times as much.
        init: `"robust"`: the shape starts low, and the scale at a fifth of the spread of the residuals in the first
            batch of training (of all positions', if that has fewer than 8 for each), and they are released little by
            little (u and v times t/(t + 500) at step t), so that wrong targets do not count before the good ones are
            fitted; `"reference"`: at the middle of `alpha_range` and at 1, as in the paper, which wants targets of
            about that spread.
        alpha_init: first shape, strictly inside `alpha_range`, whatever `init` says.
        scale_init: first scale, in units of the targets, greater than `scale_min`, whatever `init` says.
        scale_min: lower bound of a learned scale, positive. Where most residuals can be exactly 0, the likelihood has
            no other bound, and training may end there: give 0.1 for one-hot targets.
        coordinate: `"alpha"`, or `"lambda"` to have lambda, rather than the shape, depend on u by the sigmoid. Up to 2
            they are the same, as lambda = a/2 - 1 there; beyond, only lambda can have hi = inf.
        axis: the axis, or axes, of the predictions along which each position has its own shape and scale; 0, the
            batch's, is none.
        shared: whether one shape and scale serves all positions instead.
        groups: for each position along `axis` (a single one) the number, from 0, of the shape and scale it shares.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss; `.alpha` and `.scale` are NumPy
        arrays of the sizes of the axes.

    Raises:
        TypeError: `shared` is not a boolean.
        ValueError: an argument is outside of its range, an axis of the predictions that is wanted has no known size,
            shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 15 and 16, section 3.1 (the
    parametrisation); "A Power Transform", arXiv 2502.10647 (2025) (lambda).

    Examples:
        >>> import keras, numpy as np, kriterion
        >>> loss = kriterion.losses.AdaptiveRobust()
        >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", loss)
        >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
        >>> loss.alpha.shape, loss.scale.shape
        ((1,), (1,))
    """

    shape_name = "alpha"

    def __init__(
        self,
        *,
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        alpha_range: tuple[float, float] = (0.001, 1.999),
        init: str = "robust",
        alpha_init: float | None = None,
        scale_init: float | None = None,
        scale_min: float = 1e-5,
        coordinate: str = "alpha",
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_robust",
        dtype: Any = None,
    ) -> None:
        owner = "AdaptiveRobust"
        low, high = check_several(owner, "alpha_range", alpha_range, 2)
        check_float(owner, "alpha_range", low, minimum=0.0)
        if not (coordinate == "lambda" and high == math.inf):
            check_float(owner, "alpha_range", high, minimum=0.0)
        self.alpha_range = (low, high)
        self.alpha_init = None if alpha_init is None else check_float(owner, "alpha_init", alpha_init)
        # Low enough to ignore outliers, or in the middle.
        default = low + (high - low) * (0.5 if init == "reference" else 0.005)
        first_shape = default if self.alpha_init is None else self.alpha_init
        self.coordinate = check_choice(owner, "coordinate", coordinate, tuple(_COORDINATES))
        self._coordinate, self._inverse = _COORDINATES[coordinate]
        super().__init__(
            init=init,
            fixed_shape=chosen_shape(owner, alpha, lam, minimum=0.0),
            first_shape_logit=logit_of(owner, "alpha", first_shape, low, high, self._coordinate),
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
        low, high = (self._coordinate(bound) for bound in self.alpha_range)
        return self._inverse(low + (high - low) * ops.sigmoid(logit))

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        greatest = self.alpha_range[1] if self.fixed_shape is None else self.fixed_shape
        return backend.elementwise(bounded_kernel if greatest <= 2 else _any_shape)(residual, shape, scale)

    def log_normaliser(self, shape: Tensor) -> Tensor:
        return log_partition(shape)

    @property
    def alpha(self) -> Any:
        """The shape at each position of the axes, a NumPy array."""
        return self._read(0)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha_range": list(self.alpha_range),
            "alpha_init": self.alpha_init,
            "coordinate": self.coordinate,
        }


def _any_shape(residual: Tensor, shape: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    value, *derivatives = robust_kernel(residual, shape, scale, working_float(residual), with_slope=True)
    return value, tuple(derivatives)


def _same(value: Any) -> Any:
    return value


def _power_of_shape(alpha: float) -> float:
    return alpha / 2 - 1 if alpha <= 2 else 1 - 2 / alpha


# `(coordinate of a shape, its inverse)`.
_COORDINATES = {"alpha": (_same, _same), "lambda": (_power_of_shape, shape_of_power)}
