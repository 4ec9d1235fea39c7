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

    A file has the variables under their position, as in Keras, or under the key that `keys` has for the variable's id.
    """

    def __init__(self, name: str | None = None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.parts: list[StateLayer] = []
        self.keys: dict[int, str] = {}
        # There is nothing to build. Unlike `build()`, this assignment allows variables that are made later.
        self.built = True

    def _by_key(self) -> dict[str, keras.Variable]:
        own = [*self._trainable_variables, *self._non_trainable_variables]
        without = [variable for variable in own if id(variable) not in self.keys]
        with_key = {self.keys[id(variable)]: variable for variable in own if id(variable) in self.keys}
        return {str(index): variable for index, variable in enumerate(without)} | with_key

    def save_own_variables(self, store: Any) -> None:
        """Keras's hook: put the values into `store`."""
        for key, variable in self._by_key().items():
            store[key] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Keras's hook: take the values from `store`."""
        own = self._by_key()
        if set(own) != set(store.keys()):
            raise ValueError(
                f"{self.name}: the file must have values for the variables {sorted(own)}. Received: values for "
                f"{sorted(store.keys())}. Compile the trainer as the saved one was, with the same layers frozen; a key "
                "such as 2_noise belongs to the weight number 2 of the model."
            )
        for key, variable in own.items():
            variable.assign(store[key])


def training_state(trainer: keras.Model) -> list[keras.Variable]:
    """All variables that training changes, each once: the model's, the optimizer's and the metrics'."""
    every = [*trainer.variables, *trainer.optimizer.variables, *trainer.metrics_variables]
    return list({id(variable): variable for variable in every}.values())
