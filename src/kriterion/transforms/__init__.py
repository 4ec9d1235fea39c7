"""Transforms of an objective: L -> T(L)."""

from kriterion.transforms._priors import ScaleMixturePrior
from kriterion.transforms.base import Batch, Transform
from kriterion.transforms.gradient_norm_penalty import GradientNormPenalty
from kriterion.transforms.gradient_variance_penalty import GradientVariancePenalty
from kriterion.transforms.ivon_noise import IVONNoise
from kriterion.transforms.learned_weight_noise import LearnedWeightNoise
from kriterion.transforms.measure_gradient import MeasureGradient
from kriterion.transforms.mini_batch_variance import MiniBatchVariance
from kriterion.transforms.sharpness_aware import SharpnessAware
from kriterion.transforms.weight_noise import WeightNoise
from kriterion.transforms.weight_penalty import WeightPenalty

__all__ = [
    "Batch",
    "GradientNormPenalty",
    "GradientVariancePenalty",
    "IVONNoise",
    "LearnedWeightNoise",
    "MeasureGradient",
    "MiniBatchVariance",
    "ScaleMixturePrior",
    "SharpnessAware",
    "Transform",
    "WeightNoise",
    "WeightPenalty",
]
