"""Losses, with and without trainable variables."""

from kriterion.losses.adaptive_image import AdaptiveImage
from kriterion.losses.adaptive_robust import AdaptiveRobust
from kriterion.losses.adaptive_student_t import AdaptiveStudentT
from kriterion.losses.base import TrainableLoss
from kriterion.losses.batch_adaptive import BatchAdaptive
from kriterion.losses.confidence_weighted import ConfidenceWeighted
from kriterion.losses.cvar import CVaR
from kriterion.losses.error_weighted import ErrorWeighted
from kriterion.losses.general_robust import GeneralRobust
from kriterion.losses.learned_class_weights import LearnedClassWeights
from kriterion.losses.learned_threshold import LearnedThreshold
from kriterion.losses.logit_adjusted import LogitAdjusted
from kriterion.losses.mahalanobis import Mahalanobis
from kriterion.losses.quantile_threshold import QuantileThreshold
from kriterion.losses.robust import (
    general_robust,
    log_partition,
    robust_log_density,
    robust_weights,
    sample_robust,
    shape_of_power,
)
from kriterion.losses.soft_boundary import SoftBoundary
from kriterion.losses.temperature_scaled import TemperatureScaled
from kriterion.losses.uncertainty_weighted import TaskUncertainty, UncertaintyWeighted

__all__ = [
    "AdaptiveImage",
    "AdaptiveRobust",
    "AdaptiveStudentT",
    "BatchAdaptive",
    "CVaR",
    "ConfidenceWeighted",
    "ErrorWeighted",
    "GeneralRobust",
    "LearnedClassWeights",
    "LearnedThreshold",
    "LogitAdjusted",
    "Mahalanobis",
    "QuantileThreshold",
    "SoftBoundary",
    "TaskUncertainty",
    "TemperatureScaled",
    "TrainableLoss",
    "UncertaintyWeighted",
    "general_robust",
    "log_partition",
    "robust_log_density",
    "robust_weights",
    "sample_robust",
    "shape_of_power",
]
