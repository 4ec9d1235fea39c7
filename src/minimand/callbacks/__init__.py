"""Keras callbacks: sparsity logging and gradient figures."""

from minimand.callbacks._gradient_report import GradientReport
from minimand.callbacks._sparsity import Sparsity

__all__ = ["GradientReport", "Sparsity"]
