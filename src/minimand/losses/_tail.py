"""Losses with a trained threshold near a quantile of the losses: quantiles, the worst losses, and one-class spheres."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from minimand._keras import cond
from minimand._ops import at_least_float32
from minimand._validation import check_float, check_several
from minimand.backend import Tensor
from minimand.losses._base import TrainableLoss, update_running_mean, weighted_quantile

# The share of the unit that a step of training keeps.
_MOMENTUM = 0.9


class _TrainedThreshold(TrainableLoss):
    """A loss with a trained threshold t = c + s u that follows a quantile of values, whatever their size.

    u is trained. s is the running mean of |value - t|, so that a step of an optimizer is a fraction of the deviation of
    the values, and is large where t is far away. c changes with s such that t stays. The first t is the quantile of the
    first batch.

    The gradient by u is the gradient by t, without the factor s. The gradient thus stays of order 1 when the values
    shrink, and so do the steps of an optimizer that divides by the size of former gradients.
    """

    def add_threshold(self, quantile: float) -> None:
        """Make the variables of a threshold that starts at this quantile of the first batch."""
        self._quantile = quantile
        self._latent = self.add_weight(name="latent_threshold", logged=False)
        self._origin, self._unit, self._started = (
            self.add_statistic(name=name) for name in ("origin", "unit", "started")
        )
        self._log = self.add_log("threshold")

    @property
    def threshold(self) -> float:
        """The threshold t."""
        self.require_built()
        if not float(ops.convert_to_numpy(self._started)):
            raise ValueError(f"{type(self).__name__}: the threshold is not known yet. Call `fit` first.")
        return float(ops.convert_to_numpy(ops.stop_gradient(self._current_threshold())))

    def _current_threshold(self) -> Tensor:
        return self._origin.value + self._unit.value * self._latent.value

    def threshold_for(self, values: Tensor) -> Tensor:
        """Return t for values (batch, ...); in training the unit follows these values first."""
        dtype = self._origin.dtype
        constants = ops.cast(ops.stop_gradient(values), dtype)
        flat, importance = ops.reshape(constants, (-1,)), ops.reshape(self.importance(constants), (-1,))
        known = ops.stop_gradient(self._current_threshold())
        counted = ops.any(importance > 0)

        def first() -> Tensor:
            return ops.where(counted, weighted_quantile(flat, importance, self._quantile), known)

        threshold = cond(self._started.value > 0, lambda: known, first)
        latent = self._latent.value
        if self.training:
            deviation = ops.sum(importance * ops.abs(flat - threshold)) / ops.maximum(ops.sum(importance), 1e-30)
            unit = update_running_mean(self._unit, self._started, deviation, _MOMENTUM, counted)
            self._origin.assign(threshold - unit * ops.stop_gradient(latent))
        # The derivative by the latent variable is 1.
        threshold = threshold + (latent - ops.stop_gradient(latent))
        self._log.update_state(threshold)
        return ops.cast(threshold, values.dtype)


def _worst_mean(values: Tensor, threshold: Tensor, share: float) -> Tensor:
    """Return t + (v - t)+ / share, whose mean at the best t is the mean of the largest `share` of the values."""
    return threshold + ops.relu(values - threshold) / share


@keras.saving.register_keras_serializable(package="minimand")
class QuantileThreshold(_TrainedThreshold):
    """QuantileThreshold trains a threshold that a share 1 - q of the training examples exceeds.

    Use this loss for anomaly detection, to get a threshold along with an autoencoder or another model of scores.

    min over t of mean_i l_i + q (v_i - t)+ + (1 - q) (t - v_i)+, v_i = stop_gradient(l_i)

    The wrapped loss l alone trains the network, and t converges to the q-quantile of l, such as the error of an
    autoencoder. Without a wrapped loss, v_i are the predictions and l_i = 0. The predictions are then scores that
    another loss trains or has trained. The minimum over t is finite.

    Args:
        level: q in (0, 1).
        loss: a Keras loss, or the name of one, or None; its `reduction` and `dtype` are the defaults.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `threshold` is t, which is also in the logs. Without a wrapped loss the targets
        are not used. An example of sample weight k counts as k examples do; masked examples do not count.

    Raises:
        ValueError: `level` is outside (0, 1).
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

    def __init__(self, level: float, loss: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.level = check_float("QuantileThreshold", "level", level, above=0.0, below=1.0)
        self.loss = self.wrap(loss, optional=True)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        self.add_threshold(self.level)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        trained = self.loss is not None
        values = self.values_of(self.loss, y_true, y_pred) if trained else _scores(y_pred)
        constants = ops.stop_gradient(values)
        above = constants - self.threshold_for(constants)
        pinball = self.level * ops.relu(above) + (1 - self.level) * ops.relu(-above)
        return values + pinball if trained else pinball


def _scores(y_pred: Tensor) -> Tensor:
    """Return scores (batch, ...) in float32 or float64, without a last axis of size 1."""
    if len(y_pred.shape) > 1 and y_pred.shape[-1] == 1:
        y_pred = ops.squeeze(y_pred, -1)
    return at_least_float32(y_pred)


@keras.saving.register_keras_serializable(package="minimand")
class CVaR(_TrainedThreshold):
    """The conditional value at risk is the mean of the worst share 1 - q of the losses.

    Use this loss when the worst examples matter more than the mean, as in safety or fairness.

    min over w, t of mean_i t + (l_i(w) - t)+ / (1 - q)

    At the minimum t is the value at risk, the q-quantile of the losses. The mean over the worst examples of each batch
    is too small, by 4 % for exponential losses in batches of 32 at q = 0.9. The threshold t persists across batches, so
    it has no such bias. Only examples beyond t train the network: begin with the plain loss, and take batches much
    larger than 1/(1 - q). The minimum over t is finite.

    Args:
        loss: a Keras loss, or the name of one; its `reduction` and `dtype` are the defaults.
        level: q in (0, 1).
        name: name of the loss.
        **kwargs: `reduction` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss; `threshold` is t, which is also in the logs. An example of sample weight k
        counts as k examples do; masked examples do not count.

    Raises:
        ValueError: `level` is outside (0, 1).
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

    def __init__(self, loss: Any, level: float, *, name: str = "cvar", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.loss = self.wrap(loss)
        self.level = check_float("CVaR", "level", level, above=0.0, below=1.0)

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        self.add_threshold(self.level)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.values_of(self.loss, y_true, y_pred)
        return _worst_mean(values, self.threshold_for(values), 1 - self.level)


# Coordinates of the centre are at least this far from 0, which a network without biases reaches by vanishing.
_LEAST_COORDINATE = 0.1


@keras.saving.register_keras_serializable(package="minimand")
class DeepSVDD(_TrainedThreshold):
    """Deep support vector data description encloses the embeddings of normal examples in a sphere.

    Use this loss for anomaly detection when the training set has normal examples only, or nearly so.

    min over w, R^2 of R^2 + 1/nu mean_i (||phi(x_i; w) - c||^2 - R^2)+

    At the minimum a share nu of the training examples lies outside the sphere: the loss is the conditional value at
    risk of the squared distances (`minimand.losses.CVaR`). The centre c is fixed. By default c is the mean of the
    embeddings of the first training batch, with coordinates nearer to 0 than 0.1 moved to 0.1 or -0.1.

    The minimum over R^2 is finite and positive. The minimum over the network is 0 if the network can give c for any
    input: use layers without biases and unbounded activations, and stop before the distances vanish.

    Args:
        nu: share of the examples outside the sphere, in (0, 1).
        center: c, a sequence of numbers, or None for the mean of the first batch.
        **kwargs: `reduction`, `name` and `dtype`, as in `keras.losses.Loss`.

    Returns:
        A call returns the reduced loss, for embeddings (batch, ..., d) and any targets, which are not used. `radius` is
        R, and `sphere_center` is c. `threshold` is R^2, which is also in the logs. `score(embeddings)` is positive for
        anomalies.

    Raises:
        ValueError: `nu` is outside (0, 1), or `center` does not have the size of the embeddings.
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

    def __init__(self, nu: float = 0.1, *, center: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nu = check_float("DeepSVDD", "nu", nu, above=0.0, below=1.0)
        self.center = None
        if center is not None:
            self.center = [check_float("DeepSVDD", "center", c) for c in check_several("DeepSVDD", "center", center)]

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        size = y_pred_shape[-1]
        if len(y_pred_shape) < 2 or size is None or (self.center is not None and len(self.center) != size):
            raise ValueError(
                "DeepSVDD: predictions must be embeddings (batch, ..., d) of a known size d, the size of `center`. "
                f"Received: y_pred of shape {tuple(y_pred_shape)}, center={self.center}"
            )
        first = "zeros" if self.center is None else keras.initializers.Constant(self.center)
        self._center = self.add_statistic(size, first, name="center")
        self.add_threshold(1 - self.nu)

    @property
    def sphere_center(self) -> np.ndarray:
        """The centre c (d,)."""
        self.require_built()
        return ops.convert_to_numpy(self._center)

    @property
    def radius(self) -> float:
        """The radius R."""
        return max(self.threshold, 0.0) ** 0.5

    def score(self, embeddings: Any) -> np.ndarray:
        """Return ||phi - c||^2 - R^2 of embeddings (..., d), which is positive outside the sphere."""
        offset = np.asarray(embeddings, "float64") - self.sphere_center
        return np.sum(offset**2, axis=-1) - self.threshold

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        embeddings = at_least_float32(y_pred)
        offset = embeddings - ops.cast(self._center_for(embeddings), embeddings.dtype)
        squares = ops.sum(offset * offset, axis=-1)
        return _worst_mean(squares, self.threshold_for(squares), self.nu)

    def _center_for(self, embeddings: Tensor) -> Tensor:
        """Return the centre, which the first batch of training sets unless `center` was given."""
        known = self._center.value
        if self.center is not None:
            return known

        def measured() -> Tensor:
            importance = self.importance(embeddings[..., 0])[..., None]
            axes = tuple(range(len(embeddings.shape) - 1))
            mean = ops.sum(importance * embeddings, axis=axes) / ops.maximum(ops.sum(importance), 1e-30)
            apart = ops.where(mean < 0, -_LEAST_COORDINATE, _LEAST_COORDINATE)
            mean = ops.where(ops.abs(mean) < _LEAST_COORDINATE, ops.cast(apart, mean.dtype), mean)
            return ops.cast(ops.stop_gradient(mean), known.dtype)

        center = cond(self._started.value > 0, lambda: known, measured)
        if self.training:
            self._center.assign(center)
        return center
