"""One-class classification: a sphere around the embeddings of normal examples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend import cond

from kriterion._validation import check_float, check_several
from kriterion.backend import Tensor
from kriterion.losses._floats import working_float
from kriterion.losses._running_threshold import RunningThreshold, excess
from kriterion.losses.base import TrainableLoss

# Coordinates of the centre are at least this far from 0, which a network without biases reaches by vanishing.
_LEAST_COORDINATE = 0.1


@keras.saving.register_keras_serializable(package="kriterion")
class SoftBoundary(TrainableLoss):
    """Deep support vector data description: embeddings of normal examples inside of a sphere of trained radius.

    min over w, R^2 of R^2 + 1/nu mean_i (||phi(x_i; w) - c||^2 - R^2)+

    At the minimum a share nu of the training examples lies outside: this is the conditional value at risk of the
    squared distances (`kriterion.losses.CVaR`). The centre c is fixed: the mean of the first training batch's
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
        >>> import keras, numpy as np, kriterion
        >>> encoder = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)])
        >>> trainer = kriterion.Trainer(encoder)
        >>> trainer.compile("adam", kriterion.losses.SoftBoundary(0.1))
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
        name: str = "soft_boundary",
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        owner = "SoftBoundary"
        self.nu = check_float(owner, "nu", nu, above=0.0, below=1.0)
        self.given_center = None
        if center is not None:
            self.given_center = [check_float(owner, "center", c) for c in check_several(owner, "center", center)]

    def build(self, y_true_shape: Any, y_pred_shape: Any) -> None:
        size = y_pred_shape[-1]
        if len(y_pred_shape) < 2 or size is None or (self.given_center is not None and len(self.given_center) != size):
            raise ValueError(
                "SoftBoundary: predictions must be embeddings (batch, ..., d) of a known size d, that of `center`. "
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
        embeddings = ops.cast(y_pred, working_float(y_pred).name)
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
