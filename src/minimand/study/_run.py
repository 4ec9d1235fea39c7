"""What comes of one training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minimand.study._candidates import Candidate
from minimand.study._data import Fold
from minimand.study._metrics import Metric, metrics_of

FINISHED = "finished"
DIVERGED = "diverged"


@dataclass
class Run:
    """Every epoch of one training, and test metrics at the epoch that was best on validation.

    `zeros` is the fraction of the network's trainable weights that are exactly zero then; `note` says what was not as
    usual, for the report.
    """

    candidate: str
    seed: int
    status: str
    best_epoch: int
    test: dict[str, float]
    epochs: list[dict[str, Any]]
    seconds_per_epoch: float
    specification: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    zeros: float = 0.0


def run_of(
    candidate: Candidate,
    seed: int,
    task: str,
    fold: Fold,
    epochs: Sequence[dict[str, Any]],
    best_epoch: int,
    predictions: np.ndarray,
    seconds_per_epoch: float,
    zeros: float,
    note: str = "",
) -> Run:
    """The run of these epochs, judged by the best one's predictions (n_test, outputs) for the test rows."""
    finished = best_epoch >= 0 and math.isfinite(epochs[-1]["loss"]) and bool(np.isfinite(predictions).all())
    test = {metric.key: math.nan for metric in metrics_of(task)}
    if finished:
        truth, predicted = fold.in_units(task, predictions)
        test = {metric.key: metric.function(truth, predicted) for metric in metrics_of(task)}
    status = FINISHED if finished else DIVERGED
    specification = candidate.to_dict()
    return Run(
        candidate.name, seed, status, best_epoch, test, list(epochs), seconds_per_epoch, specification, note, zeros
    )


def epoch_record(epoch: int, logs: Mapping[str, Any], metric: Metric, value: float) -> dict[str, Any]:
    """What is kept of an epoch: Keras's logs, and the metric on validation rows."""
    return {"epoch": epoch, **{name: float(log) for name, log in logs.items()}, metric.key: value}
