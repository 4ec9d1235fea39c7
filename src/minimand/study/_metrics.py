"""The metrics that judge candidates; no candidate trains on one of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras import ops
from sklearn import metrics as sk

from minimand.backend import Tensor
from minimand.metrics import expected_calibration_error
from minimand.study._settings import StudyError


@dataclass(frozen=True)
class Metric:
    """A measure of predictions; `greater_is_better` gives the direction of an improvement."""

    key: str
    title: str
    greater_is_better: bool
    function: Callable[[np.ndarray, np.ndarray], float]


def _log_loss(classes: np.ndarray, probabilities: np.ndarray) -> float:
    of_true_class = probabilities[np.arange(len(classes)), classes]
    return float(-np.log(np.clip(of_true_class, 1e-7, 1.0)).mean())


REGRESSION = (
    Metric("mae", "MAE", False, lambda y, p: float(sk.mean_absolute_error(y, p))),
    Metric("rmse", "RMSE", False, lambda y, p: float(sk.root_mean_squared_error(y, p))),
    Metric("median_absolute_error", "MedAE", False, lambda y, p: float(sk.median_absolute_error(y, p))),
    Metric("r2", "R2", True, lambda y, p: float(sk.r2_score(y, p))),
)
CLASSIFICATION = (
    Metric("accuracy", "accuracy", True, lambda y, p: float(sk.accuracy_score(y, p.argmax(axis=1)))),
    Metric("log_loss", "log loss", False, _log_loss),
    Metric("macro_f1", "macro F1", True, lambda y, p: float(sk.f1_score(y, p.argmax(axis=1), average="macro"))),
    Metric("ece", "ECE", False, lambda y, p: float(expected_calibration_error(y, p))),
)


def metrics_of(task: str) -> tuple[Metric, ...]:
    """The metrics of a task; the first one is the default of the verdict."""
    return REGRESSION if task == "regression" else CLASSIFICATION


def metric_of(task: str, key: str | None) -> Metric:
    """The metric of this key, or the first one of the task."""
    metrics = {metric.key: metric for metric in metrics_of(task)}
    if key is None:
        return metrics_of(task)[0]
    if key not in metrics:
        raise StudyError(f"--metric must be one of {', '.join(metrics)} for {task}. Received: {key!r}")
    return metrics[key]


def selection_metric(task: str) -> Metric:
    """The metric on validation rows that selects the best epoch; it is one that changes smoothly."""
    return REGRESSION[0] if task == "regression" else CLASSIFICATION[1]


def selection_score(task: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The `selection_metric` as a function of (n, outputs) tensors of targets and predictions, for compiled programs.

    The score of a regression is in units of the fold's `target_scale`.
    """
    if task == "regression":
        return lambda y, y_pred: ops.mean(ops.abs(ops.subtract(y, y_pred)))
    return lambda y, y_pred: -ops.mean(ops.sum(ops.multiply(y, ops.log(ops.clip(y_pred, 1e-7, 1.0))), axis=-1))
