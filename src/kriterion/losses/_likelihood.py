"""What the likelihoods of residuals with a learned shape and scale share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# `ops.cond` takes a new name at each call, so that torch.compile would compile it anew in every step.
from keras.src.backend import cond

from kriterion._validation import check_choice, check_float
from kriterion.backend import Tensor
from kriterion.losses._floats import mean_over_last_axis, working_float
from kriterion.losses._order_statistics import weighted_quantile
from kriterion.losses._positions import Positions
from kriterion.losses.base import TrainableLoss, aligned

# The start of `init="robust"`, chosen by `benchmarks/contaminated_regression.py`. The first scale is this fraction of
# the first residuals' spread: small enough that wrong targets do not count before the good ones are fitted.
_START_FRACTION = 0.2
# The spread is told from the smallest quarter of the residuals, good ones even where two fifths of the targets are
# wrong: |x| of a standard normal variable is below 0.3186 with probability 1/4.
_SPREAD_LEVEL, _NORMAL_QUARTILE = 0.25, 0.31863936396437514
_LEAST_RESIDUALS = 8
# Steps after which the shape and scale are half as free to move as in the end.
_RELEASE_STEPS = 500


class ResidualLikelihood(TrainableLoss):
    """The negative log likelihood of residuals by a density of a location-scale family.

    -log p(x) = loss(x; shape, c) + log c + log Z(shape), averaged over the last axis

    A subclass names its shape parameter, bounds it by `shape_of_logit`, and has `residual_loss` and `log_normaliser`.
    The scale is c = c_min + c_0 softplus(v)/log 2. With `init="robust"` c_0 is, unless `scale_init` gives the first
    scale, a fifth of the spread of the residuals in the first batch of training, and v and the trained number of the
    shape are multiplied by t/(t + 500) at step t.
    """

    shape_name: str

    def __init__(
        self,
        *,
        init: str,
        fixed_shape: float | None,
        first_shape_logit: float,
        scale: float | None,
        scale_init: float | None,
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
        self.fixed_shape, self.first_shape_logit = fixed_shape, first_shape_logit
        self.fixed_scale = None if scale is None else check_float(owner, "scale", scale, above=0.0)
        self.scale_min = check_float(owner, "scale_min", scale_min, above=0.0)
        self.init = check_choice(owner, "init", init, ("robust", "reference"))
        if scale_init is None and init == "reference":
            scale_init = 1.0
        if scale_init is not None:
            scale_init = check_float(owner, "scale_init", scale_init, above=self.scale_min)
        self.scale_init = scale_init
        self.positions = Positions(owner, axis, shared, groups)

    def shape_of_logit(self, logit: Tensor) -> Tensor:
        """The shape parameter at a logit of its position between its bounds."""
        raise NotImplementedError

    def residual_loss(self, residual: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
        """The loss of residuals, entry by entry; shape and scale broadcast."""
        raise NotImplementedError

    def log_normaliser(self, shape: Tensor) -> Tensor:
        """Log Z, for scale 1."""
        raise NotImplementedError

    def represented(self, residual: Tensor) -> Tensor:
        """The residuals whose likelihood is meant."""
        return residual

    def build(self, y_true_shape: tuple[int | None, ...], y_pred_shape: tuple[int | None, ...]) -> None:
        count = self.positions.build(y_pred_shape)
        if self.fixed_shape is None:
            self.latent_shape = self.add_weight(count, name=f"latent_{self.shape_name}", logged=False)
            self._shape_log = self.add_log(self.shape_name)
        if self.fixed_scale is None:
            # softplus^-1(log 2) is 0
            self.latent_scale = self.add_weight(count, name="latent_scale", logged=False)
            if self.scale_init is None:
                # 0: not measured yet.
                self.spread = self.add_weight(count, name="spread", trainable=False, aggregation="mean")
            self._scale_log = self.add_log("scale")
        if self.init == "robust":
            self.steps = self.add_weight(name="steps", trainable=False, aggregation="only_first_replica")

    def _parameters(self, spread: Any) -> tuple[Tensor, Tensor]:
        """Shape and scale at each position, given the spread of the first residuals."""
        shape: Tensor | float | None = self.fixed_shape
        scale: Tensor | float | None = self.fixed_scale
        if shape is None:
            shape = self.shape_of_logit(self.first_shape_logit + self._released(self.latent_shape))
        if scale is None:
            first = _START_FRACTION * spread if self.scale_init is None else self.scale_init - self.scale_min
            growth = ops.softplus(self._released(self.latent_scale)) / math.log(2)
            scale = self.scale_min + first * growth
        return self._at_positions(shape), self._at_positions(scale)

    def _released(self, latent: keras.Variable) -> Tensor:
        value = ops.cast(latent, self.dtype)
        if self.init == "reference":
            return value
        steps = ops.cast(self.steps, self.dtype)
        return value * (steps / (steps + _RELEASE_STEPS))

    @property
    def _measures_spread(self) -> bool:
        return self.fixed_scale is None and self.scale_init is None

    def _measured_spread(self, residual: Tensor) -> Tensor:
        """That of the given residuals, from the first batch of training on as it was there."""
        residual = ops.stop_gradient(residual)
        known = self.spread.value

        def measured() -> Tensor:
            importance = self.importance(residual[..., 0])[..., None]
            rows = self.positions.rows(ops.abs(residual))
            counts = self.positions.rows(ops.broadcast_to(importance, ops.shape(residual)))
            spread = self.positions.of_group(weighted_quantile(rows, counts, _SPREAD_LEVEL) / _NORMAL_QUARTILE)
            # Where too few residuals tell it, or all are 0, what the others have; where all of them are, 1.
            told = ops.logical_and(spread > 0, ops.shape(rows)[0] >= _LEAST_RESIDUALS)
            spread = ops.where(told, spread, ops.mean(spread))
            spread = ops.where(spread > 0, spread, 1.0)
            # Still unknown after a batch of which nothing counts.
            return ops.cast(ops.where(ops.any(importance > 0), spread, 0.0), known.dtype)

        spread = cond(ops.any(known > 0), lambda: known, measured)
        if self.training:
            self.spread.assign(spread)
        return ops.cast(spread, self.dtype)

    def _at_positions(self, value: Tensor | float) -> Tensor:
        if isinstance(value, float):
            return ops.full(self.positions.sizes, value, dtype=self.dtype)
        return self.positions.each(value)

    def _read(self, index: int) -> Any:
        if not self.built or (self._measures_spread and not ops.convert_to_numpy(self.spread).any()):
            raise ValueError(
                f"{type(self).__name__}: {self.shape_name} and scale exist after the first batch of `fit`; with "
                "`scale_init`, after `build_once(y_true_shape, y_pred_shape)`."
            )
        spread = ops.cast(self.spread, self.dtype) if self._measures_spread else None
        return ops.convert_to_numpy(ops.stop_gradient(self._parameters(spread)[index]))

    @property
    def scale(self) -> Any:
        """The scale at each position of the axes, a NumPy array."""
        return self._read(1)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        y_true, y_pred = aligned(type(self).__name__, y_true, y_pred)
        # Half precision overflows at a residual of 256 scales.
        dtype = working_float(y_pred).name
        residual = self.represented(ops.cast(y_pred, dtype) - ops.cast(y_true, dtype))
        spread = self._measured_spread(residual) if self._measures_spread else None
        shape, scale = (ops.cast(value, dtype) for value in self._parameters(spread))
        if self.fixed_shape is None:
            self._shape_log.update_state(ops.mean(shape))
        if self.fixed_scale is None:
            self._scale_log.update_state(ops.mean(scale))
        if self.init == "robust" and self.training:
            self.steps.assign_add(1)
        constant = self.positions.spread(ops.log(scale) + self.log_normaliser(shape))
        loss = self.residual_loss(residual, self.positions.spread(shape), self.positions.spread(scale))
        return mean_over_last_axis(loss) + mean_over_last_axis(constant)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "init": self.init,
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
