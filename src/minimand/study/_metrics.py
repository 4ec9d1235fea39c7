"""By what candidates are judged: none trains on any of these alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras import ops
from sklearn import metrics as sk

from minimand.backend import Tensor
from minimand.metrics import expected_calibration_error


@dataclass(frozen=True)
class Metric:
    """A measure of test predictions; `greater_is_better` says which way to read differences."""

    key: str
    title: str
    greater_is_better: bool
    function: Callable[[np.ndarray, np.ndarray], float]


def _labels(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.argmax(axis=1)


def _log_loss(classes: np.ndarray, probabilities: np.ndarray) -> float:
    chosen = probabilities[np.arange(len(classes)), classes]
    return float(-np.log(np.clip(chosen, 1e-7, 1.0)).mean())


def _calibration_error(classes: np.ndarray, probabilities: np.ndarray) -> float:
    return float(expected_calibration_error(classes, probabilities))


REGRESSION = (
    Metric("mae", "MAE", False, lambda y, p: float(sk.mean_absolute_error(y, p))),
    Metric("rmse", "RMSE", False, lambda y, p: float(sk.root_mean_squared_error(y, p))),
    Metric("median_absolute_error", "MedAE", False, lambda y, p: float(sk.median_absolute_error(y, p))),
    Metric("r2", "R2", True, lambda y, p: float(sk.r2_score(y, p))),
)
CLASSIFICATION = (
    Metric("accuracy", "accuracy", True, lambda y, p: float(sk.accuracy_score(y, _labels(p)))),
    Metric("log_loss", "log loss", False, _log_loss),
    Metric("macro_f1", "macro F1", True, lambda y, p: float(sk.f1_score(y, _labels(p), average="macro"))),
    Metric("ece", "ECE", False, _calibration_error),
)


def metrics_of(task: str) -> tuple[Metric, ...]:
    """The metrics of a task; the first is the one that the verdict is about unless another is asked for."""
    return REGRESSION if task == "regression" else CLASSIFICATION


def selection_metric(task: str) -> Metric:
    """What picks the best epoch, on validation rows: one that moves smoothly."""
    return REGRESSION[0] if task == "regression" else CLASSIFICATION[1]


def selection_score(task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The `selection_metric` of (n, outputs) targets and predictions as a network has them, for compiled programs.

    For regression in units of the fold's `target_scale`.
    """
    if task == "regression":
        return lambda y, y_pred: ops.mean(ops.abs(ops.subtract(y, y_pred)))
    return lambda y, y_pred: -ops.mean(ops.sum(ops.multiply(y, ops.log(ops.clip(y_pred, 1e-7, 1.0))), axis=-1))
