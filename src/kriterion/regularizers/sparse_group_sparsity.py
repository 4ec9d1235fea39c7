"""Weights that vanish by groups and within them."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kriterion._elementary import magnitude, soft_threshold
from kriterion._validation import check_float
from kriterion.backend import Tensor
from kriterion.regularizers.group_sparsity import GroupSparsity


@keras.saving.register_keras_serializable(package="kriterion")
class SparseGroupSparsity(GroupSparsity):
    """The sparse group lasso: whole groups of weights go to zero, and single weights in the groups that stay.

    R(w) = strength * (a sum |w| + (1 - a) sum over groups g of sqrt(p_g) ||w_g||_2), a = `l1_ratio`

    Its proximal map is exactly that of the first term followed by that of the second, with one step for each weight
    too.

    Args:
        strength: coefficient >= 0, or a schedule of it (see `WeightRegularizer`).
        l1_ratio: a, 0 <= a <= 1. At 1 this is the lasso, at 0 the group lasso.
        groups: as in `GroupSparsity`.
        weight_by_size: as in `GroupSparsity`.
        splits: as in `GroupSparsity`.
        reduce: `"sum"`, or `"mean"`: divided by the number of weights.

    Returns:
        As a call: for weights of a shape that has such groups, a scalar.

    Raises:
        ValueError: as `GroupSparsity`, or `l1_ratio` is out of its range.

    Source: Simon et al., "A sparse-group lasso", JCGS 22 (2013), section 3.

    Examples:
        >>> import kriterion
        >>> penalty = kriterion.regularizers.SparseGroupSparsity(1.0, 0.5)
        >>> [[round(float(w), 4) for w in row] for row in penalty.prox([[3.0, 0.5], [0.2, 0.5]], 1.0)]
        [[1.7929, 0.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        strength: Any,
        l1_ratio: float,
        groups: Any = "output",
        *,
        weight_by_size: bool = True,
        splits: int = 1,
        reduce: str = "sum",
    ) -> None:
        super().__init__(strength, groups, weight_by_size=weight_by_size, splits=splits, reduce=reduce)
        self.l1_ratio = check_float("SparseGroupSparsity", "l1_ratio", l1_ratio, minimum=0.0, maximum=1.0)

    def penalty(self, weights: Tensor) -> Tensor:
        return self.l1_ratio * ops.sum(magnitude(weights)) + (1.0 - self.l1_ratio) * super().penalty(weights)

    def proximal(self, weights: Tensor, step: Any) -> Tensor:
        within = soft_threshold(weights, self.l1_ratio * step)
        return super().proximal(within, (1.0 - self.l1_ratio) * step)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l1_ratio": self.l1_ratio}
