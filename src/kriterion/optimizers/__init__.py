"""Optimizers for `compile`, with or without a trainer."""

from kriterion.optimizers.ada_belief import AdaBelief
from kriterion.optimizers.ivon import IVON
from kriterion.optimizers.proximal import Proximal
from kriterion.optimizers.variance_aware import VarianceAware
from kriterion.optimizers.variance_scaling import VarianceScaling

__all__ = ["IVON", "AdaBelief", "Proximal", "VarianceAware", "VarianceScaling"]
