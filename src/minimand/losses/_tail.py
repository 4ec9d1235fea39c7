"""One-class classification: a sphere around the embeddings of normal examples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import cond
from minimand._ops import at_least_float32
from minimand._validation import check_float, check_several
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, WrappingLoss, moved_mean, weighted_quantile

# A trained threshold in units of the spread around it.

# How much of the unit a step of training keeps.
_MOMENTUM = 0.9


class RunningThreshold:
    """t = c + s u, with u trained: near the quantile of values that change by orders of magnitude in training.

    s is the running mean of |value - t|, so that an optimizer's steps have the size of the values' spread, and large
    where t is far away. When s changes, c does too, so that t stays. The first t is the first batch's quantile.

    The gradient by u is the one by t, without the factor s: it stays of order 1 when the values shrink, and so do the
    steps of an optimizer that divides by the size of former gradients.
    """

    def __init__(self, loss: TrainableLoss, level: float) -> None:
        self.loss, self.level = loss, level
        self.latent = loss.add_weight(name="latent_threshold", logged=False)
        self.origin, self.unit, self.started = (
            loss.add_weight(name=name, trainable=False, aggregation="mean") for name in ("origin", "unit", "started")
        )
        self.log = loss.add_log("threshold")

    @property
    def value(self) -> Tensor:
        """The threshold as it is."""
        return self.origin.value + self.unit.value * self.latent.value

    def of(self, values: Tensor) -> Tensor:
        """The threshold for values (batch, ...); in training its unit follows theirs, in the first batch itself too."""
        dtype = self.origin.dtype
        constants = ops.cast(ops.stop_gradient(values), dtype)
        flat, importance = ops.reshape(constants, (-1,)), ops.reshape(self.loss.importance(constants), (-1,))
        latent, started = self.latent.value, self.started.value
        known = ops.stop_gradient(self.value)
        # A batch of which nothing counts tells nothing.
        told = ops.any(importance > 0)

        def first() -> Tensor:
            return ops.where(told, weighted_quantile(flat, importance, self.level), known)

        threshold = cond(started > 0, lambda: known, first)
        spread = ops.sum(importance * ops.abs(flat - threshold)) / ops.maximum(ops.sum(importance), 1e-30)
        unit, started = moved_mean(self.unit.value, spread, _MOMENTUM, started, told)
        origin = threshold - unit * ops.stop_gradient(latent)
        if self.loss.training:
            self.origin.assign(origin)
            self.unit.assign(unit)
            self.started.assign(started)
        # Forward origin + unit * latent.
        threshold = origin + unit * ops.stop_gradient(latent) + (latent - ops.stop_gradient(latent))
        self.log.update_state(threshold)
        return ops.cast(threshold, values.dtype)

    def read(self) -> float:
        """The threshold as a number."""
        if not float(ops.convert_to_numpy(self.started)):
            raise ValueError(f"{type(self.loss).__name__}: the threshold is known after the first batch of `fit`.")
        return float(ops.convert_to_numpy(ops.stop_gradient(self.value)))


def excess(values: Tensor, threshold: Tensor, share: float) -> Tensor:
    """T + (v - t)+ / share: its mean, minimised over t, is the mean of the largest `share` of the values."""
    return threshold + ops.relu(values - threshold) / share


# What the losses with a threshold at a quantile of another loss share.


class TailLoss(WrappingLoss):
    """A loss of another's values and a trained threshold near their quantile at `level`."""

    def __init__(self, loss: Any, level: float, *, reduction: str | None, name: str, dtype: Any) -> None:
        super().__init__(loss, reduction=reduction, name=name, dtype=dtype)
        self.level = check_float(type(self).__name__, "level", level, above=0.0, below=1.0)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        super().build(y_true_shape, y_pred_shape)
        self._threshold = RunningThreshold(self, self.level)

    @property
    def threshold(self) -> float:
        """The threshold t."""
        self.require_built()
        return self._threshold.read()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level}


# A threshold at a quantile of scores or losses.


@keras.saving.register_keras_serializable(package="minimand")
class QuantileThreshold(TailLoss):
    """A threshold that is exceeded by a share 1 - q of the training examples: for anomaly detection.

    min over t of mean_i l_i + q (v_i - t)+ + (1 - q) (t - v_i)+, v_i = stop_gradient(l_i)

    The network is trained by the wrapped loss as if there were no threshold; t goes to the q-quantile of that loss,
    such as an autoencoder's error. Without a wrapped loss v_i are the predictions themselves, scores that something
    else trains (another output's loss, or earlier training), and l_i = 0. The minimum over t alone is finite.

    Args:
        level: q in (0, 1).
        loss: a Keras loss, or the name of one, or None; its reduction is not used.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `threshold` is t, also in the logs. Targets of scores are not used. A sample weight
        of k makes an example count as k do, masked ones do not count.

    Raises:
        ValueError: `level` is not inside (0, 1).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Koenker, Bassett, "Regression quantiles", Econometrica 46, 1978, section 2.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> autoencoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1), keras.layers.Dense(3)])
        >>> trainer = minimand.Trainer(autoencoder)
        >>> trainer.compile("adam", minimand.losses.QuantileThreshold(0.99, "mean_squared_error"))
        >>> x = np.random.rand(256, 3)
        >>> history = trainer.fit(x, x, verbose=0)
        >>> anomalous = np.mean((x - autoencoder.predict(x, verbose=0)) ** 2, axis=-1) > trainer.loss.threshold
    """

    loss_is_optional = True

    def __init__(
        self,
        level: float,
        loss: Any = None,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "quantile_threshold",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, level, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        trained = self.loss is not None
        values = self.values_of_loss(y_true, y_pred) if trained else _scores(y_pred)
        constants = ops.stop_gradient(values)
        above = constants - self._threshold.of(constants)
        pinball = self.level * ops.relu(above) + (1 - self.level) * ops.relu(-above)
        return values + pinball if trained else pinball


def _scores(y_pred: Tensor) -> Tensor:
    """Scores (batch, ...), in float32 or float64; an axis of one score is dropped."""
    if len(y_pred.shape) > 1 and y_pred.shape[-1] == 1:
        y_pred = ops.squeeze(y_pred, -1)
    return at_least_float32(y_pred)


# The mean of the worst losses.


@keras.saving.register_keras_serializable(package="minimand")
class CVaR(TailLoss):
    """Conditional value at risk: the mean of the worst share 1 - q of the losses, with the threshold trained along.

    min over w, t of mean_i t + (l_i(w) - t)+ / (1 - q)

    At the minimum t is the value at risk, the q-quantile of the losses. A mean over each batch's own worst examples
    is too small, by 4 % for exponential losses in batches of 32 at q = 0.9; t, which persists, has no such bias. Only
    examples beyond t train the network: begin with the plain loss, and take batches much larger than 1/(1 - q). The
    minimum over t alone is finite.

    Args:
        loss: a Keras loss, or the name of one; its reduction is not used.
        level: q in (0, 1).
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss; `threshold` is t, also in the logs. A sample weight of k makes an example count as
        k do, masked ones do not count.

    Raises:
        ValueError: `level` is not inside (0, 1).
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Rockafellar, Uryasev, "Optimization of conditional value-at-risk", Journal of Risk 2, 2000, theorem 1.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> trainer = minimand.Trainer(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
        >>> trainer.compile("adam", minimand.losses.CVaR("mean_absolute_error", 0.9))
        >>> history = trainer.fit(np.random.rand(64, 3), np.ones((64, 1)), verbose=0)
        >>> trainer.loss.threshold > 0
        True
    """

    def __init__(
        self,
        loss: Any,
        level: float,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cvar",
        dtype: Any = None,
    ) -> None:
        super().__init__(loss, level, reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of_loss(y_true, y_pred)
        return excess(values, self._threshold.of(values), 1 - self.level)


# One-class classification: a sphere around the embeddings of normal examples.

# Coordinates of the centre are at least this far from 0, which a network without biases reaches by vanishing.
_LEAST_COORDINATE = 0.1


@keras.saving.register_keras_serializable(package="minimand")
class DeepSVDD(TrainableLoss):
    """Deep support vector data description: embeddings of normal examples inside of a sphere of trained radius.

    min over w, R^2 of R^2 + 1/nu mean_i (||phi(x_i; w) - c||^2 - R^2)+

    At the minimum a share nu of the training examples lies outside: this is the conditional value at risk of the
    squared distances (`minimand.losses.CVaR`). The centre c is fixed: the mean of the first training batch's
    embeddings, with coordinates nearer to 0 than 0.1 moved to 0.1 or -0.1.

    The minimum over R^2 alone is finite and positive. That over the network too is 0 if the network can give c for
    any input: use layers without biases and unbounded activations, and stop before the distances vanish.

    Args:
        nu: share of the examples outside, in (0, 1).
        center: c, a sequence of numbers, or None for the first batch's.
        reduction: as in `keras.losses.Loss`.
        name: name of the loss.
        dtype: dtype of the computation.

    Returns:
        As a call: the reduced loss, for embeddings (batch, ..., d); targets are not used, any will do. `radius` is R,
        `threshold` R^2, also in the logs; `score(embeddings)` is positive for anomalies.

    Raises:
        ValueError: `nu` is not inside (0, 1), or `center` does not have the embeddings' size.
        RuntimeError: on the first batch, if the loss was given to a stock `compile`.

    Source: Ruff et al., "Deep one-class classification", ICML 2018, equation 3 and section 3.3.

    Examples:
        >>> import keras, numpy as np, minimand
        >>> encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)])
        >>> trainer = minimand.Trainer(encoder)
        >>> trainer.compile("adam", minimand.losses.DeepSVDD(0.1))
        >>> x = np.random.normal(size=(256, 5))
        >>> history = trainer.fit(x, np.zeros(256), verbose=0)
        >>> trainer.loss.score(encoder.predict(x, verbose=0)).shape
        (256,)
    """

    def __init__(
        self,
        nu: float = 0.1,
        *,
        center: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "deep_svdd",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        owner = "DeepSVDD"
        self.nu = check_float(owner, "nu", nu, above=0.0, below=1.0)
        self.given_center = None
        if center is not None:
            self.given_center = [check_float(owner, "center", c) for c in check_several(owner, "center", center)]

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        size = y_pred_shape[-1]
        if len(y_pred_shape) < 2 or size is None or (self.given_center is not None and len(self.given_center) != size):
            raise ValueError(
                "DeepSVDD: predictions must be embeddings (batch, ..., d) of a known size d, that of `center`. "
                f"Received: y_pred of shape {tuple(y_pred_shape)}, center={self.given_center}"
            )
        first = "zeros" if self.given_center is None else keras.initializers.Constant(self.given_center)
        self.center = self.add_weight(size, first, name="center", trainable=False, aggregation="mean")
        self._threshold = RunningThreshold(self, 1 - self.nu)

    @property
    def threshold(self) -> float:
        """R^2."""
        self.require_built()
        return self._threshold.read()

    @property
    def radius(self) -> float:
        """R."""
        return max(self.threshold, 0.0) ** 0.5

    def score(self, embeddings: Any) -> np.ndarray:
        """||phi - c||^2 - R^2 of embeddings (..., d): positive outside of the sphere."""
        offset = np.asarray(embeddings, "float64") - ops.convert_to_numpy(self.center)
        return np.sum(offset**2, axis=-1) - self.threshold

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        embeddings = at_least_float32(y_pred)
        offset = embeddings - ops.cast(self._center_for(embeddings), embeddings.dtype)
        squares = ops.sum(offset * offset, axis=-1)
        return excess(squares, self._threshold.of(squares), self.nu)

    def _center_for(self, embeddings: Tensor) -> Tensor:
        """The centre: in the first batch of training, unless given, the mean of what counts there."""
        known = self.center.value
        if self.given_center is not None:
            return known

        def measured() -> Tensor:
            importance = self.importance(embeddings[..., 0])[..., None]
            axes = tuple(range(len(embeddings.shape) - 1))
            mean = ops.sum(importance * embeddings, axis=axes) / ops.maximum(ops.sum(importance), 1e-30)
            apart = ops.where(mean < 0, -_LEAST_COORDINATE, _LEAST_COORDINATE)
            mean = ops.where(ops.abs(mean) < _LEAST_COORDINATE, ops.cast(apart, mean.dtype), mean)
            return ops.cast(ops.stop_gradient(mean), known.dtype)

        center = cond(self._threshold.started.value > 0, lambda: known, measured)
        if self.training:
            self.center.assign(center)
        return center

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "nu": self.nu, "center": self.given_center}
