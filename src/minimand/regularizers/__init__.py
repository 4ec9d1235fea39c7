"""Penalties on weights, for `kernel_regularizer=`, `transforms.WeightPenalty` and `optimizers.Proximal`."""

from minimand.regularizers._anchored import L2SP, ElasticWeightConsolidation, fisher_information
from minimand.regularizers._base import WeightRegularizer
from minimand.regularizers._group_lasso import GroupLasso, JointGroupLasso, SparseGroupLasso
from minimand.regularizers._range import Range
from minimand.regularizers._total_variation import TotalVariation

__all__ = [
    "L2SP",
    "ElasticWeightConsolidation",
    "GroupLasso",
    "JointGroupLasso",
    "Range",
    "SparseGroupLasso",
    "TotalVariation",
    "WeightRegularizer",
    "fisher_information",
]
