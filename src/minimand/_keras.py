"""Every private name of Keras that the package uses, and the reason why no public name will do."""

from keras.src.backend import (
    AutocastScope,  # Compute in float32 inside a half-precision layer.
    cond,  # `keras.ops.cond` takes a new name at each call, so that torch.compile would recompile each time.
    get_keras_mask,  # A mask travels on the tensor that it belongs to.
    set_keras_mask,
)
from keras.src.backend.common.stateless_scope import get_stateless_scope  # Copy the scope that is open now.
from keras.src.losses.losses import LossFunctionWrapper  # Align targets with predictions as `compile` does.
from keras.src.trainers import compile_utils  # Tell a call by `fit` from a call by the user.


def torch_device() -> str:
    """The device that Keras puts new tensors on: "meta" while Keras infers shapes. Only with PyTorch."""
    from keras.src.backend.torch.core import get_device

    return get_device()


__all__ = [
    "AutocastScope",
    "LossFunctionWrapper",
    "compile_utils",
    "cond",
    "get_keras_mask",
    "get_stateless_scope",
    "set_keras_mask",
    "torch_device",
]
