"""Where the variables of losses and transforms live."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="minimand")
class StateLayer(keras.layers.Layer):
    """A layer without a computation, that owns variables and other such layers.

    Keras trains, saves and jits only what it finds in layers; a variable on a plain object is silently
    lost. Every variable of a `TrainableLoss` or `Transform` is therefore held by one of these, and a
    `Trainer` holds one whose `parts` are those of its loss and transforms.
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.parts: list[StateLayer] = []
        # There is nothing to build; unlike `build()`, this leaves room for variables made later.
        self.built = True

    def replace_parts(self, parts: list[StateLayer]) -> None:
        """Hold these layers and no others (a recompiled trainer must not keep its former loss)."""
        self.parts.clear()
        self.parts.extend(parts)


def training_state(trainer: keras.Model) -> list[keras.Variable]:
    """All variables that training changes, each once: the model's, the optimizer's and the metrics'."""
    every = [*trainer.variables, *trainer.optimizer.variables, *trainer.metrics_variables]
    return list({id(variable): variable for variable in every}.values())
