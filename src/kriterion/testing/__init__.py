"""Conformance suites: what Kriterion's own losses, regularizers, transforms, optimizers and backends go through."""

from kriterion.testing._numbers import finite_difference, gradient
from kriterion.testing.backends import BackendSuite
from kriterion.testing.losses import LossSuite
from kriterion.testing.optimizers import OptimizerSuite
from kriterion.testing.regularizers import RegularizerSuite
from kriterion.testing.transforms import LeastSquares, TransformSuite

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
