"""Keras callbacks: what no metric can do."""

from kriterion.callbacks.sparsity import Sparsity

__all__ = ["Sparsity"]
