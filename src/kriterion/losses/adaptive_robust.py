"""The robust loss that learns its shape and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion import backend
from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor
from kriterion.losses._bounded_kernel import bounded_kernel
from kriterion.losses._floats import working_float
from kriterion.losses._latest_value import LatestValue
from kriterion.losses.base import TrainableLoss, aligned
from kriterion.losses.robust import log_partition, shape_of_power


@keras.saving.register_keras_serializable(package="kriterion")
class AdaptiveRobust(TrainableLoss):
    """The negative log likelihood of Barron's density, with a learned shape and scale per output dimension.

    -log p(x) = rho(x; a, c) + log c + log Z(a), x = y_pred - y_true, averaged over the last axis

    a = lo + (hi - lo) sigmoid(u) and c = c_min + (c_0 - c_min) softplus(v)/log 2 with u and v trained, so that the
    loss finds out how heavy the residuals' tails are. A likelihood can be negative: compare it with itself only.
    Use `kriterion.Trainer`, which trains and saves the variables; stock `compile` is refused. The logs of `fit` have
    the mean shape and scale as `adaptive_robust_alpha` and `adaptive_robust_scale`, after the loss's name.

    Args:
        alpha: a float in [0, 2] fixes the shape; by default it is learned.
        lam: instead of `alpha`, the power-transform coordinate (`shape_of_power`), in [-1, 0].
        scale: a positive float, in units of the targets, fixes the scale; by default it is learned.
        alpha_range: (lo, hi), 0 <= lo < hi <= 2, open bounds of a learned shape.
        alpha_init: first shape, strictly inside `alpha_range`; by default its middle.
        scale_init: first scale, in units of the targets, greater than `scale_min`.
        scale_min: lower bound of a learned scale, positive.
        coordinate: `"alpha"`, or `"lambda"` to have lambda, rather than the shape, depend on u by the sigmoid.
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
        ValueError: an argument is outside of its range, an axis of the predictions that is wanted has no known size,
            shapes of targets and predictions differ.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019, equations 15 and 16, section 3.1 (the
    parametrisation); "A Power Transform", arXiv 2502.10647 (2025) (lambda).

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
        alpha: float | None = None,
        lam: float | None = None,
        scale: float | None = None,
        alpha_range: tuple[float, float] = (0.001, 1.999),
        alpha_init: float | None = None,
        scale_init: float = 1.0,
        scale_min: float = 1e-5,
        coordinate: str = "alpha",
        axis: int | Sequence[int] = -1,
        shared: bool = False,
        groups: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_robust",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = "AdaptiveRobust"
        if alpha is not None and lam is not None:
            raise ValueError(f"{owner}: give at most one of `alpha` and `lam`. Received: alpha={alpha!r}, lam={lam!r}")
        if lam is not None:
            alpha = float(shape_of_power(check_float(owner, "lam", lam, minimum=-1.0, maximum=0.0)))
        self.fixed_alpha = None if alpha is None else check_float(owner, "alpha", alpha, minimum=0.0, maximum=2.0)
        self.fixed_scale = None if scale is None else check_float(owner, "scale", scale, above=0.0)
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
        self.coordinate = check_choice(owner, "coordinate", coordinate, ("alpha", "lambda"))
        self.axis = (axis,) if isinstance(axis, int) else tuple(axis)
        self.shared = shared
        self.groups = None if groups is None else [int(group) for group in groups]
        if self.groups is not None and (
            shared or len(self.axis) != 1 or sorted(set(self.groups)) != list(range(len(set(self.groups))))
        ):
            raise ValueError(
                f"{owner}: `groups` numbers the positions of one axis from 0 without a gap, and excludes `shared`. "
                f"Received: groups={groups!r}, axis={axis!r}, shared={shared!r}"
            )

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        # Predictions (batch,) are one output dimension.
        shape = tuple(y_pred_shape) if len(y_pred_shape) > 1 else (*y_pred_shape, 1)
        rank = len(shape)
        if any(not -rank < axis < rank or axis % rank == 0 for axis in self.axis):
            raise ValueError(
                f"AdaptiveRobust: `axis` must name axes after the batch's. Received: axis={self.axis!r}, "
                f"y_pred of shape {tuple(y_pred_shape)}"
            )
        axes = sorted({axis % rank for axis in self.axis})
        sizes = [1 if self.shared else shape[axis] for axis in axes]
        if None in sizes:
            raise ValueError(
                "AdaptiveRobust: the axis of each shape and scale must have a known size (the last axis, if not said "
                f"otherwise by `axis`). Received: axis={self.axis!r}, y_pred of shape {tuple(y_pred_shape)}. "
                "With `shared=True` no size needs to be known."
            )
        if self.groups is not None and len(self.groups) != sizes[0]:
            raise ValueError(
                f"AdaptiveRobust: `groups` must have a number for each of the {sizes[0]} positions. "
                f"Received: {len(self.groups)} numbers"
            )
        # To broadcast against (batch, ...): 1 where an axis has no own parameters.
        self._broadcast = [sizes[axes.index(axis)] if axis in axes else 1 for axis in range(1, rank)]
        self._sizes = [size for size, axis in zip(sizes, axes, strict=True) if not self.shared] or [1]
        count = [len(set(self.groups))] if self.groups else self._sizes
        low, high = self._latent_range()
        position = (self._latent_of_shape(self.alpha_init) - low) / (high - low)
        if self.fixed_alpha is None:
            logit = math.log(position) - math.log1p(-position)
            self.latent_alpha = self.add_weight(count, keras.initializers.Constant(logit), name="latent_alpha")
            self.state.alpha_log = LatestValue(name=f"{self.name}_alpha")
        if self.fixed_scale is None:
            # softplus^-1(log 2) is 0
            self.latent_scale = self.add_weight(count, "zeros", name="latent_scale")
            self.state.scale_log = LatestValue(name=f"{self.name}_scale")

    def _latent_of_shape(self, alpha: float) -> float:
        return alpha if self.coordinate == "alpha" else alpha / 2 - 1

    def _latent_range(self) -> tuple[float, float]:
        low, high = (self._latent_of_shape(bound) for bound in self.alpha_range)
        return low, high

    def _parameters(self) -> tuple[Tensor, Tensor]:
        """Shape and scale, one for each position or group."""
        alpha, scale = self.fixed_alpha, self.fixed_scale
        if alpha is None:
            low, high = self._latent_range()
            latent = low + (high - low) * ops.sigmoid(ops.cast(self.latent_alpha, self.dtype))
            alpha = latent if self.coordinate == "alpha" else shape_of_power(latent)
        if scale is None:
            growth = ops.softplus(ops.cast(self.latent_scale, self.dtype)) / math.log(2)
            scale = self.scale_min + (self.scale_init - self.scale_min) * growth
        return tuple(
            ops.full(self._sizes, value, dtype=self.dtype)
            if isinstance(value, float)
            else (value if self.groups is None else ops.take(value, ops.convert_to_tensor(self.groups), axis=0))
            for value in (alpha, scale)
        )

    @property
    def alpha(self) -> Any:
        """The shape at each position of the axes, a NumPy array."""
        return self._read(0)

    @property
    def scale(self) -> Any:
        """The scale at each position of the axes, a NumPy array."""
        return self._read(1)

    def _read(self, index: int) -> Any:
        if not self.built:
            raise ValueError(
                "AdaptiveRobust: the shape and scale exist after the first call of `fit`, "
                "or `build_once(y_true_shape, y_pred_shape)`."
            )
        return ops.convert_to_numpy(ops.stop_gradient(self._parameters()[index]))

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned("AdaptiveRobust", y_true, y_pred)
        # Half precision overflows at a residual of 256 scales.
        dtype = working_float(y_pred).name
        y_true, y_pred = ops.cast(y_true, dtype), ops.cast(y_pred, dtype)
        alpha, scale = (ops.cast(value, dtype) for value in self._parameters())
        if self.fixed_alpha is None:
            self.state.alpha_log.update_state(ops.mean(alpha))
        if self.fixed_scale is None:
            self.state.scale_log.update_state(ops.mean(scale))
        normaliser = ops.reshape(ops.log(scale) + log_partition(alpha), self._broadcast)
        alpha, scale = ops.reshape(alpha, self._broadcast), ops.reshape(scale, self._broadcast)
        residual_loss = backend.elementwise(bounded_kernel)(y_pred - y_true, alpha, scale)
        return ops.mean(residual_loss + normaliser, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.fixed_alpha,
            "scale": self.fixed_scale,
            "alpha_range": list(self.alpha_range),
            "alpha_init": self.alpha_init,
            "scale_init": self.scale_init,
            "scale_min": self.scale_min,
            "coordinate": self.coordinate,
            "axis": list(self.axis),
            "shared": self.shared,
            "groups": self.groups,
        }
