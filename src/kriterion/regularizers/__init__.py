"""Penalties on weights, for `kernel_regularizer=`, `transforms.WeightPenalty` and `optimizers.Proximal`."""

from kriterion.regularizers.base import WeightRegularizer
from kriterion.regularizers.distance_to_initial import DistanceToInitial
from kriterion.regularizers.elastic_weights import ElasticWeights
from kriterion.regularizers.fisher import fisher_information
from kriterion.regularizers.group_sparsity import GroupSparsity
from kriterion.regularizers.joint_group_sparsity import JointGroupSparsity
from kriterion.regularizers.range import Range
from kriterion.regularizers.sparse_group_sparsity import SparseGroupSparsity
from kriterion.regularizers.total_variation import TotalVariation

__all__ = [
    "DistanceToInitial",
    "ElasticWeights",
    "GroupSparsity",
    "JointGroupSparsity",
    "Range",
    "SparseGroupSparsity",
    "TotalVariation",
    "WeightRegularizer",
    "fisher_information",
]
