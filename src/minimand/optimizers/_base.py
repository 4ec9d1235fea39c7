"""Base classes: an optimizer around another optimizer, and an optimizer that uses a transform's measurements."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import keras

from minimand import backend
from minimand._config import config_of, from_config
from minimand._keras import MULTI_OPTIMIZERS
from minimand.backend import Tensor

WRAPPERS = (keras.optimizers.LossScaleOptimizer, *MULTI_OPTIMIZERS)
# Keras's base class does this around an optimizer's own update. The wrapper does it, so the inner optimizer must not.
_AROUND_UPDATE = (
    "weight_decay", "clipnorm", "global_clipnorm", "clipvalue", "use_ema", "loss_scale_factor",
    "gradient_accumulation_steps",
)  # fmt: skip


def refuse_replicas(optimizer: keras.optimizers.Optimizer) -> None:
    """Raise a `NotImplementedError` if the step runs on several replicas."""
    if backend.replicas() > 1:
        raise NotImplementedError(
            f"{type(optimizer).__name__} does not work with tf.distribute, where each replica would have variables of "
            f"its own. Received: {backend.replicas()} replicas. Train on one device, or on JAX with keras.distribution."
        )


class OptimizerWrapper(keras.optimizers.Optimizer):
    """Base class of optimizers that change another optimizer's update, in `_backend_update_step`.

    The wrapper takes over the learning rate, weight decay, clipping, averaging and gradient accumulation. The inner
    optimizer is an unbuilt copy that only computes updates.

    Args:
        optimizer: a Keras optimizer that computes updates itself, or its name.
        name: name of the wrapper.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer | str, *, name: str) -> None:
        owner = type(self).__name__
        optimizer = keras.optimizers.get(optimizer)
        if not isinstance(optimizer, keras.optimizers.Optimizer) or isinstance(optimizer, WRAPPERS):
            raise TypeError(
                f"{owner}: `optimizer` must be a Keras optimizer that computes updates itself. "
                f"Received: optimizer={type(optimizer).__name__}. Put {owner} inside of it instead."
            )
        # The base class's method, because the configuration of another wrapper has no learning rate.
        config = keras.optimizers.Optimizer.get_config(optimizer)
        super().__init__(**{**config, "learning_rate": _rate(config), "name": name})
        self._optimizer_config = optimizer.get_config()
        # Keras's callbacks would take an attribute of Keras's name, `inner_optimizer`, for loss scaling.
        self.wrapped = type(optimizer).from_config(self._optimizer_config)
        for name in _AROUND_UPDATE:
            setattr(self.wrapped, name, None)
        self.wrapped.learning_rate = self._shared_learning_rate

    def _shared_learning_rate(self) -> Tensor:
        return self.learning_rate

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the variables of the wrapper and of the inner optimizer."""
        if self.built:
            return
        super().build(variables)
        self.wrapped.build(variables)
        self._make_variables(variables)

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        """Make the wrapper's own variables for these weights."""
        raise NotImplementedError

    @property
    def variables(self) -> list[keras.Variable]:
        """The wrapper's own variables and the inner optimizer's."""
        return [*super().variables, *self.wrapped.variables]

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        return config_of(self, {"optimizer": keras.saving.serialize_keras_object(self.unwrapped()), "name": self.name})

    def unwrapped(self) -> keras.optimizers.Optimizer:
        """An unbuilt optimizer like the one that was given, with the present learning rate."""
        optimizer = type(self.wrapped).from_config(self._optimizer_config)
        optimizer.learning_rate = _rate(keras.optimizers.Optimizer.get_config(self))
        return optimizer

    def for_loss(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer of the variables of a loss, whose updates `optimizer` computes: the same wrapper around it."""
        config = {**self.get_config(), "optimizer": keras.saving.serialize_keras_object(optimizer)}
        return type(self).from_config({**config, "name": f"{self.name}_loss"})

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """An optimizer made from `get_config()`."""
        with keras.saving.custom_object_scope(custom_objects or {}):
            return from_config(cls, config)


def _rate(config: dict[str, Any]) -> Any:
    """The learning rate of a configuration: a number or a schedule."""
    rate = config["learning_rate"]
    return keras.optimizers.schedules.deserialize(rate) if isinstance(rate, dict) else rate


class MeasuredOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers that can use what a transform measures at each weight.

    The transform registers a state variable for each weight by `track`. It makes its measurement the gradient of that
    variable, so the measurement arrives with the gradients of the weights. A subclass implements `_make_variables`
    and `_update`, which also assigns the state.
    """

    transform: ClassVar[str]
    """The class of `minimand.transforms` that measures."""

    def __init__(self, learning_rate: Any, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        # Keras would take a dictionary in an attribute of the optimizer for variables of the optimizer.
        self._tracked = SimpleNamespace(states={}, updated=[])

    @property
    def needs_transform(self) -> bool:
        """Tell whether the optimizer trains only with its transform."""
        return True

    def track(self, weight: keras.Variable, state: keras.Variable) -> None:
        """Called by the transform, which makes its measurement at `weight` the gradient of `state`."""
        self._tracked.states[id(weight)] = state

    @property
    def _state_ids(self) -> set[int]:
        return {id(state) for state in self._tracked.states.values()}

    def _weights(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        """The variables that are not states of the transform."""
        states = self._state_ids
        return [variable for variable in variables if id(variable) not in states]

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the variables."""
        if self.built:
            return
        if self.needs_transform and not self._tracked.states:
            raise ValueError(
                f"{type(self).__name__}: `transforms` must have minimand.transforms.{self.transform}. "
                f"Received: no {self.transform}. Train with a minimand.Trainer, and give `compile` "
                f"transforms=[minimand.transforms.{self.transform}()]."
            )
        super().build(variables)
        self._make_variables(self._weights(variables))

    def _make_variables(self, weights: list[keras.Variable]) -> None:
        """Make the optimizer's variables for these weights."""
        raise NotImplementedError

    def _backend_apply_gradients(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable]) -> None:
        """Keras's hook around a step. Not all variables are in a step; Keras leaves out those without a gradient."""
        self._tracked.updated = variables
        super()._backend_apply_gradients(grads, variables)

    def _clip_gradients(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Keras's hook: clip the gradients of weights, and leave the measurements as they are."""
        states = self._state_ids
        measured = [id(variable) in states for variable in self._tracked.updated]
        clipped = iter(super()._clip_gradients([g for g, m in zip(grads, measured, strict=True) if not m]))
        return [g if m else next(clipped) for g, m in zip(grads, measured, strict=True)]

    def _update_model_variables_moving_average(self, variables: Sequence[keras.Variable]) -> None:
        """Keras's hook after a step: average the weights; the states of the transform are not averaged."""
        super()._update_model_variables_moving_average(variables)
        states = self._state_ids
        for variable, average in zip(variables, self._model_variables_moving_average, strict=True):
            if id(variable) in states:
                average.assign(variable.value)

    def _backend_update_step(self, grads: Sequence[Tensor], variables: Sequence[keras.Variable], rate: Tensor) -> None:
        """Keras's hook between clipping and weight decay before, and averaging after."""
        refuse_replicas(self)
        gradients = {id(variable): gradient for variable, gradient in zip(variables, grads, strict=True)}
        for weight in self._weights(variables):
            state = self._tracked.states.get(id(weight))
            self._update(weight, gradients[id(weight)], rate, state, gradients.get(id(state)))

    def _update(self, weight: keras.Variable, gradient: Tensor, rate: Tensor, state: Any, measured: Any) -> None:
        """Update a weight.

        Args:
            weight: a weight.
            gradient: its gradient.
            rate: the learning rate.
            state: the transform's state variable for the weight.
            measured: the transform's measurement in this step, or None for a weight that it does not measure.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        return config_of(self, super().get_config())
