"""Losses, with and without trainable variables."""

from kriterion.losses.adaptive_image import AdaptiveImage
from kriterion.losses.adaptive_robust import AdaptiveRobust
from kriterion.losses.adaptive_student_t import AdaptiveStudentT
from kriterion.losses.base import TrainableLoss
from kriterion.losses.batch_adaptive import BatchAdaptive
from kriterion.losses.confidence_weighted import ConfidenceWeighted
from kriterion.losses.error_weighted import ErrorWeighted
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
    "AdaptiveImage",
    "AdaptiveRobust",
    "AdaptiveStudentT",
    "BatchAdaptive",
    "ConfidenceWeighted",
    "ErrorWeighted",
    "GeneralRobust",
    "TrainableLoss",
    "general_robust",
    "log_partition",
    "robust_log_density",
    "robust_weights",
    "sample_robust",
    "shape_of_power",
]
