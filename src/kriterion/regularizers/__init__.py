"""Penalties on weights, for `kernel_regularizer=` or `kriterion.transforms.WeightPenalty`."""

from kriterion.regularizers.group_sparsity import GroupSparsity
from kriterion.regularizers.range import Range
from kriterion.regularizers.total_variation import TotalVariation

__all__ = ["GroupSparsity", "Range", "TotalVariation"]
