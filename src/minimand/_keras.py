"""Every private name of Keras that the package uses, and why no public one will do."""

from keras.src.backend import (  # A mask travels on the tensor that it belongs to.
    AutocastScope,  # Compute in float32 inside a half-precision layer.
    cond,  # `keras.ops.cond` takes a new name at each call: torch.compile then recompiles.
    get_keras_mask,
    set_keras_mask,
)
from keras.src.backend.common.stateless_scope import get_stateless_scope  # The scope that is open now, to copy it.
from keras.src.losses.losses import LossFunctionWrapper  # Align targets with predictions as `compile` does.
from keras.src.trainers import compile_utils  # Tell a call by `fit` from a call by the user.

__all__ = [
    "AutocastScope",
    "LossFunctionWrapper",
    "compile_utils",
    "cond",
    "get_keras_mask",
    "get_stateless_scope",
    "set_keras_mask",
]
