"""The optimizer of a trainer: weights and the variables of losses and transforms, each treated as they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from minimand._keras import MULTI_OPTIMIZERS
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
            "(Keras adds loss scaling by itself), or give the rates in your own MultiOptimizer (Keras 3.15 or newer)."
        )
    for_loss = _for_loss(optimizer, loss_learning_rate)
    for_loss.weight_decay = None
    return LossVariablesOptimizer(optimizer, for_loss, in_state)


class LossVariablesOptimizer(keras.optimizers.Optimizer):
    """One optimizer for the weights, and an equal one with another learning rate for the loss's variables.

    Its `learning_rate` is that of the weights. Whoever sets the rate, as callbacks do, scales both rates.

    Args:
        for_weights: the optimizer of the weights.
        for_loss: the optimizer of the loss's variables.
        in_loss: tells whether a variable is the loss's.
    """

    def __init__(self, for_weights: Any, for_loss: Any, in_loss: Callable[[keras.Variable], bool]) -> None:
        super().__init__(0.0, name=for_weights.name)
        self._in_loss, self._of_loss = in_loss, frozenset[int]()
        self._ratio: float | None = None
        # Keras's callbacks would set the rates of `optimizers` one by one.
        self.parts = (for_weights, for_loss)

    def _shares(self, variables: Sequence[keras.Variable], values: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
        """Each optimizer that has variables among these, its variables, and the values that belong to them."""
        pairs = list(zip(variables, values, strict=True))
        for part, of_loss in zip(self.parts, (False, True), strict=True):
            share = [pair for pair in pairs if (id(pair[0]) in self._of_loss) == of_loss]
            if share:
                yield part, *map(list, zip(*share, strict=True))

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the variables of both optimizers."""
        if self.built:
            return
        self._of_loss = frozenset(id(variable) for variable in variables if self._in_loss(variable))
        for part, share, _ in self._shares(variables, variables):
            part.build(share)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        """Update each variable by its optimizer."""
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        self.build(list(trainable_variables))
        for part, share, gradients in self._shares(trainable_variables, grads):
            part.apply(gradients, share)
        self._iterations.assign_add(1)

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Put averages in the place of variables, if the optimizers average."""
        for part, share, _ in self._shares(var_list, var_list):
            part.finalize_variable_values(share)

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own variables and those of both optimizers."""
        return [*super().variables, *(variable for part in self.parts for variable in part.variables)]

    @property
    def learning_rate(self) -> Any:
        """Learning rate of the weights; the loss's rate keeps its ratio to this rate."""
        return self.parts[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        for_weights, for_loss = self.parts
        rate, loss_rate = (float(keras.ops.convert_to_numpy(part.learning_rate)) for part in self.parts)
        # A warm-up may start at 0.
        if rate > 0:
            self._ratio = loss_rate / rate
        for_weights.learning_rate = value
        if self._ratio is not None and not callable(value):
            for_loss.learning_rate = self._ratio * value

    @property
    def loss_scale_factor(self) -> Any:
        """The factor by which both optimizers have the loss scaled."""
        return self.parts[0].loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Any) -> None:
        # Keras's base class sets it before there are parts.
        for part in getattr(self, "parts", ()):
            part.loss_scale_factor = value

    @property
    def _model_variables_moving_average(self) -> list[keras.Variable]:
        """Keras's name of the averages of the variables, which `SwapEMAWeights` asks for."""
        averages = {
            id(variable): average
            for part, share, _ in self._shares(self._trainable_variables, self._trainable_variables)
            for variable, average in zip(share, part._model_variables_moving_average, strict=True)
        }
        return [averages[id(variable)] for variable in self._trainable_variables]


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
    """The optimizers inside Keras's loss scaling, `MultiOptimizer` and `LossVariablesOptimizer`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _plain_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, LossVariablesOptimizer):
        return list(optimizer.parts)
    if isinstance(optimizer, MULTI_OPTIMIZERS):
        return list(optimizer.optimizers)
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
