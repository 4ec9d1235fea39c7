"""Conformance suites: what Minimand's own losses, regularizers, transforms, optimizers and backends go through."""

from minimand.testing._backends import BackendSuite
from minimand.testing._losses import LossSuite
from minimand.testing._numbers import finite_difference, gradient
from minimand.testing._optimizers import OptimizerSuite
from minimand.testing._regularizers import RegularizerSuite
from minimand.testing._transforms import LeastSquares, TransformSuite

__all__ = [
    "BackendSuite",
    "LeastSquares",
    "LossSuite",
    "OptimizerSuite",
    "RegularizerSuite",
    "TransformSuite",
    "finite_difference",
    "gradient",
]
