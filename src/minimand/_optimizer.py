"""How the optimizer of a trainer treats the variables of losses and transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from minimand._state import StateLayer
from minimand.optimizers import Proximal, SNRScaling
from minimand.optimizers._base import MeasuredOptimizer


class LossVariablesOptimizer(keras.optimizers.MultiOptimizer):
    """One optimizer for the weights, a second like it, with a learning rate of its own, for the loss's variables.

    Unlike its base class it has a `learning_rate`, that of the weights, so that callbacks keep working.
    """

    @classmethod
    def from_optimizer(
        cls, optimizer: keras.optimizers.Optimizer, learning_rate: Any, state: StateLayer
    ) -> LossVariablesOptimizer:
        """Wrap an optimizer; variables found in `state` when the optimizer is built get `learning_rate`."""
        if isinstance(optimizer, MeasuredOptimizer) and optimizer.needs_transform:
            raise ValueError(
                "Trainer.compile: `loss_learning_rate` does not go with the optimizer "
                f"{type(optimizer).__name__}, which keeps variables of its transform together with the weights. "
                f"Received: loss_learning_rate={learning_rate!r}. Leave it out."
            )
        if isinstance(optimizer, (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)):
            raise ValueError(
                "Trainer.compile: `loss_learning_rate` needs a plain optimizer. "
                f"Received: optimizer={type(optimizer).__name__}. Pass the optimizer that it wraps "
                "(Keras adds loss scaling by itself), or give the rates in your own MultiOptimizer."
            )
        for_loss = _for_loss(optimizer, learning_rate)
        for_loss.weight_decay = None

        def select(variable: keras.Variable) -> keras.optimizers.Optimizer:
            return for_loss if any(variable is own for own in state.variables) else optimizer

        # Listed first among `optimizers`, before the variables are known: it has the learning rate.
        select.default_optimizer = optimizer  # type: ignore[attr-defined]
        return cls(select, name=optimizer.name)

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the weights."""
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizers[0].learning_rate = value


def _for_loss(optimizer: keras.optimizers.Optimizer, learning_rate: Any) -> keras.optimizers.Optimizer:
    """An optimizer like this one, with another learning rate and without proximal steps."""
    if isinstance(optimizer, Proximal):
        return _for_loss(optimizer.unwrapped(), learning_rate)
    config = {**optimizer.get_config(), "name": f"{optimizer.name}_loss"}
    if isinstance(optimizer, SNRScaling):
        config["optimizer"] = keras.saving.serialize_keras_object(_for_loss(optimizer.unwrapped(), learning_rate))
    else:
        config["learning_rate"] = keras.saving.serialize_keras_object(learning_rate)
    return type(optimizer).from_config(config)


def portable(config: Any) -> Any:
    """A configuration whose optimizers every backend knows.

    On PyTorch Keras names classes of its own for Adam and others, in files that no other backend can load then.
    """
    if isinstance(config, (list, tuple)):
        return [portable(part) for part in config]
    if not isinstance(config, dict):
        return config
    config = {key: portable(value) for key, value in config.items()}
    if str(config.get("module")).startswith("keras.src.backend.torch.optimizers."):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config


def proximal_of(optimizer: Any) -> Proximal | None:
    """The optimizer, if it is a `Proximal`, in or without loss scaling and a second one for the loss's variables."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        optimizer = next(iter(optimizer.optimizers), None)
    return optimizer if isinstance(optimizer, Proximal) else None


def without_proximal_steps(optimizer: Any, state: StateLayer) -> Any:
    """The optimizer; if it is a `Proximal`, its regularizer is kept off the variables that `state` will have."""
    proximal = proximal_of(optimizer)
    if proximal is not None:
        proximal.leave_out(lambda variable: any(variable is own for own in state.variables))
    return optimizer


def exclude_from_weight_decay(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Keep weight decay off these variables, besides what the user excluded."""
    if optimizer is None or not variables:
        return
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        exclude_from_weight_decay(optimizer.inner_optimizer, variables)
        return
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        for inner in optimizer.optimizers:
            exclude_from_weight_decay(inner, variables)
        return
    # The public method replaces earlier exclusions, so those are put back.
    excluded: set[Any] = getattr(optimizer, "_exclude_from_weight_decay", set())
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    optimizer.exclude_from_weight_decay(var_list=list(variables))
    optimizer._exclude_from_weight_decay |= excluded
    optimizer._exclude_from_weight_decay_pattern = pattern
