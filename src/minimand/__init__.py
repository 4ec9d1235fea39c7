"""Robust losses, weight noise, sharpness-aware training and structured sparsity for Keras 3."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from minimand.study import compare

__version__ = "0.1.0"

__all__ = [
    "Trainer",
    "__version__",
    "callbacks",
    "compare",
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


def __getattr__(name: str) -> Any:
    # The study needs packages of an extra, which the rest of Minimand does not import.
    if name == "compare":
        from minimand.study import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
