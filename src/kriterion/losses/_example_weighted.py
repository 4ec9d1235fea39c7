"""What the losses that weight another loss's examples share."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kriterion.backend import Tensor
from kriterion.losses._floats import working_float
from kriterion.losses.base import TrainableLoss


class ExampleWeighted(TrainableLoss):
    """A loss's value at each example times a weight that depends on it.

    mean_i v_i l_i, with v_i behind stop_gradient unless `differentiate`; with `normalize`, v_i / mean(v)

    A subclass has `example_weights`. It works in stock `compile` unless it, or the loss that it wraps, has variables.
    """

    def __init__(
        self, loss: Any, *, differentiate: bool, normalize: bool, reduction: str | None, name: str, dtype: Any
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.loss = keras.losses.get(loss)
        if not callable(self.loss):
            raise ValueError(
                f"{type(self).__name__}: `loss` must be a Keras loss, or the name of one. Received: loss={loss!r}"
            )
        self.differentiate, self.normalize = differentiate, normalize
        if isinstance(self.loss, TrainableLoss):
            self.state.parts.append(self.loss.state)

    @property
    def needs_trainer(self) -> bool:
        return isinstance(self.loss, TrainableLoss) and self.loss.needs_trainer

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        if isinstance(self.loss, TrainableLoss):
            self.loss.build_once(y_true_shape, y_pred_shape)

    def example_weights(self, values: Tensor, importance: Tensor) -> Tensor:
        """The weight of each example.

        Args:
            values: the loss's values (batch, ...), in float32 or float64.
            importance: how much each counts: its sample weight, 0 where masked.
        """
        raise NotImplementedError

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_pred.shape) == 1:
            y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.expand_dims(y_pred, -1)
        values = self._values(y_true, y_pred)
        values = ops.cast(values, working_float(values).name)
        importance = self.importance(values)
        weights = self.example_weights(values if self.differentiate else ops.stop_gradient(values), importance)
        if self.normalize:
            weights = ops.divide_no_nan(weights * ops.sum(importance), ops.sum(weights * importance))
        return weights * values

    def _values(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if not isinstance(self.loss, keras.losses.Loss):
            return self.loss(y_true, y_pred)
        if isinstance(self.loss, TrainableLoss):
            self.loss.training = self.training
            self.loss._importances = self._importances
        return self.loss.call(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "differentiate": self.differentiate,
            "normalize": self.normalize,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ExampleWeighted:
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})


def robust_example_weights(squares: Tensor, alpha: float) -> Tensor:
    """w(u)/w(0) of a robust loss, from u^2: (u^2/|a-2| + 1)^(a/2-1), for a <= 2."""
    if alpha == 2:
        return ops.ones_like(squares)
    if math.isinf(alpha):
        return ops.exp(-squares / 2)
    return ops.exp((alpha / 2 - 1) * ops.log1p(squares / (2 - alpha)))
