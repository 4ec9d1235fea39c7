"""Transforms of an objective, L -> T(L): noise on the weights, sharpness, penalties and measurements."""

from minimand.transforms._base import Batch, Objective, Transform, Weights
from minimand.transforms._gradient_measures import MeasureGradient, MiniBatchVariance
from minimand.transforms._gradient_penalties import Fishr, GradientNormPenalty, GradientVariancePenalty
from minimand.transforms._sharpness_aware import SharpnessAware
from minimand.transforms._variational import IVONNoise, ScaleMixturePrior, VariationalWeightNoise
from minimand.transforms._weight_noise import WeightNoise
from minimand.transforms._weight_penalty import WeightPenalty

__all__ = [
    "Batch",
    "Fishr",
    "GradientNormPenalty",
    "GradientVariancePenalty",
    "IVONNoise",
    "MeasureGradient",
    "MiniBatchVariance",
    "Objective",
    "ScaleMixturePrior",
    "SharpnessAware",
    "Transform",
    "VariationalWeightNoise",
    "WeightNoise",
    "WeightPenalty",
    "Weights",
]
