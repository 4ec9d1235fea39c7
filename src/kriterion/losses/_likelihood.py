"""What the likelihoods of residuals with a learned shape and scale share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.losses._floats import mean_over_last_axis, working_float
from kriterion.losses._latest_value import LatestValue
from kriterion.losses._positions import Positions
from kriterion.losses.base import TrainableLoss, aligned


class ResidualLikelihood(TrainableLoss):
    """The negative log likelihood of residuals by a density of a location-scale family.

    -log p(x) = loss(x; shape, c) + log c + log Z(shape), averaged over the last axis

    A subclass names its shape parameter, bounds it by `shape_of_latent`, and has `residual_loss` and `log_normaliser`.
    The scale is c = c_min + (c_0 - c_min) softplus(v)/log 2.
    """

    shape_name: str

    def __init__(
        self,
        *,
        fixed_shape: float | None,
        shape_logit: float,
        scale: float | None,
        scale_init: float,
        scale_min: float,
        axis: int | Sequence[int],
        shared: bool,
        groups: Sequence[int] | None,
        reduction: str | None,
        name: str,
        dtype: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = type(self).__name__
        self.fixed_shape, self._shape_logit = fixed_shape, shape_logit
        self.fixed_scale = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        self.scale_min = check_float(owner, "scale_min", scale_min, above=0.0)
        self.scale_init = check_float(owner, "scale_init", scale_init, above=self.scale_min)
        self.positions = Positions(owner, axis, shared, groups)

    def shape_of_latent(self, latent: Tensor) -> Tensor:
        """The shape parameter for a trained number, which starts at `shape_logit`."""
        raise NotImplementedError

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        """The loss of residuals, entry by entry; shape and scale broadcast."""
        raise NotImplementedError

    def log_normaliser(self, shape: Tensor) -> Tensor:
        """Log Z, for scale 1."""
        raise NotImplementedError

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        count = self.positions.build(y_pred_shape)
        if self.fixed_shape is None:
            initial = keras.initializers.Constant(self._shape_logit)
            self.latent_shape = self.add_weight(count, initial, name=f"latent_{self.shape_name}")
            self.state.shape_log = LatestValue(name=f"{self.name}_{self.shape_name}")
        if self.fixed_scale is None:
            # softplus^-1(log 2) is 0
            self.latent_scale = self.add_weight(count, "zeros", name="latent_scale")
            self.state.scale_log = LatestValue(name=f"{self.name}_scale")

    def _parameters(self) -> tuple[Tensor, Tensor]:
        """Shape and scale at each position."""
        shape: Tensor | float | None = self.fixed_shape
        scale: Tensor | float | None = self.fixed_scale
        if shape is None:
            shape = self.shape_of_latent(ops.cast(self.latent_shape, self.dtype))
        if scale is None:
            growth = ops.softplus(ops.cast(self.latent_scale, self.dtype)) / math.log(2)
            scale = self.scale_min + (self.scale_init - self.scale_min) * growth
        return self._at_positions(shape), self._at_positions(scale)

    def _at_positions(self, value: Tensor | float) -> Tensor:
        if isinstance(value, float):
            return ops.full(self.positions.sizes, value, dtype=self.dtype)
        return self.positions.each(value)

    def _read(self, index: int) -> Any:
        if not self.built:
            raise ValueError(
                f"{type(self).__name__}: {self.shape_name} and scale exist after the first call of `fit`, "
                "or `build_once(y_true_shape, y_pred_shape)`."
            )
        return ops.convert_to_numpy(ops.stop_gradient(self._parameters()[index]))

    @property
    def scale(self) -> Any:
        """The scale at each position of the axes, a NumPy array."""
        return self._read(1)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned(type(self).__name__, y_true, y_pred)
        # Half precision overflows at a residual of 256 scales.
        dtype = working_float(y_pred).name
        shape, scale = (ops.cast(value, dtype) for value in self._parameters())
        if self.fixed_shape is None:
            self.state.shape_log.update_state(ops.mean(shape))
        if self.fixed_scale is None:
            self.state.scale_log.update_state(ops.mean(scale))
        constant = self.positions.spread(ops.log(scale) + self.log_normaliser(shape))
        residual = ops.cast(y_pred, dtype) - ops.cast(y_true, dtype)
        loss = self.residual_loss(residual, self.positions.spread(shape), self.positions.spread(scale))
        return mean_over_last_axis(loss + constant)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            self.shape_name: self.fixed_shape,
            "scale": self.fixed_scale,
            "scale_init": self.scale_init,
            "scale_min": self.scale_min,
            **self.positions.get_config(),
        }


def logit_of(owner: str, name: str, value: float, low: float, high: float, coordinate: Any) -> float:
    """The logit of where `value` lies between the bounds, in the given coordinate; the sigmoid's argument for it."""
    if not low < value < high:
        raise ValueError(
            f"{owner}: `{name}_range` must increase and `{name}_init` lie strictly inside it. "
            f"Received: {name}_range=({low!r}, {high!r}), {name}_init={value!r}"
        )
    position = (coordinate(value) - coordinate(low)) / (coordinate(high) - coordinate(low))
    return math.log(position) - math.log1p(-position)
