"""Optimizers for `compile`, with or without a trainer."""

from kriterion.optimizers.ivon import IVON
from kriterion.optimizers.proximal import Proximal
from kriterion.optimizers.variance_scaling import VarianceScaling

__all__ = ["IVON", "Proximal", "VarianceScaling"]
