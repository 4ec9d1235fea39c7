"""Losses, with and without trainable variables."""

from kriterion.losses.adaptive_robust import AdaptiveRobust
from kriterion.losses.adaptive_student_t import AdaptiveStudentT
from kriterion.losses.base import TrainableLoss
from kriterion.losses.general_robust import GeneralRobust
from kriterion.losses.robust import (
    general_robust,
    log_partition,
    robust_log_density,
    robust_weights,
    sample_robust,
    shape_of_power,
)

__all__ = [
    "AdaptiveRobust",
    "AdaptiveStudentT",
    "GeneralRobust",
    "TrainableLoss",
    "general_robust",
    "log_partition",
    "robust_log_density",
    "robust_weights",
    "sample_robust",
    "shape_of_power",
]
