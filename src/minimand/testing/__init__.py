"""Conformance suites that test a loss, regularizer, transform or optimizer of your own as Minimand tests its own."""

from minimand.testing._losses import LossSuite
from minimand.testing._optimizers import OptimizerSuite
from minimand.testing._regularizers import RegularizerSuite
from minimand.testing._suite import finite_difference, gradient
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
