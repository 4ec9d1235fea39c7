"""The optimizer of a trainer: weights and the variables of losses and transforms, each treated as they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from minimand._state import StateLayer
from minimand._validation import check_float, is_number
from minimand.optimizers._base import WRAPPERS, MeasuredOptimizer, OptimizerWrapper
from minimand.optimizers._proximal import Proximal


def training_optimizer(optimizer: Any, loss_learning_rate: Any, state: StateLayer) -> Any:
    """The optimizer of a trainer: `optimizer`, with another learning rate for the variables in `state` if it is given.

    The variables need not exist yet; `state` is read when the optimizer is built.
    """

    def in_state(variable: keras.Variable) -> bool:
        return any(variable is own for own in state.variables)

    proximal = proximal_of(optimizer)
    if proximal is not None:
        proximal.leave_out(in_state)
    if loss_learning_rate is None:
        return optimizer
    if is_number(loss_learning_rate):
        check_float("Trainer.compile", "loss_learning_rate", loss_learning_rate, above=0.0)
    if isinstance(optimizer, MeasuredOptimizer) and optimizer.needs_transform:
        raise ValueError(
            "Trainer.compile: `loss_learning_rate` needs an optimizer without a transform of its own. Received: "
            f"loss_learning_rate={loss_learning_rate!r}, optimizer={type(optimizer).__name__}, which trains the "
            "weights together with its transform's variables. Leave out `loss_learning_rate`."
        )
    if isinstance(optimizer, WRAPPERS):
        raise ValueError(
            "Trainer.compile: `loss_learning_rate` needs a plain optimizer. "
            f"Received: optimizer={type(optimizer).__name__}. Pass the optimizer that it wraps "
            "(Keras adds loss scaling by itself), or give the rates in your own MultiOptimizer."
        )
    for_loss = _for_loss(optimizer, loss_learning_rate)
    for_loss.weight_decay = None

    def select(variable: keras.Variable) -> keras.optimizers.Optimizer:
        return for_loss if in_state(variable) else optimizer

    # Keras lists this one first among `optimizers`, before it knows the variables.
    select.default_optimizer = optimizer  # type: ignore[attr-defined]
    return LossVariablesOptimizer(select, name=optimizer.name)


class LossVariablesOptimizer(keras.optimizers.MultiOptimizer):
    """One optimizer for the weights, and an equal one with another learning rate for the loss's variables.

    Its `learning_rate` is that of the weights, so that callbacks that set the rate keep working.
    """

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the weights."""
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizers[0].learning_rate = value


def _for_loss(optimizer: keras.optimizers.Optimizer, learning_rate: Any) -> keras.optimizers.Optimizer:
    """An optimizer like this one with another learning rate."""
    if isinstance(optimizer, OptimizerWrapper):
        return optimizer.for_loss(_for_loss(optimizer.unwrapped(), learning_rate))
    rate = keras.saving.serialize_keras_object(learning_rate)
    config = {**optimizer.get_config(), "name": f"{optimizer.name}_loss", "learning_rate": rate}
    return type(optimizer).from_config(config)


def exclude_from_weight_decay(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Keep weight decay off these variables, in addition to the user's own exclusions."""
    for plain in _plain_optimizers(optimizer) if variables else ():
        # Keras's public method replaces earlier exclusions, so they are put back.
        excluded: set[Any] = getattr(plain, "_exclude_from_weight_decay", set())
        pattern = getattr(plain, "_exclude_from_weight_decay_pattern", None)
        plain.exclude_from_weight_decay(var_list=list(variables))
        plain._exclude_from_weight_decay |= excluded
        plain._exclude_from_weight_decay_pattern = pattern


def proximal_of(optimizer: Any) -> Proximal | None:
    """The `Proximal` among the optimizers that `optimizer` consists of."""
    return next((plain for plain in _plain_optimizers(optimizer) if isinstance(plain, Proximal)), None)


def _plain_optimizers(optimizer: Any) -> list[Any]:
    """The optimizers inside Keras's loss scaling and `MultiOptimizer`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _plain_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return [plain for inner in optimizer.optimizers for plain in _plain_optimizers(inner)]
    return [] if optimizer is None else [optimizer]


def portable(config: Any) -> Any:
    """A configuration whose optimizers every backend can load.

    On PyTorch, Keras writes PyTorch classes of Adam and others into files, which no other backend can load.
    """
    if isinstance(config, (list, tuple)):
        return [portable(part) for part in config]
    if not isinstance(config, dict):
        return config
    config = {key: portable(value) for key, value in config.items()}
    if str(config.get("module")).startswith("keras.src.backend.torch.optimizers."):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config
