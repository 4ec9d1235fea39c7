"""Statistics of a batch's losses, and the weights that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from keras import ops

from kriterion._elementary import at_least
from kriterion.backend import Tensor
from kriterion.losses._example_weighted import robust_example_weights
from kriterion.losses._order_statistics import weighted_quantile

# 1 over the 3/4 quantile of the standard normal distribution: from the median of |x| to its standard deviation.
_NORMAL_SPREAD = 1.482602218505602
_SMALLEST = 1e-30


@dataclasses.dataclass(frozen=True)
class Density:
    """The fraction of examples in each of equal bins of 1 - exp(-loss); weights inverse to it."""

    bins: int = 10
    differentiable: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.bins,)

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        members = ops.one_hot(self._bin(values), self.bins, dtype=values.dtype)
        return ops.divide_no_nan(ops.sum(members * importance[:, None], axis=0), ops.sum(importance))

    def weights(self, values: Tensor, fractions: Tensor) -> Tensor:
        # A bin in which there never was an example has no density to divide by.
        seen = fractions > 0
        return ops.take(ops.where(seen, 1 / (self.bins * ops.where(seen, fractions, 1.0)), 1.0), self._bin(values))

    def _bin(self, values: Tensor) -> Tensor:
        # NaN has no bin, and must get to the loss.
        return ops.cast(ops.clip(ops.nan_to_num(-ops.expm1(-ops.relu(values))) * self.bins, 0, self.bins - 1), "int32")


@dataclasses.dataclass(frozen=True)
class SelfPaced:
    """The loss up to which the share of examples lies; weight 1 up to it, else 0."""

    share: float = 0.8
    shape: ClassVar[tuple[int, ...]] = ()
    differentiable: ClassVar[bool] = False

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        return weighted_quantile(values, importance, self.share)

    def weights(self, values: Tensor, bound: Tensor) -> Tensor:
        return ops.cast(values <= bound, values.dtype)


@dataclasses.dataclass(frozen=True)
class Standardised:
    """The spread of the errors sqrt(loss); the weight of a robust loss of the error in its units."""

    alpha: float = 0.0
    scale: float = 2.0
    shape: ClassVar[tuple[int, ...]] = ()
    differentiable: ClassVar[bool] = True

    def statistic(self, values: Tensor, importance: Tensor) -> Tensor:
        return _NORMAL_SPREAD * weighted_quantile(ops.sqrt(ops.relu(values)), importance, 0.5)

    def weights(self, values: Tensor, spread: Tensor) -> Tensor:
        unit = at_least((self.scale * spread) ** 2, _SMALLEST)
        return robust_example_weights(ops.relu(values) / unit, self.alpha)


WEIGHTINGS: dict[str, Any] = {"density": Density, "self_paced": SelfPaced, "standardised": Standardised}
