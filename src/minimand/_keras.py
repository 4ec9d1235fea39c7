"""Every private name of Keras that the package uses, and the reason why no public name will do."""

from typing import Any

import keras

# Compute in float32 inside a half-precision layer.
from keras.src.backend import AutocastScope as AutocastScope

# `keras.ops.cond` takes a new name at each call, so that torch.compile would recompile each time.
from keras.src.backend import cond as cond

# A mask travels on the tensor that it belongs to.
from keras.src.backend import get_keras_mask as get_keras_mask
from keras.src.backend import set_keras_mask as set_keras_mask

# Copy the scope that is open now.
from keras.src.backend.common.stateless_scope import get_stateless_scope as get_stateless_scope

# Align targets with predictions as `compile` does.
from keras.src.losses.losses import LossFunctionWrapper as LossFunctionWrapper

# Tell a call by `fit` from a call by the user.
from keras.src.trainers import compile_utils as compile_utils

# A public name, but Keras before 3.15 lacks it.
MULTI_OPTIMIZERS = (keras.optimizers.MultiOptimizer,) if hasattr(keras.optimizers, "MultiOptimizer") else ()


def loss_options(loss: Any) -> dict[str, Any]:
    """The options of a Keras loss: its configuration, and options that Keras leaves out of it, such as an `axis`."""
    return {**loss.get_config(), **getattr(loss, "_fn_kwargs", {})} if isinstance(loss, keras.losses.Loss) else {}


def graph_nodes(model: keras.Model) -> dict[int, list[Any]]:
    """The calls of the layers of a functional or Sequential model, by depth; empty if Keras does not know the graph."""
    if isinstance(model, keras.Sequential):
        # The attribute `inputs` raises an error if a layer could not be called on symbolic tensors.
        model = model._functional
    return getattr(model, "_nodes_by_depth", {})


def torch_device() -> str:
    """The device that Keras puts new tensors on: "meta" while Keras infers shapes. Only with PyTorch."""
    from keras.src.backend.torch.core import get_device

    return get_device()
