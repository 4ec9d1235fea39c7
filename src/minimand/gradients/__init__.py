"""Mean and variance of the gradients of examples; noise scale, batch size tests and other statistics of them."""

from minimand.gradients._moments import GradientMoments, gradient_moments
from minimand.gradients._running import RunningMoments
from minimand.gradients._statistics import (
    BatchTest,
    TrainingCost,
    cabs_batch_size,
    critical_batch_size,
    evidence,
    inner_product_test,
    noise_scale,
    noise_scale_of_replicas,
    noise_scale_of_sizes,
    norm_test,
    signal_to_noise,
    training_cost,
)

__all__ = [
    "BatchTest",
    "GradientMoments",
    "RunningMoments",
    "TrainingCost",
    "cabs_batch_size",
    "critical_batch_size",
    "evidence",
    "gradient_moments",
    "inner_product_test",
    "noise_scale",
    "noise_scale_of_replicas",
    "noise_scale_of_sizes",
    "norm_test",
    "signal_to_noise",
    "training_cost",
]
