"""Training many runs at once, as one compiled program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minimand import backend
from minimand.study._candidates import Candidate
from minimand.study._problem import Problem
from minimand.study._run import Run, epoch_record, run_of

# Reports of progress in a training.
_REPORTS = 10
# Bytes for the data and weights, their gradients and the like of trainings at once.
_MEMORY = 2**30


@dataclass(frozen=True)
class Traced:
    """The runs of a candidate with these seeds, whose folds have equal numbers of features.

    `step` is its `TracedStep`, and `states` are what the runs begin with.
    """

    candidate: Candidate
    seeds: tuple[int, ...]
    step: Any
    states: Sequence[Sequence[np.ndarray]]


def trace(problem: Problem, candidate: Candidate, seeds: Sequence[int]) -> Traced:
    """Trace a candidate's training step.

    Raises:
        Exception: whatever JAX raises where it cannot.
    """
    trainer, states = problem.beginnings(candidate, seeds)
    data = problem.judge(seeds).data
    rows = problem.order(seeds[0], 0).shape[1]
    step = backend.many_fits.TracedStep(trainer, (data.x[0, :rows], data.y[0, :rows]))
    return Traced(candidate, tuple(seeds), step, states)


def at_once(problem: Problem) -> int:
    """How many runs may train at once, for the sake of memory."""
    weights = sum(values.nbytes for values in problem.weights(0))
    rows = sum(values.nbytes for values in vars(problem.fold(0)).values() if isinstance(values, np.ndarray))
    # The weights, their gradients, Adam's two moments, the best epoch's, and as much again for what a step computes.
    return max(1, _MEMORY // (8 * weights + rows))


class VectorizedTraining:
    """Runs that train at once: of one candidate, or of candidates that differ in numbers only.

    Args:
        problem: what is trained.
        traced: the candidates, all with equal seeds.

    Raises:
        ValueError: the candidates differ in more than numbers.
        Exception: whatever JAX raises where it cannot map the step.
    """

    def __init__(self, problem: Problem, traced: Sequence[Traced]) -> None:
        self._problem, self._seeds = problem, traced[0].seeds
        self._runs = [(of.candidate, seed) for of in traced for seed in self._seeds]
        trainings = [(owner, state, fold) for owner, of in enumerate(traced) for fold, state in enumerate(of.states)]
        order = problem.order(self._seeds[0], 0).shape
        self._fits = backend.many_fits.ManyFits(
            [of.step for of in traced], trainings, problem.judge(self._seeds), order
        )

    def compile(self) -> None:
        """Compile the program; may be called from any thread."""
        self._fits.compile(self._problem.epochs)

    def run(self, on_epochs: Callable[[str, int], None]) -> Iterator[Run]:
        """Train; `on_epochs(candidate, n)` is told of n epochs of runs of a candidate as they pass."""
        rows: list[list[dict[str, Any]]] = [[] for _ in self._runs]
        seconds = []
        block = math.ceil(self._problem.epochs / _REPORTS)
        for first in range(0, self._problem.epochs, block):
            epochs = range(first, min(first + block, self._problem.epochs))
            orders = [np.stack([self._problem.order(seed, epoch) for seed in self._seeds]) for epoch in epochs]
            started = time.perf_counter()
            records = self._fits.run(orders, first)
            seconds.append((time.perf_counter() - started) / len(epochs) / len(self._runs))
            for lane in range(len(self._runs)):
                self._record(rows, lane, epochs, records, on_epochs)
            if not self._fits.active:
                break
        best_epochs, predictions, zeros = self._fits.results()
        for lane, (candidate, seed) in enumerate(self._runs):
            yield run_of(
                candidate,
                seed,
                self._problem.data.task,
                self._problem.fold(seed),
                rows[lane],
                int(best_epochs[lane]),
                predictions[lane],
                float(np.median(seconds)),
                float(zeros[lane]),
            )

    def _record(
        self,
        rows: list[list[dict[str, Any]]],
        lane: int,
        epochs: range,
        records: dict[str, np.ndarray],
        on_epochs: Callable[[str, int], None],
    ) -> None:
        candidate, seed = self._runs[lane]
        before = len(rows[lane])
        for index, epoch in enumerate(epochs):
            of = {name: values[index, lane] for name, values in records.items()}
            score = float(of.pop("score")) * self._problem.fold(seed).target_scale
            if of.pop("counts"):
                rows[lane].append(epoch_record(epoch, of, self._problem.metric, score))
        on_epochs(candidate.name, len(rows[lane]) - before)
