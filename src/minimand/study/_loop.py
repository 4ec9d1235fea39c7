"""Training one run after the other, by `Trainer.fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from minimand import backend
from minimand._state import training_state
from minimand.study._candidates import Candidate
from minimand.study._metrics import selection_score
from minimand.study._problem import Problem
from minimand.study._run import Run, epoch_record, run_of
from minimand.trainer import Trainer


def train_in_a_loop(
    problem: Problem, candidate: Candidate, seeds: Sequence[int], on_epochs: Callable[[str, int], None], note: str = ""
) -> Iterator[Run]:
    """The runs of these seeds; `on_epochs(candidate, 1)` is called after each epoch.

    A trainer is compiled once for a number of features and set back to its beginnings for each seed.
    """
    for alike in problem.alike(seeds):
        trainer, beginnings = problem.beginnings(candidate, alike)
        for seed, values in zip(alike, beginnings, strict=True):
            for variable, value in zip(training_state(trainer), values, strict=True):
                variable.assign(value)
            yield _train(problem, candidate, trainer, seed, on_epochs, note)


def _train(
    problem: Problem,
    candidate: Candidate,
    trainer: Trainer,
    seed: int,
    on_epochs: Callable[[str, int], None],
    note: str,
) -> Run:
    backend.seed_unseeded_layers(seed)
    batches = _Batches(problem, seed)
    recorder = _Recorder(problem, seed, batches, lambda: on_epochs(candidate.name, 1))
    trainer.fit(batches, epochs=problem.epochs, verbose=0, shuffle=False, callbacks=[recorder])
    fold = problem.fold(seed)
    trainer.model.set_weights(recorder.best_weights or trainer.model.get_weights())
    predictions = _predict(trainer.model, fold.x_test, problem.batch_size)
    weights = [variable.numpy() for variable in trainer.model.trainable_variables]
    zeros = sum(int((values == 0).sum()) for values in weights) / sum(values.size for values in weights)
    # The first epoch compiles.
    seconds = float(np.median(recorder.seconds[1:] or recorder.seconds))
    task, epochs, best = problem.data.task, recorder.epochs, recorder.best_epoch
    return run_of(candidate, seed, task, fold, epochs, best, predictions, seconds, zeros, note)


class _Batches(keras.utils.PyDataset):
    """Training batches in the problem's order for the epoch that was begun last.

    Keras tells a `PyDataset` of the end of an epoch more often than there are epochs.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__()
        self.problem, self.seed, self.fold = problem, seed, problem.fold(seed)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.order = self.problem.order(self.seed, epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.order[index]
        return self.fold.x_train[rows], self.fold.y_train[rows]


class _Recorder(keras.callbacks.Callback):
    """Records each epoch, keeps the weights of the one that is best on validation, and ends what has ended."""

    def __init__(self, problem: Problem, seed: int, batches: _Batches, on_epoch: Callable[[], None]) -> None:
        super().__init__()
        self.problem, self.fold, self.batches, self.on_epoch = problem, problem.fold(seed), batches, on_epoch
        self.score = selection_score(problem.data.task)
        self.epochs: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.best = math.inf
        self.best_epoch = -1
        self.best_weights: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.batches.begin(epoch)
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        model = self.model.model
        predicted = _predict(model, self.fold.x_validation, self.problem.batch_size)
        score = float(self.score(self.fold.y_validation, predicted))
        self.epochs.append(epoch_record(epoch, logs or {}, self.problem.metric, score * self.fold.target_scale))
        if score < self.best:
            self.best, self.best_epoch, self.best_weights = score, epoch, model.get_weights()
        patience = self.problem.patience
        if not math.isfinite(self.epochs[-1]["loss"]) or (patience and epoch - self.best_epoch >= patience):
            self.model.stop_training = True
        self.on_epoch()


def _predict(model: keras.Model, x: np.ndarray, batch_size: int) -> np.ndarray:
    if len(x) <= 4096:
        return keras.ops.convert_to_numpy(model.predict_on_batch(x))
    return model.predict(x, batch_size=batch_size, verbose=0)
