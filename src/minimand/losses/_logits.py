"""Cross-entropies of changed logits: shifted by the class frequencies, or divided by a trained temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import loss_options
from minimand._ops import as_logits, at_least_float32, one_hot_targets
from minimand._validation import check_bool, check_float, check_several
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, extended, loss_config, without_masked
from minimand.parametrizations import Bounded


@keras.saving.register_keras_serializable(package="minimand")
class LogitAdjusted(keras.losses.Loss):
    """Logit adjustment adds the logarithms of the class frequencies to the logits, in training only.

    Use this loss when classes differ in frequency and the balanced error matters, the mean of the errors of the
    classes.

    l = -log softmax(f(x) + tau log pi)_y

    With tau = 1 the f of least loss ranks the classes as if all were equally frequent, so the loss is consistent for
    the balanced error. The loss needs no weights of examples, which an overparametrised network would fit away. Predict
    with f itself.

    Args:
        frequencies: counts or probabilities > 0 of the classes in training; two for one output of a sigmoid.
        tau: strength >= 0; 0 is plain cross-entropy.
        from_logits: whether predictions are logits instead of probabilities.
        name: name of the loss.
        **kwargs: `reduction` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, for class indices (batch, ...) or one-hot targets (batch, ..., K) and
        predictions (batch, ..., K), or (batch, ..., 1) with K = 2. A target that is not one of the classes gives NaN.

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
        name: str = "logit_adjusted",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = "LogitAdjusted"
        each = check_several(owner, "frequencies", frequencies)
        self.frequencies = [check_float(owner, "frequencies", f, above=0.0) for f in each]
        if len(self.frequencies) < 2:
            raise ValueError(
                f"{owner}: `frequencies` must have a number for each of 2 classes or more. "
                f"Received: frequencies={frequencies!r}"
            )
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
        # A constant shift does not matter, and without this one the logarithm of a count could overflow the softmax.
        shift = self.tau * np.log(np.divide(self.frequencies, np.max(self.frequencies)))
        logits = as_logits(y_pred, self.from_logits, binary=y_pred.shape[-1] == 1)
        if y_pred.shape[-1] == 1:
            logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
        targets = one_hot_targets("LogitAdjusted", y_true, logits.shape[:-1], count, y_true.dtype)
        adjusted = logits + ops.convert_to_tensor(shift, logits.dtype)
        return -ops.sum(ops.cast(targets, logits.dtype) * ops.log_softmax(adjusted, axis=-1), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make an equal loss."""
        return loss_config(self)


@keras.saving.register_keras_serializable(package="minimand")
class TemperatureScaled(TrainableLoss):
    """Temperature scaling divides the logits of a classifier by a trained temperature.

    Use this loss to calibrate the probabilities of a trained model: freeze the model (`model.trainable = False`) and
    fit T on held-out data.

    min over T of mean_i l(y_i, f(x_i) / T), T between the bounds of `temperature_range`

    T > 1 means that the model was overconfident. In joint training, T is the scale of the logits with a learning rate
    of its own. The log loss is proper, so T converges to the calibrated value. The minimum lies at a bound of T only if
    the model classifies every example correctly, or worse than by chance.

    Args:
        loss: a Keras cross-entropy, or the name of one. A loss of probabilities is given softmax(log p / T), or
            sigmoid(logit(p) / T) for a single output and for binary cross-entropies.
        temperature_range: bounds of T, 0 < low < 1 < high.
        from_logits: whether predictions are logits instead of probabilities; None asks `loss`.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `temperature` is T, which is also in the logs. `to_inference(model)` is a plain
        Keras model with scaled outputs.

    Raises:
        TypeError: `from_logits` is neither a boolean nor None.
        ValueError: the bounds do not enclose 1, or `from_logits` is None and `loss` does not tell.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "TemperatureScaled"
        self.loss = self.wrap(loss)
        low, high = check_several(owner, "temperature_range", temperature_range, 2)
        self.temperature_range = (
            check_float(owner, "temperature_range", low, above=0.0, below=1.0),
            check_float(owner, "temperature_range", high, above=1.0),
        )
        config = loss_options(self.loss)
        if from_logits is None:
            from_logits = self._loss_takes_logits(config)
        self.from_logits = check_bool(owner, "from_logits", from_logits)
        # A binary cross-entropy takes each label of an example by itself.
        self._binary = getattr(self.loss, "__name__", type(self.loss).__name__).lower().startswith("binary")
        self._axis = -1 if self._binary else config.get("axis", -1)

    def _loss_takes_logits(self, config: dict[str, Any]) -> bool:
        known = config.get("from_logits")
        if known is None and getattr(self.loss, "__module__", "").startswith("keras."):
            # Keras's cross-entropies as functions take probabilities, unless told otherwise.
            known = False if "crossentropy" in getattr(self.loss, "__name__", "") else None
        if known is None:
            raise ValueError(
                "TemperatureScaled: pass `from_logits=True` for logits or `from_logits=False` for probabilities. "
                "`from_logits` may be None only if `loss` is a cross-entropy of Keras, which tells. "
                f"Received: loss={self.loss!r}, from_logits=None"
            )
        return known

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
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
        scaled = self._scaled(y_pred, ops.cast(self._temperature.value, y_pred.dtype))
        return self.values_of(self.loss, y_true, scaled)

    def to_inference(self, model: keras.Model) -> keras.Model:
        """Return a plain Keras model with the scaled outputs of `model`; the two models share their weights.

        Raises:
            ValueError: `model` is not functional or sequential with one output.
        """
        temperature = self.temperature
        return extended("TemperatureScaled", model, lambda output: self._scaled(output, temperature))
