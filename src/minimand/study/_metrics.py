"""The metrics that judge candidates; no candidate trains on one of them alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops
from sklearn import metrics as sk
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from minimand.backend import Tensor
from minimand.metrics import expected_calibration_error
from minimand.study._settings import StudyError
from minimand.study._targets import Target

_Function = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], float]
_Losses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """The name and the direction of a metric, as stored results have them."""

    key: str
    title: str
    greater_is_better: bool

    @property
    def sign(self) -> int:
        """The factor that makes smaller values better."""
        return -1 if self.greater_is_better else 1


@dataclass(frozen=True)
class Metric(Measure):
    """A measure of predictions.

    Pass one to `Study` or `compare` as `metric` or `select` to judge by a function of your own.

    Args:
        key: letters, digits, `_` and `.`; the name in tables and files.
        title: the name on the page.
        greater_is_better: direction of an improvement.
        function: `function(truth, predicted, sample_weight)` returns a float; the weights are (n,) or None. The truth
            is (n,) or (n, quantities) in the target's units, (n,) indices of classes, or (n, labels). The predictions
            are as the truth for regression, otherwise (n, classes) or (n, labels) probabilities. Values at positions
            are rows here.
        losses: the same metric as a mean of losses, for selecting the epoch inside a compiled program:
            `losses(y, y_pred)` of tensors (n, ..., units), as a loss of Keras takes them, returns (n, ...) losses. None
            if the metric is not such a mean.

    Examples:
        >>> import numpy as np
        >>> from minimand.study import Metric
        >>> worst = Metric("worst", "largest error", False, lambda y, p, w: float(np.abs(y - p).max()))
        >>> worst.function(np.array([1.0, 2.0]), np.array([1.0, 4.0]), None)
        2.0
    """

    function: _Function
    losses: _Losses | None = None


def _of_classes(function: Callable[..., float], **arguments: Any) -> _Function:
    """A metric of scikit-learn of the most probable classes."""
    return lambda y, p, w: float(function(y, p.argmax(axis=1), sample_weight=w, **arguments))


def _one_against_rest(function: Callable[..., float]) -> _Function:
    """The mean over classes or labels; for two classes that of the second. Unknown if a class is missing."""

    def metric(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
        columns = [1] if y.ndim == 1 and p.shape[1] == 2 else range(p.shape[1])
        truths = [(y[:, k] if y.ndim == 2 else y == k).astype(int) for k in columns]
        if any(len(np.unique(truth)) < 2 for truth in truths):
            return float("nan")
        pairs = zip(truths, columns, strict=True)
        return float(np.mean([function(truth, p[:, k], sample_weight=w) for truth, k in pairs]))

    return metric


def _log_loss(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> float:
    of_true_class = probabilities[np.arange(len(classes)), classes]
    return float(np.average(-np.log(np.clip(of_true_class, 1e-7, 1.0)), weights=weights))


def _brier(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> float:
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[classes])
    return float(np.average(squares.sum(axis=1), weights=weights))


def _balanced_accuracy(classes: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None) -> float:
    present = np.unique(classes)
    recalls = sk.recall_score(
        classes, probabilities.argmax(axis=1), labels=present, average=None, sample_weight=weights, zero_division=0
    )
    return float(np.mean(recalls))


def _binary_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


# The same as tensors. A binary output of one unit holds the probability of the second class.


def _cross_entropies(y: Tensor, p: Tensor) -> Tensor:
    logs = ops.multiply(y, ops.log(ops.clip(p, 1e-7, 1.0)))
    if p.shape[-1] == 1:
        logs += ops.multiply(1.0 - y, ops.log(ops.clip(1.0 - p, 1e-7, 1.0)))
    return -ops.sum(logs, axis=-1)


def _label_losses(y: Tensor, p: Tensor) -> Tensor:
    p = ops.clip(p, 1e-7, 1 - 1e-7)
    return -ops.mean(y * ops.log(p) + (1.0 - y) * ops.log(1.0 - p), axis=-1)


def _mean_of(function: Callable[..., float], **arguments: Any) -> _Function:
    return lambda y, p, w: float(function(y, p, sample_weight=w, **arguments))


def _f1(average: str) -> _Function:
    return _of_classes(sk.f1_score, average=average, zero_division=0)


_REGRESSION = (
    Metric(
        "mae", "MAE", False, _mean_of(sk.mean_absolute_error), lambda y, p: ops.mean(ops.abs(ops.subtract(y, p)), -1)
    ),
    Metric("rmse", "RMSE", False, _mean_of(sk.root_mean_squared_error)),
    Metric("median_absolute_error", "MedAE", False, _mean_of(sk.median_absolute_error)),
    Metric("r2", "R2", True, _mean_of(sk.r2_score)),
    Metric("mape", "MAPE", False, _mean_of(sk.mean_absolute_percentage_error)),
)
_CLASSES = (
    Metric("accuracy", "accuracy", True, _of_classes(sk.accuracy_score)),
    Metric("log_loss", "log loss", False, _log_loss, _cross_entropies),
    Metric("macro_f1", "macro F1", True, _f1("macro")),
    Metric("ece", "ECE", False, lambda y, p, w: float(expected_calibration_error(y, p))),
    Metric("balanced_accuracy", "balanced accuracy", True, _balanced_accuracy),
    Metric("roc_auc", "ROC AUC", True, _one_against_rest(sk.roc_auc_score)),
    Metric("average_precision", "average precision", True, _one_against_rest(sk.average_precision_score)),
    Metric("brier", "Brier", False, _brier),
    Metric("iou", "mean IoU", True, _of_classes(sk.jaccard_score, average="macro", zero_division=0)),
)
_BINARY = (*_CLASSES, Metric("f1", "F1", True, _f1("binary")))
_LABELS = (
    Metric(
        "macro_f1",
        "macro F1",
        True,
        lambda y, p, w: float(sk.f1_score(y, p > 0.5, average="macro", sample_weight=w, zero_division=0)),
    ),
    Metric(
        "log_loss",
        "log loss",
        False,
        lambda y, p, w: float(np.average(_binary_losses(y, p).mean(axis=1), weights=w)),
        _label_losses,
    ),
    Metric("roc_auc", "ROC AUC", True, _one_against_rest(sk.roc_auc_score)),
    Metric("average_precision", "average precision", True, _one_against_rest(sk.average_precision_score)),
    Metric(
        "accuracy",
        "all labels right",
        True,
        lambda y, p, w: float(sk.accuracy_score(y, (p > 0.5).astype(int), sample_weight=w)),
    ),
)
_OF_TASK = {"regression": _REGRESSION, "binary": _BINARY, "multiclass": _CLASSES, "multilabel": _LABELS}
# The metric that changes smoothly, by which an epoch is selected unless the user names another one.
_SMOOTH = {"regression": "mae", "binary": "log_loss", "multiclass": "log_loss", "multilabel": "log_loss"}


@dataclass(frozen=True)
class Judged:
    """A metric of one output."""

    output: int
    metric: Metric


@dataclass(frozen=True)
class Selection:
    """The metric on validation rows that selects the epoch.

    Attributes:
        key, title, sign: as those of a `Metric`.
        judged: the metric, or None for the mean of smooth metrics over several outputs.
        losses: functions as `Metric.losses` with their outputs, whose means are averaged; empty if the metric is not a
            mean of losses.
        unit: index of the output in whose scale the score is, or None if the score has no unit.
    """

    key: str
    title: str
    sign: int
    judged: Judged | None
    losses: tuple[tuple[int, _Losses], ...]
    unit: int | None

    def score(self, y: Sequence[Tensor], y_pred: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
        """The score of the outputs' targets and predictions as tensors; smaller is better."""
        every = [weighted_mean(losses(y[k], y_pred[k]), weights[k]) for k, losses in self.losses]
        return sum(every[1:], every[0]) / len(every)


class Metrics:
    """The metrics of a study.

    Args:
        targets: targets of the outputs.
        metric: the metric of the verdict; None for the first one of the first output.
        select: the metric on validation rows that selects the epoch; None for one that changes smoothly, averaged over
            the outputs.

    Attributes:
        every: all metrics by key, with the output's name before the key if there are several outputs.
        main: the metric of the verdict.
        shown: the metrics of tables: four of each output, and the one of the verdict.
        selection: the metric that selects the epoch.

    Raises:
        StudyError: a metric is unknown.
    """

    def __init__(
        self, targets: Sequence[Target], metric: str | Metric | None = None, select: str | Metric | None = None
    ) -> None:
        self.targets = tuple(targets)
        self.every: dict[str, Judged] = {}
        self.shown: list[str] = []
        for index, target in enumerate(self.targets):
            keys = [self._add(each, index) for each in _OF_TASK[target.task]]
            self.shown += keys[:4]
        first = next(iter(self.every))
        self.main = self._found("--metric", metric) if metric is not None else first
        self.selection = self._selection(select)
        self.shown = list(dict.fromkeys([*self.shown, self.main]))

    def _add(self, metric: Metric, output: int) -> str:
        name = self.targets[output].name
        if name:
            metric = replace(metric, key=f"{name}.{metric.key}", title=f"{name} {metric.title}")
        self.every.setdefault(metric.key, Judged(output, metric))
        return metric.key

    def _found(self, option: str, given: str | Metric) -> str:
        """The key of a metric that is there, or of one that its name or object describes."""
        if isinstance(given, Metric):
            return self._add(given, 0)
        if given in self.every:
            return given
        output, key = 0, given
        for index, target in enumerate(self.targets):
            if target.name and given.startswith(f"{target.name}."):
                output, key = index, given[len(target.name) + 1 :]
        found = _named(key, self.targets[output].task)
        if found is None:
            raise StudyError(
                f"{option} must be one of {', '.join(self.every)}, pinball_0.9 (any quantile), or the name of a scorer "
                f"of scikit-learn or of a metric of Keras. Received: {given!r}"
            )
        try:
            found.function(*_EXAMPLES[self.targets[output].task], None)
        # The scorer of a library may raise anything for a task that is not its own.
        except Exception as error:
            raise StudyError(
                f"{option} {given!r} does not suit {self.targets[output].described}: {error}. Give another metric."
            ) from error
        return self._add(found, output)

    def _selection(self, select: str | Metric | None) -> Selection:
        smooth = [(index, _smooth(target)) for index, target in enumerate(self.targets)]
        if select is None and len(smooth) > 1:
            losses = tuple((index, metric.losses) for index, metric in smooth if metric.losses)
            return Selection("score", "mean score of the outputs", 1, None, losses, None)
        key = next(iter(smooth))[1].key if select is None else self._found("--select", select)
        judged = self.every[key]
        target, metric = self.targets[judged.output], judged.metric
        losses = ((judged.output, metric.losses),) if metric.losses else ()
        unit = judged.output if losses and target.task == "regression" and target.units == 1 else None
        return Selection(key, metric.title, metric.sign, judged, losses, unit)

    def of(self, key: str) -> Metric:
        """The metric of this key."""
        return self.every[key].metric


_THREE = np.array([0.5, 1.0, 2.0])
_EXAMPLES = {
    "regression": (_THREE, _THREE),
    "binary": (np.array([0, 1, 1]), np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])),
    "multiclass": (np.arange(3), np.full((3, 3), 0.2) + 0.4 * np.eye(3)),
    "multilabel": (1 - np.eye(3, dtype=int), np.full((3, 3), 0.4) + 0.2 * np.eye(3)),
}


def _named(key: str, task: str) -> Metric | None:
    """A quantile's metric, a scorer of scikit-learn or a metric of Keras by its name."""
    if task == "regression" and (quantile := re.fullmatch(r"pinball_(0?\.\d+)", key)):
        level = float(quantile[1])
        return Metric(key, f"pinball {level:g}", False, _mean_of(sk.mean_pinball_loss, alpha=level))
    if key in sk.get_scorer_names():
        return Metric(key, key.replace("_", " "), True, _scorer(key, task))
    made = getattr(keras.metrics, key, None)
    if isinstance(made, type) and issubclass(made, keras.metrics.Metric):
        try:
            made()
        except TypeError as error:
            raise StudyError(
                f"The metric keras.metrics.{key} needs arguments ({error}). Pass a minimand.study.Metric."
            ) from error
        smaller = re.search("Error|Loss|entropy|Divergence|Poisson|Hinge|LogCosh", key) is not None
        return Metric(key, key, not smaller, _keras_metric(made, task))
    return None


class _Predicted(BaseEstimator):
    """An estimator whose predictions for any inputs are those of a network."""

    def __init__(self, predicted: np.ndarray) -> None:
        self.predicted = predicted

    def fit(self, x: Any, y: Any = None) -> _Predicted:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self, x: Any) -> np.ndarray:
        return self.predicted


class _PredictedQuantities(RegressorMixin, _Predicted):
    pass


class _PredictedClasses(ClassifierMixin, _Predicted):
    @property
    def classes_(self) -> np.ndarray:
        return np.arange(self.predicted.shape[1])

    def predict(self, x: Any) -> np.ndarray:
        return self.predicted.argmax(axis=1)

    def predict_proba(self, x: Any) -> np.ndarray:
        return self.predicted


class _PredictedLabels(_PredictedClasses):
    def predict(self, x: Any) -> np.ndarray:
        return (self.predicted > 0.5).astype(int)


_PREDICTED = {"regression": _PredictedQuantities, "multilabel": _PredictedLabels}


def _scorer(name: str, task: str) -> _Function:
    def metric(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
        estimator = _PREDICTED.get(task, _PredictedClasses)(p)
        weights = {} if w is None else {"sample_weight": w}
        return float(sk.get_scorer(name)(estimator, np.zeros((len(y), 1)), y, **weights))

    return metric


def _keras_metric(made: type[keras.metrics.Metric], task: str) -> _Function:
    def metric(y: np.ndarray, p: np.ndarray, w: np.ndarray | None) -> float:
        measured = made()
        if task in ("binary", "multiclass") and not made.__name__.startswith("Sparse"):
            # Keras's binary metrics take the probability of the second class.
            y, p = (y[:, None], p[:, 1:]) if p.shape[1] == 2 else (np.eye(p.shape[1])[y], p)
        elif y.ndim == 1 and p.ndim == 1:
            y, p = y[:, None], p[:, None]
        measured.update_state(y, p, sample_weight=w)
        return float(measured.result())

    return metric


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of (n, ...) losses, weighted by (n,) or (n, ...) weights."""
    if weights is None:
        return ops.mean(losses)
    weights = ops.reshape(weights, weights.shape + (1,) * (len(losses.shape) - len(weights.shape)))
    weights = ops.broadcast_to(weights, losses.shape)
    return ops.sum(losses * weights) / ops.sum(weights)


def _smooth(target: Target) -> Metric:
    return next(each for each in _OF_TASK[target.task] if each.key == _SMOOTH[target.task])
