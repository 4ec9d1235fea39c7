"""A run: one candidate trained on one split, and how `Trainer.fit` trains runs one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from minimand import backend
from minimand._state import training_state
from minimand.study._candidates import Candidate
from minimand.study._metrics import metrics_of, selection_metric, selection_score
from minimand.study._problem import Problem
from minimand.trainer import Trainer

FINISHED = "finished"
DIVERGED = "diverged"

OnEpochs = Callable[[str, int], None]
"""`on_epochs(candidate, n)` is called when n more epochs of a candidate's runs have passed."""


@dataclass(frozen=True)
class Work:
    """Runs of one candidate that are trained together, always in the same groups so that all digits are the same."""

    candidate: Candidate
    seeds: tuple[int, ...]


@dataclass
class Run:
    """All epochs of one training, and the test metrics at the epoch that was best on the validation rows.

    `zeros` is the fraction of the network's trainable weights that are exactly zero at that epoch. `note` tells the
    page what was unusual in the training.
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
    problem: Problem,
    candidate: Candidate,
    seed: int,
    epochs: list[dict[str, Any]],
    best_epoch: int,
    predictions: np.ndarray,
    **others: Any,
) -> Run:
    """The run of these epochs, judged by the predictions (n_test, outputs) of its best epoch for the test rows."""
    finished = best_epoch >= 0 and math.isfinite(epochs[-1]["loss"]) and bool(np.isfinite(predictions).all())
    metrics = metrics_of(problem.data.task)
    test = {metric.key: math.nan for metric in metrics}
    if finished:
        truth, predicted = problem.fold(seed).in_units(problem.data.task, predictions)
        test = {metric.key: metric.function(truth, predicted) for metric in metrics}
    status, specification = FINISHED if finished else DIVERGED, candidate.to_dict()
    return Run(candidate.name, seed, status, best_epoch, test, epochs, specification=specification, **others)


def epoch_record(problem: Problem, seed: int, epoch: int, logs: Mapping[str, Any], score: float) -> dict[str, Any]:
    """An epoch as it is stored: Keras's logs, and the selection metric in the target's units."""
    key, scale = selection_metric(problem.data.task).key, problem.fold(seed).target_scale
    return {"epoch": epoch, **{name: float(log) for name, log in logs.items()}, key: score * scale}


def train_in_a_loop(problem: Problem, work: Work, on_epochs: OnEpochs, note: str = "") -> Iterator[Run]:
    """The runs of a piece of work, trained by `Trainer.fit` one after the other.

    A trainer is compiled once for each number of features, and is reset to its initial values for each seed.
    """
    for alike in problem.alike(work.seeds):
        trainer, beginnings = problem.beginnings(work.candidate, alike)
        for seed, values in zip(alike, beginnings, strict=True):
            for variable, value in zip(training_state(trainer), values, strict=True):
                variable.assign(value)
            yield _train(problem, work.candidate, trainer, seed, on_epochs, note)


def _train(problem: Problem, candidate: Candidate, trainer: Trainer, seed: int, on_epochs: OnEpochs, note: str) -> Run:
    backend.seed_unseeded_layers(seed)
    batches = _Batches(problem, seed)
    recorder = _Recorder(problem, batches, lambda: on_epochs(candidate.name, 1))
    trainer.fit(batches, epochs=problem.settings.epochs, verbose=0, shuffle=False, callbacks=[recorder])
    trainer.model.set_weights(recorder.best_weights or trainer.model.get_weights())
    weights = [variable.numpy() for variable in trainer.model.trainable_variables]
    return run_of(
        problem,
        candidate,
        seed,
        recorder.epochs,
        recorder.best_epoch,
        _predict(trainer.model, problem.fold(seed).x_test, problem.settings.batch_size),
        # The first epoch compiles.
        seconds_per_epoch=float(np.median(recorder.seconds[1:] or recorder.seconds)),
        note=note,
        zeros=sum(int((values == 0).sum()) for values in weights) / sum(values.size for values in weights),
    )


class _Batches(keras.utils.PyDataset):
    """Training batches in an order that `_Recorder` sets for each epoch.

    Keras calls `on_epoch_end` of a `PyDataset` more often than there are epochs.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__()
        self.seed, self.fold = seed, problem.fold(seed)
        self.order = problem.order(seed, 0)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index]
        return self.fold.x_train[rows], self.fold.y_train[rows]


class _Recorder(keras.callbacks.Callback):
    """Records each epoch, keeps the weights that are best on the validation rows, and stops without improvement."""

    def __init__(self, problem: Problem, batches: _Batches, on_epoch: Callable[[], None]) -> None:
        super().__init__()
        self.problem, self.batches, self.on_epoch = problem, batches, on_epoch
        self.score = selection_score(problem.data.task)
        self.epochs: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.best = math.inf
        self.best_epoch = -1
        self.best_weights: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.order = self.problem.order(self.batches.seed, epoch)
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        model, fold, patience = self.model.model, self.batches.fold, self.problem.settings.patience
        predicted = _predict(model, fold.x_validation, self.problem.settings.batch_size)
        score = float(self.score(fold.y_validation, predicted))
        self.epochs.append(epoch_record(self.problem, self.batches.seed, epoch, logs or {}, score))
        if score < self.best:
            self.best, self.best_epoch, self.best_weights = score, epoch, model.get_weights()
        if not math.isfinite(self.epochs[-1]["loss"]) or (patience and epoch - self.best_epoch >= patience):
            self.model.stop_training = True
        self.on_epoch()


def _predict(model: keras.Model, x: np.ndarray, batch_size: int) -> np.ndarray:
    if len(x) <= 4096:
        return keras.ops.convert_to_numpy(model.predict_on_batch(x))
    return model.predict(x, batch_size=batch_size, verbose=0)
