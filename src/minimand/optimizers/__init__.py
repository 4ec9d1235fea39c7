"""Optimizers for `compile`, with or without a trainer."""

from minimand.optimizers._ivon import IVON
from minimand.optimizers._proximal import Proximal
from minimand.optimizers._variance import AdaBelief, SNRScaling, VarianceAware

__all__ = ["IVON", "AdaBelief", "Proximal", "SNRScaling", "VarianceAware"]
