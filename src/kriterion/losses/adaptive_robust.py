"""The robust loss that learns its shape and scale."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.losses.base import TrainableLoss, aligned
from kriterion.losses.robust import general_robust, log_partition


@keras.saving.register_keras_serializable(package="kriterion")
class AdaptiveRobust(TrainableLoss):
    """The negative log likelihood of Barron's density, with a learned shape and scale per output dimension.

    -log p(x) = rho(x; a, c) + log c + log Z(a), x = y_pred - y_true, averaged over the last axis

    a = lo + (hi - lo) sigmoid(u) and c = c_min + (c_0 - c_min) softplus(v)/log 2 with u and v trained, so that the
    loss finds out how heavy the residuals' tails are. A likelihood can be negative: compare it with itself only.
    Use `kriterion.Trainer`, which trains and saves the variables; stock `compile` is refused.

    Args:
        alpha_range: (lo, hi), 0 <= lo < hi <= 2, open bounds of a.
        alpha_init: first a, strictly inside `alpha_range`; by default its middle.
        scale_init: first c, in units of the targets, greater than `scale_min`.
        scale_min: lower bound of c, positive.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss, prefix of its variables' paths.
        dtype: dtype of the computation.

    Returns:
        As a call: for targets and predictions (batch, ..., d), the reduced loss; `.alpha` and `.scale` are NumPy
        arrays (d,).

    Raises:
        ValueError: an argument is outside of its range, the last axis of the predictions has no known size, shapes
            of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 15 and 16, section 3.1 (the
    parametrisation).

    Example:
    >>> import keras, numpy as np, kriterion
    >>> loss = kriterion.losses.AdaptiveRobust()
    >>> trainer = kriterion.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    >>> trainer.compile("adam", loss)
    >>> history = trainer.fit(np.ones((8, 3)), np.zeros((8, 1)), verbose=0)
    >>> loss.alpha.shape, loss.scale.shape
    ((1,), (1,))
    """

    def __init__(
        self,
        *,
        alpha_range: tuple[float, float] = (0.001, 1.999),
        alpha_init: float | None = None,
        scale_init: float = 1.0,
        scale_min: float = 1e-5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_robust",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = "AdaptiveRobust"
        low, high = (check_float(owner, "alpha_range", bound, minimum=0.0, maximum=2.0) for bound in alpha_range)
        if not low < high:
            raise ValueError(f"{owner}: `alpha_range` must increase. Received: alpha_range={alpha_range!r}")
        self.alpha_range = (low, high)
        self.alpha_init = (low + high) / 2 if alpha_init is None else check_float(owner, "alpha_init", alpha_init)
        if not low < self.alpha_init < high:
            raise ValueError(
                f"{owner}: `alpha_init` must lie strictly inside alpha_range={alpha_range!r}. "
                f"Received: alpha_init={alpha_init!r}"
            )
        self.scale_min = check_float(owner, "scale_min", scale_min, above=0.0)
        self.scale_init = check_float(owner, "scale_init", scale_init, above=self.scale_min)

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        # Predictions (batch,) are one output dimension.
        size = y_pred_shape[-1] if len(y_pred_shape) > 1 else 1
        if size is None:
            raise ValueError(
                "AdaptiveRobust: the last axis of the predictions must have a known size, because each output "
                f"dimension has its own shape and scale. Received: y_pred of shape {tuple(y_pred_shape)}"
            )
        low, high = self.alpha_range
        position = (self.alpha_init - low) / (high - low)
        logit = math.log(position) - math.log1p(-position)
        self.latent_alpha = self.add_weight((size,), keras.initializers.Constant(logit), name="latent_alpha")
        # softplus^-1(log 2) is 0
        self.latent_scale = self.add_weight((size,), "zeros", name="latent_scale")

    def _parameters(self) -> tuple[Tensor, Tensor]:
        low, high = self.alpha_range
        alpha = low + (high - low) * ops.sigmoid(ops.cast(self.latent_alpha, self.dtype))
        growth = ops.softplus(ops.cast(self.latent_scale, self.dtype)) / math.log(2)
        return alpha, self.scale_min + (self.scale_init - self.scale_min) * growth

    @property
    def alpha(self) -> Any:
        """The shape a of each output dimension, a NumPy array (d,)."""
        return self._read(0)

    @property
    def scale(self) -> Any:
        """The scale c of each output dimension, a NumPy array (d,)."""
        return self._read(1)

    def _read(self, index: int) -> Any:
        if not self.built:
            raise ValueError(
                "AdaptiveRobust: the shape and scale exist after the first call of `fit`, "
                "or `build(y_true_shape, y_pred_shape)`."
            )
        return ops.convert_to_numpy(self._parameters()[index])

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("AdaptiveRobust", y_true, y_pred)
        alpha, scale = self._parameters()
        likelihood = general_robust(y_pred - y_true, alpha, scale) + ops.log(scale) + log_partition(alpha)
        return ops.mean(likelihood, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha_range": list(self.alpha_range),
            "alpha_init": self.alpha_init,
            "scale_init": self.scale_init,
            "scale_min": self.scale_min,
        }
