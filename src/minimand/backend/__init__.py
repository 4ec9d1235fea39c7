"""The framework in use. Only the modules in this package import jax, tensorflow or torch."""

from __future__ import annotations

import importlib
from typing import cast

import keras

from minimand.backend._protocol import Backend, Tensor

_SUPPORTED = ("jax", "tensorflow", "torch")

name: str = keras.backend.backend()
if name not in _SUPPORTED:
    raise ImportError(
        f"Minimand runs on the Keras backends {', '.join(_SUPPORTED)}. Received: {name!r}. "
        "Set the environment variable KERAS_BACKEND to one of them before importing keras."
    )
_module = cast(Backend, importlib.import_module(f"minimand.backend.{name}"))

TrainStep = _module.TrainStep
value_and_gradient = _module.value_and_gradient
pure_value_and_gradient = _module.pure_value_and_gradient
pullback = _module.pullback
custom_derivative = _module.custom_derivative
tap = _module.tap
noise = _module.noise
vmap = _module.vmap
summed = _module.summed
jit = _module.jit
put = _module.put
devices = _module.devices
replicas = _module.replicas
seed_unseeded_layers = _module.seed_unseeded_layers
keep_compiled_programs = _module.keep_compiled_programs
step_programs = _module.step_programs

__all__ = [
    "Tensor",
    "TrainStep",
    "custom_derivative",
    "devices",
    "jit",
    "keep_compiled_programs",
    "name",
    "noise",
    "pullback",
    "pure_value_and_gradient",
    "put",
    "replicas",
    "seed_unseeded_layers",
    "step_programs",
    "summed",
    "tap",
    "value_and_gradient",
    "vmap",
]
