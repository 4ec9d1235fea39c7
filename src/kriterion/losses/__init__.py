"""Losses, with and without trainable variables."""

from kriterion.losses.adaptive_robust import AdaptiveRobust
from kriterion.losses.base import TrainableLoss
from kriterion.losses.general_robust import GeneralRobust

__all__ = ["AdaptiveRobust", "GeneralRobust", "TrainableLoss"]
