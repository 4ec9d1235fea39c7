"""Kriterion changes what a Keras model minimises, where that is evaluated, and how its gradient is used."""

from kriterion._default_backend import choose_default_backend

choose_default_backend()

from kriterion import (  # noqa: E402
    callbacks,
    gradients,
    losses,
    metrics,
    optimizers,
    parametrizations,
    predict,
    regularizers,
    sparsity,
    transforms,
)
from kriterion.trainer import Trainer  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Trainer",
    "__version__",
    "callbacks",
    "gradients",
    "losses",
    "metrics",
    "optimizers",
    "parametrizations",
    "predict",
    "regularizers",
    "sparsity",
    "transforms",
]
