"""Robust losses, weight noise, sharpness-aware training and structured sparsity for Keras 3."""

from minimand._default_backend import choose_default_backend, require_keras

require_keras()
choose_default_backend()

from minimand import (  # noqa: E402
    callbacks,
    gradients,
    losses,
    metrics,
    optimizers,
    parametrizations,
    regularizers,
    sparsity,
    transforms,
    uncertainty,
)
from minimand.trainer import Trainer  # noqa: E402

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
    "regularizers",
    "sparsity",
    "transforms",
    "uncertainty",
]
