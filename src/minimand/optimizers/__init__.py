"""Optimizers for `compile`, with or without a trainer."""

from minimand.optimizers._ivon import IVON
from minimand.optimizers._proximal import Proximal
from minimand.optimizers._variance import MSVAG, SVAG, AdaBelief, SNRScaling

__all__ = ["IVON", "MSVAG", "SVAG", "AdaBelief", "Proximal", "SNRScaling"]
