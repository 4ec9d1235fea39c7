"""A learned temperature of a classifier's logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._ops import as_logits, at_least_float32, one_hot_targets
from minimand._validation import check_bool, check_float, check_several
from minimand.backend import Tensor
from minimand.losses._base import WrappingLoss, extended, without_masked
from minimand.parametrizations import Bounded

# Cross-entropy for balanced error, where the classes' frequencies are known.


@keras.saving.register_keras_serializable(package="minimand")
class LogitAdjusted(keras.losses.Loss):
    """Cross-entropy of logits to which the logarithms of the classes' frequencies are added, in training only.

    l = -log softmax(f(x) + tau log pi)_y

    With tau = 1 the f that minimises it ranks the classes as if all were equally frequent: the error to which this is
    consistent is the balanced one, the mean of the classes' own. Nothing is learned, and reweighting the examples,
    which an overparametrised network fits away, is not needed. Predict with f itself.

    Args:
        frequencies: of the classes in training, positive: counts or probabilities; two for one output of a sigmoid.
        tau: strength, at least 0; 0 is plain cross-entropy.
        from_logits: whether predictions are logits; else they are probabilities.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, for class indices (batch, ...) or one-hot targets (batch, ..., K) and predictions
        (batch, ..., K), or (batch, ..., 1) with K = 2; NaN for a target that is none of the classes.

    Raises:
        TypeError: `from_logits` is not a boolean.
        ValueError: a frequency is not positive, `tau` is negative, or the shapes do not fit.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 10 and theorem 1.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> model.compile("adam", minimand.losses.LogitAdjusted([900, 90, 10]))
        >>> history = model.fit(np.random.rand(8, 4), np.arange(8) % 3, verbose=0)
    """

    def __init__(
        self,
        frequencies: Sequence[float],
        *,
        tau: float = 1.0,
        from_logits: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "logit_adjusted",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        owner = "LogitAdjusted"
        each = check_several(owner, "frequencies", frequencies)
        self.frequencies = [check_float(owner, "frequencies", f, above=0.0) for f in each]
        if len(self.frequencies) < 2:
            raise ValueError(f"{owner}: `frequencies` must be those of 2 classes or more. Received: {frequencies!r}")
        self.tau = check_float(owner, "tau", tau, minimum=0.0)
        self.from_logits = check_bool(owner, "from_logits", from_logits)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        return super().__call__(*without_masked(y_true, y_pred), sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        count = len(self.frequencies)
        if y_pred.shape[-1] not in ((1, 2) if count == 2 else (count,)) or len(y_pred.shape) < 2:
            raise ValueError(
                f"LogitAdjusted: predictions must have a last axis of {count}, the number of `frequencies`"
                f"{' (or 1, for class 1)' if count == 2 else ''}. Received: y_pred of shape {tuple(y_pred.shape)}"
            )
        y_pred = at_least_float32(y_pred)
        # The same up to a constant, and no logarithm of a count overflows the softmax.
        shift = self.tau * np.log(np.divide(self.frequencies, np.max(self.frequencies)))
        logits = as_logits(y_pred, self.from_logits, binary=y_pred.shape[-1] == 1)
        if y_pred.shape[-1] == 1:
            logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
        targets = one_hot_targets("LogitAdjusted", y_true, logits.shape[:-1], count, y_true.dtype)
        adjusted = logits + ops.convert_to_tensor(shift, logits.dtype)
        return -ops.sum(ops.cast(targets, logits.dtype) * ops.log_softmax(adjusted, axis=-1), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "frequencies": self.frequencies,
            "tau": self.tau,
            "from_logits": self.from_logits,
        }


# A learned temperature of a classifier's logits.


@keras.saving.register_keras_serializable(package="minimand")
class TemperatureScaled(WrappingLoss):
    """A cross-entropy of logits divided by a trained temperature.

    min over T of mean_i l(y_i, f(x_i) / T), T between the bounds of `temperature_range`

    To calibrate a trained model, freeze it (`model.trainable = False`) and fit T on held-out data; T > 1 means that
    the model was too sure. In training, T is the scale of the logits with a learning rate of its own. Log loss is
    proper, so the minimum over T is where it should be; only if every example is classified rightly (or worse than by
    chance) does it lie at a bound.

    Args:
        loss: one of Keras's cross-entropies, or its name. Where it takes probabilities, the scaled ones are
            softmax(log p / T), or sigmoid(logit(p) / T) for a single output and for binary cross-entropies.
        temperature_range: bounds of T, 0 < low < 1 < high.
        from_logits: whether predictions are logits; None: as `loss` says.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `temperature` is T, also in the logs. `to_inference(model)` is a plain Keras model
        with scaled outputs.

    Raises:
        TypeError: `from_logits` is neither a boolean nor None.
        ValueError: the bounds do not enclose 1, or `loss` does not say what it takes and `from_logits` is None.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017, section 4.2.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> model.trainable = False
        >>> trainer = minimand.Trainer(model)
        >>> trainer.compile("adam", minimand.losses.TemperatureScaled("sparse_categorical_crossentropy"))
        >>> history = trainer.fit(np.random.rand(32, 4), np.arange(32) % 3, verbose=0)
        >>> calibrated = trainer.loss.to_inference(model)
    """

    def __init__(
        self,
        loss: Any,
        *,
        temperature_range: tuple[float, float] = (0.01, 100.0),
        from_logits: bool | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "temperature_scaled",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        owner = "TemperatureScaled"
        low, high = check_several(owner, "temperature_range", temperature_range, 2)
        self.temperature_range = (
            check_float(owner, "temperature_range", low, above=0.0, below=1.0),
            check_float(owner, "temperature_range", high, above=1.0),
        )
        config = self.loss.get_config() if isinstance(self.loss, keras.losses.Loss) else {}
        if from_logits is None:
            from_logits = self._loss_takes_logits(config)
        self.from_logits = check_bool(owner, "from_logits", from_logits)
        # Several labels of an example, each by itself.
        self._binary = getattr(self.loss, "__name__", type(self.loss).__name__).lower().startswith("binary")
        self._axis = -1 if self._binary else config.get("axis", -1)

    def _loss_takes_logits(self, config: dict[str, Any]) -> bool:
        known = config.get("from_logits")
        if known is None and getattr(self.loss, "__module__", "").startswith("keras."):
            # Keras's cross-entropies as functions, by their names.
            known = False if "crossentropy" in getattr(self.loss, "__name__", "") else None
        if known is None:
            raise ValueError(
                "TemperatureScaled: say by `from_logits` whether predictions are logits or probabilities; `loss` does "
                f"not tell. Received: loss={self.loss!r}, from_logits=None"
            )
        return known

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        between = Bounded(*self.temperature_range, log=True)
        self._temperature = self.add_weight((), 1.0, parametrization=between, name="temperature")

    @property
    def temperature(self) -> float:
        """The temperature T."""
        return float(self._temperature.numpy()) if self.built else 1.0

    def _scaled(self, y_pred: Tensor, temperature: Any) -> Tensor:
        binary = self._binary or y_pred.shape[self._axis] == 1
        logits = as_logits(y_pred, self.from_logits, binary=binary) / temperature
        if self.from_logits:
            return logits
        return ops.sigmoid(logits) if binary else ops.softmax(logits, axis=self._axis)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_pred.shape) == 1:
            y_true, y_pred = ops.reshape(y_true, (-1, 1)), ops.expand_dims(y_pred, -1)
        return self.values_of_loss(y_true, self._scaled(y_pred, ops.cast(self._temperature.value, y_pred.dtype)))

    def to_inference(self, model: keras.Model) -> keras.Model:
        """A plain Keras model that shares the given one's weights, with scaled outputs.

        Raises:
            ValueError: the model is not functional or sequential with one output.
        """
        temperature = self.temperature
        return extended("TemperatureScaled", model, lambda output: self._scaled(output, temperature))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature_range": self.temperature_range,
            "from_logits": self.from_logits,
        }
