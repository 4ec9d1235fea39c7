"""Keras callbacks: what no metric can do."""

from kriterion.callbacks.gradient_report import GradientReport
from kriterion.callbacks.sparsity import Sparsity

__all__ = ["GradientReport", "Sparsity"]
