"""Conformance suites, which Minimand's own losses, regularizers, transforms and optimizers pass too."""

from minimand.testing._losses import LossSuite
from minimand.testing._numbers import finite_difference, gradient
from minimand.testing._optimizers import OptimizerSuite
from minimand.testing._regularizers import RegularizerSuite
from minimand.testing._transforms import LeastSquares, TransformSuite

__all__ = [
    "LeastSquares",
    "LossSuite",
    "OptimizerSuite",
    "RegularizerSuite",
    "TransformSuite",
    "finite_difference",
    "gradient",
]
