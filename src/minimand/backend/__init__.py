"""The framework in use. Only the modules in this package import jax, tensorflow or torch."""

from __future__ import annotations

import importlib
from typing import cast

import keras

from minimand._default_backend import BACKENDS
from minimand.backend._protocol import Backend
from minimand.backend._protocol import Tensor as Tensor

name: str = keras.backend.backend()
if name not in BACKENDS:
    raise ImportError(
        f"Minimand runs on the Keras backends {', '.join(BACKENDS)}. Received: {name!r}. "
        "Set the environment variable KERAS_BACKEND to one of them before importing keras."
    )
_module = cast(Backend, importlib.import_module(f"minimand.backend.{name}"))

TrainStep = _module.TrainStep
value_and_gradient = _module.value_and_gradient
pure_value_and_gradient = _module.pure_value_and_gradient
vjp = _module.vjp
traced = _module.traced
clone = _module.clone
custom_derivative = _module.custom_derivative
tap = _module.tap
noise = _module.noise
vmap = _module.vmap
sum_over_rows = _module.sum_over_rows
jit = _module.jit
scatter_update = _module.scatter_update
segment_sum = _module.segment_sum
erfc = _module.erfc
devices = _module.devices
replicas = _module.replicas
seed_unseeded_layers = _module.seed_unseeded_layers
keep_compiled_programs = _module.keep_compiled_programs
step_programs = _module.step_programs
