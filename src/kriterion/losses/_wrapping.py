"""What the losses that are made of another loss's values share."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

# Keras has no public name for it.
from keras.src.losses.losses import LossFunctionWrapper

from kriterion.backend import Tensor
from kriterion.losses._floats import working_float
from kriterion.losses.base import TrainableLoss


class WrappingLoss(TrainableLoss):
    """A loss of the values that another has at each example; the variables of that one are parts of its own."""

    loss_is_optional = False

    def __init__(self, loss: Any, *, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.loss = keras.losses.get(loss)
        if not callable(self.loss) and not (loss is None and self.loss_is_optional):
            raise ValueError(
                f"{type(self).__name__}: `loss` must be a Keras loss, or the name of one. Received: loss={loss!r}"
            )
        if isinstance(self.loss, TrainableLoss):
            self.state.parts.append(self.loss.state)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        if isinstance(self.loss, TrainableLoss):
            self.loss.build_once(y_true_shape, y_pred_shape)

    def check_minimum(self) -> None:
        super().check_minimum()
        if isinstance(self.loss, TrainableLoss):
            self.loss.check_minimum()

    def values_of_loss(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """The wrapped loss of each example (batch, ...), in float32 or float64."""
        if len(y_pred.shape) == 1:
            y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.expand_dims(y_pred, -1)
        if isinstance(self.loss, TrainableLoss):
            self.loss.training, self.loss._importances = self.training, self._importances
            self.loss.update_logs()
        # As in `compile`: a function by itself does not align (batch,) with (batch, 1).
        loss = self.loss if isinstance(self.loss, keras.losses.Loss) else LossFunctionWrapper(self.loss)
        values = loss.call(y_true, y_pred)
        if not values.shape:
            raise ValueError(
                f"{type(self).__name__}: `loss` must give a value for each example. Received: loss={self.loss!r}, "
                "which gives one for the batch."
            )
        return ops.cast(values, working_float(values).name)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WrappingLoss:
        return cls(**{**config, "loss": keras.saving.deserialize_keras_object(config["loss"])})
