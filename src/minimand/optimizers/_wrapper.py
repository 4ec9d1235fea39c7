"""An optimizer around another one's update."""

from __future__ import annotations

from typing import Any

import keras

from minimand import backend
from minimand.backend import Tensor

_WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
# What Keras's base class does around an optimizer's own update; the wrapper does it, once.
_AROUND_UPDATE = {
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}


class NeedsTransform:
    """Base class of optimizers that train the weights together with variables of a transform of their own."""

    @property
    def needs_transform(self) -> bool:
        """Whether the optimizer, with the arguments that it has, needs its transform."""
        return True


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Base class of optimizers that change another one's update, in `_backend_update_step`.

    The wrapper has the other's learning rate, weight decay, clipping, averaging and gradient accumulation; the inner
    optimizer, an unbuilt copy, has its update only.

    Args:
        optimizer: a Keras optimizer that computes updates itself, or its name.
        name: name of the wrapper.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer | str, *, name: str) -> None:
        owner = type(self).__name__
        optimizer = keras.optimizers.get(optimizer)
        if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(optimizer, _WRAPPERS):
            raise TypeError(
                f"{owner}: `optimizer` must be a Keras optimizer that computes updates itself. "
                f"Received: optimizer={type(optimizer).__name__}. Wrap {owner} by it instead."
            )
        around = {key: getattr(optimizer, key) for key in _AROUND_UPDATE}
        # Of the base class: another wrapper's own configuration has no learning rate.
        learning_rate = _rate(keras.optimizers.Optimizer.get_config(optimizer)["learning_rate"])
        super().__init__(
            learning_rate,
            ema_momentum=optimizer.ema_momentum,
            ema_overwrite_frequency=optimizer.ema_overwrite_frequency,
            name=name,
            **around,
        )
        self._optimizer_config = optimizer.get_config()
        # Under Keras's name, `inner_optimizer`, its callbacks would take this one for loss scaling.
        self.wrapped = type(optimizer).from_config(self._optimizer_config)
        for key, value in _AROUND_UPDATE.items():
            setattr(self.wrapped, key, value)
        self.wrapped.learning_rate = self._shared_learning_rate

    def _shared_learning_rate(self) -> Tensor:
        return self.learning_rate

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the variables, the inner optimizer's too."""
        if self.built:
            return
        super().build(variables)
        self.wrapped.build(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """The wrapper's own variables and the inner optimizer's."""
        return [*super().variables, *self.wrapped.variables]

    def refuse_replicas(self) -> None:
        """Raise a `NotImplementedError` if the step runs on several replicas."""
        if backend.replicas() > 1:
            raise NotImplementedError(
                f"{type(self).__name__} does not work with tf.distribute, where each replica would have variables of "
                f"its own. Received: {backend.replicas()} replicas. Train on one device, or on JAX with "
                "keras.distribution."
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        return {"optimizer": keras.saving.serialize_keras_object(self.unwrapped()), "name": self.name}

    def unwrapped(self) -> keras.optimizers.Optimizer:
        """An unbuilt optimizer like the one that was given, with the learning rate of now."""
        optimizer = type(self.wrapped).from_config(self._optimizer_config)
        optimizer.learning_rate = _rate(super().get_config()["learning_rate"])
        return optimizer

    def for_loss(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer of the variables of a loss, whose updates `optimizer` computes: the same wrapper around it."""
        config = {**self.get_config(), "optimizer": keras.saving.serialize_keras_object(optimizer)}
        return type(self).from_config({**config, "name": f"{self.name}_loss"})

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """An optimizer made from `get_config()`."""
        deserialized = keras.saving.deserialize_keras_object
        return cls(**{name: deserialized(value, custom_objects=custom_objects) for name, value in config.items()})


def _rate(config: Any) -> Any:
    """A learning rate from a configuration: a number or a schedule."""
    return keras.optimizers.schedules.deserialize(config) if isinstance(config, dict) else config
