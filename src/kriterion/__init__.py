"""Kriterion changes what a Keras model minimises, where that is evaluated, and how its gradient is used."""

from kriterion import losses, optimizers, regularizers, transforms
from kriterion.trainer import Trainer

__version__ = "0.1.0"

__all__ = ["Trainer", "__version__", "losses", "optimizers", "regularizers", "transforms"]
