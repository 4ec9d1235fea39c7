"""Layers that hold the variables of losses and transforms."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="minimand")
class StateLayer(keras.layers.Layer):
    """A layer without a computation that owns variables and other such layers.

    Keras trains, saves and compiles only the variables that it finds in layers; a variable on a plain object is
    silently lost. So each `TrainableLoss` and each `Transform` has a state layer for its variables, and the state layer
    of a `Trainer` has those of its loss and transforms as `parts`.
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.parts: list[StateLayer] = []
        # There is nothing to build. Unlike `build()`, this assignment allows variables that are made later.
        self.built = True


def training_state(trainer: keras.Model) -> list[keras.Variable]:
    """All variables that training changes, each once: the model's, the optimizer's and the metrics'."""
    every = [*trainer.variables, *trainer.optimizer.variables, *trainer.metrics_variables]
    return list({id(variable): variable for variable in every}.values())
