"""Losses, with and without trainable variables."""

from minimand.losses._base import TrainableLoss
from minimand.losses._decision import LearnedThreshold
from minimand.losses._example_weighted import BatchAdaptive, ConfidenceWeighted, ErrorWeighted
from minimand.losses._image import AdaptiveImage
from minimand.losses._learned_weights import LearnedClassWeights, TaskUncertainty, UncertaintyWeighted
from minimand.losses._logits import LogitAdjusted, TemperatureScaled
from minimand.losses._metric import LMNN, NCA, ClassMahalanobis, Mahalanobis
from minimand.losses._robust import (
    AdaptiveRobust,
    AdaptiveStudentT,
    GeneralRobust,
    general_robust,
    log_partition,
    robust_log_density,
    robust_weights,
    sample_robust,
    shape_of_power,
)
from minimand.losses._tail import CVaR, DeepSVDD, QuantileThreshold

__all__ = [
    "LMNN",
    "NCA",
    "AdaptiveImage",
    "AdaptiveRobust",
    "AdaptiveStudentT",
    "BatchAdaptive",
    "CVaR",
    "ClassMahalanobis",
    "ConfidenceWeighted",
    "DeepSVDD",
    "ErrorWeighted",
    "GeneralRobust",
    "LearnedClassWeights",
    "LearnedThreshold",
    "LogitAdjusted",
    "Mahalanobis",
    "QuantileThreshold",
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
