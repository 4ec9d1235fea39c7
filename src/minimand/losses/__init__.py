"""Losses, with and without trainable variables."""

from minimand.losses._base import Parameter, TrainableLoss
from minimand.losses._decision import (
    CostThreshold,
    F1Threshold,
    PrecisionAtRecallThreshold,
    RecallAtPrecisionThreshold,
)
from minimand.losses._example_weighted import (
    IRLS,
    Focal,
    GeneralizedCrossEntropy,
    GradientHarmonized,
    HardExampleMining,
    SelfPaced,
    StandardizedIRLS,
)
from minimand.losses._image import AdaptiveImage
from minimand.losses._learned_weights import GroupDRO, LearnedClassWeights, TaskUncertainty, UncertaintyWeighted
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
    "IRLS",
    "LMNN",
    "NCA",
    "AdaptiveImage",
    "AdaptiveRobust",
    "AdaptiveStudentT",
    "CVaR",
    "ClassMahalanobis",
    "CostThreshold",
    "DeepSVDD",
    "F1Threshold",
    "Focal",
    "GeneralRobust",
    "GeneralizedCrossEntropy",
    "GradientHarmonized",
    "GroupDRO",
    "HardExampleMining",
    "LearnedClassWeights",
    "LogitAdjusted",
    "Mahalanobis",
    "Parameter",
    "PrecisionAtRecallThreshold",
    "QuantileThreshold",
    "RecallAtPrecisionThreshold",
    "SelfPaced",
    "StandardizedIRLS",
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
