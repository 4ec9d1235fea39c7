"""Scores and calibration as Keras metrics, for `compile(metrics=...)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from minimand._config import config_of
from minimand._keras import get_keras_mask
from minimand._ops import safe_divide
from minimand._validation import check_int
from minimand.backend import Tensor
from minimand.metrics import _calibration as calibration
from minimand.metrics import _scores as scores


class _MeanScore(keras.metrics.MeanMetricWrapper):
    """The mean of a function that the subclass gives; the configuration has only the name and the dtype.

    `_direction` tells Keras's callbacks whether a lower or a higher value is better.
    """

    _direction = "down"

    def get_config(self) -> dict[str, Any]:
        return config_of(self)


@keras.saving.register_keras_serializable(package="minimand")
class Brier(_MeanScore):
    """The mean Brier score of class probabilities (`metrics.brier`).

    Use Brier to follow the quality of predicted probabilities in `fit` and `evaluate`.

    1/n sum_i sum_c (p_ic - 1[c = y_i])^2

    Args:
        name: name of the metric.
        dtype: of its variables.

    Source: Brier, Monthly Weather Review 78 (1950).

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.Brier()
        >>> metric.update_state([1], [[0.25, 0.75]])
        >>> round(float(metric.result()), 4)
        0.125
    """

    def __init__(self, name: str = "brier", dtype: Any = None) -> None:
        super().__init__(scores.brier, name, dtype)


@keras.saving.register_keras_serializable(package="minimand")
class GaussianNLL(_MeanScore):
    """The mean of `metrics.gaussian_nll` over examples.

    Use GaussianNLL for a model that predicts a mean and a standard deviation as its last axis.

    mean of log(2 pi s^2) / 2 + (y - m)^2 / (2 s^2); y (...,), predictions (..., 2) of m and s

    Args:
        name: name of the metric.
        dtype: of its variables.

    Source: Good, JRSS B 14 (1952).

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.GaussianNLL()
        >>> metric.update_state([0.0], [[0.0, 1.0]])
        >>> round(float(metric.result()), 4)
        0.9189
    """

    def __init__(self, name: str = "gaussian_nll", dtype: Any = None) -> None:
        super().__init__(_of_pair("GaussianNLL", scores.gaussian_nll), name, dtype)


@keras.saving.register_keras_serializable(package="minimand")
class GaussianCRPS(_MeanScore):
    """The mean of `metrics.gaussian_crps` over examples.

    Use GaussianCRPS for a model that predicts a mean and a standard deviation as its last axis.

    mean of s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)); y (...,), predictions (..., 2) of m and s

    Args:
        name: name of the metric.
        dtype: of its variables.

    Source: Gneiting and Raftery, JASA 102 (2007), section 4.2.

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.GaussianCRPS()
        >>> metric.update_state([0.0], [[0.0, 1.0]])
        >>> round(float(metric.result()), 4)
        0.2337
    """

    def __init__(self, name: str = "gaussian_crps", dtype: Any = None) -> None:
        super().__init__(_of_pair("GaussianCRPS", scores.gaussian_crps), name, dtype)


@keras.saving.register_keras_serializable(package="minimand")
class IntervalCoverage(_MeanScore):
    """The share of targets in their predicted intervals.

    Use IntervalCoverage for a model that predicts both ends of an interval as its last axis.

    mean of 1[low <= y <= high]; y (...,), predictions (..., 2) of low and high

    Args:
        name: name of the metric.
        dtype: of its variables.

    Source: Khosravi et al., IEEE Transactions on Neural Networks 22 (2011), equation 1.

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.IntervalCoverage()
        >>> metric.update_state([1.0, 5.0], [[0.0, 2.0], [0.0, 2.0]])
        >>> float(metric.result())
        0.5
    """

    _direction = "up"

    def __init__(self, name: str = "interval_coverage", dtype: Any = None) -> None:
        super().__init__(_of_pair("IntervalCoverage", calibration.interval_coverage), name, dtype)


@keras.saving.register_keras_serializable(package="minimand")
class IntervalWidth(_MeanScore):
    """The mean width of predicted intervals, in the targets' unit.

    Use IntervalWidth beside `IntervalCoverage`: wide intervals cover much.

    mean of high - low; predictions (..., 2) of low and high

    Args:
        name: name of the metric.
        dtype: of its variables.

    Source: Khosravi et al., IEEE Transactions on Neural Networks 22 (2011), equation 3, without its normalisation.

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.IntervalWidth()
        >>> metric.update_state([1.0], [[0.5, 2.0]])
        >>> float(metric.result())
        1.5
    """

    def __init__(self, name: str = "interval_width", dtype: Any = None) -> None:
        width = _of_pair("IntervalWidth", lambda y_true, low, high: calibration.interval_width(low, high))
        super().__init__(width, name, dtype)


@keras.saving.register_keras_serializable(package="minimand")
class ExpectedCalibrationError(keras.metrics.Metric):
    """The expected calibration error over all batches (`metrics.expected_calibration_error`).

    Use ExpectedCalibrationError to follow calibration in `fit` and `evaluate`.

    sum_b n_b/n |accuracy_b - confidence_b|, with bins b of the top class's probability

    Args:
        bins: number of bins >= 1, of equal width.
        name: name of the metric.
        dtype: of its variables.

    Raises:
        ValueError: `bins` is less than 1.

    Source: Guo et al., ICML 2017, equation 3.

    Examples:
        >>> import minimand
        >>> metric = minimand.metrics.ExpectedCalibrationError()
        >>> metric.update_state([0], [[0.75, 0.25]])
        >>> metric.update_state([1], [[0.75, 0.25]])
        >>> float(metric.result())
        0.25
    """

    _direction = "down"

    def __init__(self, bins: int = 15, name: str = "ece", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.bins = check_int("ExpectedCalibrationError", "bins", bins, minimum=1)
        self.count = self.add_weight((), initializer="zeros", name="count")
        self.gaps = self.add_weight((bins,), initializer="zeros", name="gaps")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch: classes or one-hot, probabilities (rows, ..., classes), and weights (rows, ...).

        Positions that a mask of the predictions excludes do not count.
        """
        weight, gaps = calibration.bin_gaps(y_true, y_pred, self.bins, sample_weight, get_keras_mask(y_pred))
        self.count.assign_add(ops.cast(weight, self.dtype))
        self.gaps.assign_add(ops.cast(gaps, self.dtype))

    def result(self) -> Tensor:
        """The error of all batches so far; 0 before the first."""
        return safe_divide(ops.sum(ops.abs(self.gaps.value)), self.count.value)

    def get_config(self) -> dict[str, Any]:
        return config_of(self)


def _of_pair(owner: str, function: Callable[[Any, Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """The function of targets and predictions with two numbers on the last axis; `owner` is for messages."""

    def of_pair(y_true: Any, y_pred: Any) -> Tensor:
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if len(y_pred.shape) == 0 or y_pred.shape[-1] != 2:
            raise ValueError(f"{owner}: predictions must have shape (..., 2). Received: shape {tuple(y_pred.shape)}")
        if len(y_true.shape) == len(y_pred.shape):
            y_true = ops.squeeze(y_true, axis=-1)
        return function(y_true, y_pred[..., 0], y_pred[..., 1])

    return of_pair
