"""A run: one candidate trained on one split, and how `Trainer.fit` trains runs one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from minimand import backend
from minimand._state import training_state
from minimand.study._candidates import Candidate
from minimand.study._data import take
from minimand.study._problem import Problem
from minimand.trainer import Trainer

# A network predicts for at most this many rows at a time.
ROWS = 1024

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

    `split` is the number of the split. `zeros` is the fraction of the network's trainable weights that are exactly zero
    at that epoch. `note` tells the page what was unusual in the training. With a given test set, `resampled` has the
    metric of the verdict on resampled test rows, the same ones for all runs.
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
    split: int = 0
    resampled: list[float] = field(default_factory=list)


def run_of(
    problem: Problem,
    candidate: Candidate,
    seed: int,
    epochs: list[dict[str, Any]],
    best_epoch: int,
    predictions: Sequence[np.ndarray],
    **others: Any,
) -> Run:
    """The run of these epochs, judged by the predictions of its best epoch for the test rows, for each output."""
    predicted = all(np.isfinite(values).all() for values in predictions)
    finished = best_epoch >= 0 and math.isfinite(epochs[-1]["loss"]) and predicted
    test, rows, resampled = dict.fromkeys(problem.metrics.every, math.nan), problem.fold(seed).split.test, []
    if finished:
        test = measured(problem, seed, rows, predictions)
        if problem.data.splits.kind == "test":
            main = problem.metrics.main
            for drawn in problem.data.splits.resampled_test():
                parts = [values[drawn] for values in predictions]
                resampled.append(measured(problem, seed, rows[drawn], parts, (main,))[main])
    others |= {"specification": candidate.to_dict(), "split": problem.split(seed), "resampled": resampled}
    return Run(candidate.name, seed, FINISHED if finished else DIVERGED, best_epoch, test, epochs, **others)


def measured(
    problem: Problem,
    seed: int,
    rows: np.ndarray,
    predictions: Sequence[np.ndarray],
    keys: Collection[str] | None = None,
) -> dict[str, float]:
    """Metrics of the predictions for these rows, by key; by default all."""
    scaling, weights = problem.fold(seed).scaling, problem.data.sample_weight
    wanted = {key: of for key, of in problem.metrics.every.items() if keys is None or key in keys}
    judged = {
        output: problem.targets[output].judged(rows, predictions[output], *scaling[output])
        for output in {of.output for of in wanted.values()}
    }
    found = {}
    for key, of in wanted.items():
        truth, predicted, index = judged[of.output]
        found[key] = of.metric.function(truth, predicted, None if weights is None else weights[rows][index])
    return found


def validation_score(problem: Problem, seed: int, predictions: Sequence[np.ndarray]) -> float:
    """The score of predictions for the validation rows; smaller is better."""
    selection, fold = problem.metrics.selection, problem.fold(seed)
    rows = fold.split.validation
    if not all(np.isfinite(values).all() for values in predictions):
        return math.nan
    if not selection.losses:
        return selection.sign * measured(problem, seed, rows, predictions, (selection.key,))[selection.key]
    tensors = [keras.ops.convert_to_tensor(values) for values in predictions]
    truths = [keras.ops.convert_to_tensor(values[rows]) for values in fold.y]
    return float(selection.score(truths, tensors, fold.weights_of(rows)))


def epoch_record(problem: Problem, seed: int, epoch: int, logs: Mapping[str, Any], score: float) -> dict[str, Any]:
    """An epoch as it is stored: Keras's logs, and the selection metric in the target's units."""
    selection = problem.metrics.selection
    unit = 1.0 if selection.unit is None else float(problem.fold(seed).scaling[selection.unit][1][0])
    named = {name: float(log) for name, log in logs.items()}
    return {"epoch": epoch, **named, selection.key: selection.sign * score * unit}


def train_in_a_loop(problem: Problem, work: Work, on_epochs: OnEpochs, note: str = "") -> Iterator[Run]:
    """The runs of a piece of work, trained by `Trainer.fit` one after the other.

    A trainer is compiled once for each form of inputs, and is reset to its initial values for each seed.
    """
    for alike in problem.alike(work.seeds):
        trainer, beginnings = problem.beginnings(work.candidate, alike)
        for seed, values in zip(alike, beginnings, strict=True):
            for variable, value in zip(training_state(trainer), values, strict=True):
                variable.assign(value)
            yield _train(problem, work.candidate, trainer, seed, on_epochs, note)


def _train(problem: Problem, candidate: Candidate, trainer: Trainer, seed: int, on_epochs: OnEpochs, note: str) -> Run:
    backend.seed_unseeded_layers(seed)
    stream = problem.data.stream
    batches = _Batches(problem, seed) if stream is None else None
    recorder = _Recorder(problem, seed, batches, lambda: on_epochs(candidate.name, 1))
    trainer.fit(
        problem.stream(seed) if batches is None else batches,
        epochs=problem.settings.epochs,
        steps_per_epoch=stream and stream.steps,
        verbose=0,
        shuffle=False,
        callbacks=[recorder],
    )
    trainer.model.set_weights(recorder.best_weights or trainer.model.get_weights())
    weights = [variable.numpy() for variable in trainer.model.trainable_variables]
    return run_of(
        problem,
        candidate,
        seed,
        recorder.epochs,
        recorder.best_epoch,
        _predict(problem, trainer.model, seed, problem.fold(seed).split.test),
        # The first epoch compiles.
        seconds_per_epoch=float(np.median(recorder.seconds[1:] or recorder.seconds)),
        note=note,
        zeros=sum(int((values == 0).sum()) for values in weights) / max(1, sum(values.size for values in weights)),
    )


class _Batches(keras.utils.PyDataset):
    """Training batches in an order that `_Recorder` sets for each epoch.

    Keras calls `on_epoch_end` of a `PyDataset` more often than there are epochs.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__()
        self.problem, self.seed = problem, seed
        self.order = problem.order(seed, 0)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.problem.batch(self.seed, self.order[index])


class _Recorder(keras.callbacks.Callback):
    """Records each epoch, keeps the weights that are best on the validation rows, and stops without improvement."""

    def __init__(self, problem: Problem, seed: int, batches: _Batches | None, on_epoch: Callable[[], None]) -> None:
        super().__init__()
        self.problem, self.seed, self.batches, self.on_epoch = problem, seed, batches, on_epoch
        self.epochs: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.best = math.inf
        self.best_epoch = -1
        self.best_weights: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.batches is not None:
            self.batches.order = self.problem.order(self.seed, epoch)
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)
        model, problem, seed = self.model.model, self.problem, self.seed
        patience = problem.settings.patience
        score = validation_score(problem, seed, _predict(problem, model, seed, problem.fold(seed).split.validation))
        self.epochs.append(epoch_record(problem, seed, epoch, logs or {}, score))
        if score < self.best:
            self.best, self.best_epoch, self.best_weights = score, epoch, model.get_weights()
        if not math.isfinite(self.epochs[-1]["loss"]) or (patience and epoch - self.best_epoch >= patience):
            self.model.stop_training = True
        self.on_epoch()


def _predict(problem: Problem, model: keras.Model, seed: int, rows: np.ndarray) -> list[np.ndarray]:
    """Each output's predictions for these rows, a few thousand at a time."""
    every = []
    for first in range(0, len(rows), ROWS):
        predicted = model.predict_on_batch(take(problem.fold(seed).x, rows[first : first + ROWS]))
        every.append(keras.tree.flatten(keras.tree.map_structure(keras.ops.convert_to_numpy, predicted)))
    return [np.concatenate(parts) for parts in zip(*every, strict=True)]
