"""Training many runs at once, as one compiled program (JAX)."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand.backend import Tensor
from minimand.study._metrics import selection_score
from minimand.study._problem import Problem
from minimand.study._training import OnEpochs, Run, Work, epoch_record, run_of

# Bytes for the data, weights, gradients and so on of the runs that train at once.
_MEMORY = 2**30
# Progress is reported this many times in a training.
_REPORTS = 10
# A network predicts for at most this many rows at a time.
_ROWS = 4096
# A program of more floating-point operations (seconds of a core) is worth a thorough compilation.
_LONG = 1e11


def runs_at_once(problem: Problem) -> int:
    """The number of runs that memory allows to train at once."""
    weights = sum(values.nbytes for values in problem.weights(0))
    rows = sum(values.nbytes for values in vars(problem.fold(0)).values() if isinstance(values, np.ndarray))
    # The weights, their gradients, Adam's two moments, the best epoch's weights, and the same again for a step.
    return max(1, _MEMORY // (8 * weights + rows))


def train_at_once(
    problem: Problem, works: Sequence[Work], on_epochs: OnEpochs
) -> Generator[list[Run], None, list[tuple[Work, str]]]:
    """Yields the runs of works, some at a time; returns works that JAX cannot train at once, with a note of why."""
    programs: list[tuple[list[_Traced], _Runs, Future[None]]] = []
    rest: list[tuple[Work, BaseException]] = []
    # Other threads compile while this one traces the next program. No program runs beside a compiler, because its time
    # would then say nothing about the cost of a candidate.
    with ThreadPoolExecutor(max_workers=2) as compilers:
        for group in _groups(problem, works, rest):
            try:
                runs = _Runs(problem, group)
            except Exception as error:
                rest += [(traced.work, error) for traced in group]
            else:
                programs.append((group, runs, compilers.submit(runs.compile)))
    for group, runs, compiling in programs:
        failure = compiling.exception()
        if failure is None:
            yield list(runs.train(on_epochs))
        else:
            rest += [(traced.work, failure) for traced in group]
    reasons = [(work, (str(error).strip() or type(error).__name__).splitlines()[0]) for work, error in rest]
    return [(work, f"JAX cannot train its seeds at once: {reason}") for work, reason in reasons]


class _Traced(NamedTuple):
    """A piece of work whose folds have equal numbers of features, its `TracedStep`, and its runs' initial values."""

    work: Work
    step: Any
    states: Sequence[Sequence[np.ndarray]]


def trace(problem: Problem, work: Work) -> _Traced:
    """Trace the training step of a candidate; raises whatever JAX raises if it cannot."""
    trainer, states = problem.beginnings(work.candidate, work.seeds)
    data, rows = judge_of(problem, work.seeds).data, problem.order(work.seeds[0], 0).shape[1]
    batch = data["x_train"][0, :rows], data["y_train"][0, :rows]
    return _Traced(work, backend.step_programs.TracedStep(trainer, batch), states)


def _groups(problem: Problem, works: Sequence[Work], rest: list[tuple[Work, BaseException]]) -> Iterator[list[_Traced]]:
    """Groups of works that can share a program; works that cannot be traced go to `rest`, with the error."""
    limit = runs_at_once(problem)
    # Only candidates that are equal but for numbers can share a program.
    by_form: dict[str, list[Work]] = {}
    for work in works:
        form = re.sub(r"-?\d[\d.e+-]*", "0", json.dumps(work.candidate.to_dict(), sort_keys=True, default=str))
        by_form.setdefault(form, []).append(work)
    for alike in by_form.values():
        groups: list[list[_Traced]] = []
        for part in [Work(work.candidate, seeds) for work in alike for seeds in problem.alike(work.seeds)]:
            try:
                traced = trace(problem, part)
            # A user's network or objective may fail in any way when JAX traces it.
            except Exception as error:
                rest.append((part, error))
                continue
            for group in groups:
                small = (len(group) + 1) * len(part.seeds) <= limit
                if small and group[0].work.seeds == part.seeds and group[0].step.matches(traced.step):
                    group.append(traced)
                    break
            else:
                groups.append([traced])
        yield from groups


# Judgement after each epoch.


class Best(NamedTuple):
    """Each run's network at its best epoch, the score and the number of that epoch, and whether the run goes on."""

    network: Any
    score: Tensor
    epoch: Tensor
    active: Tensor


class Judge:
    """The data of some folds, and programs that judge any networks trained on them, whatever the objective.

    A run ends, which masks it, after an epoch whose loss is not finite, or `patience` epochs after its best one.

    Args:
        problem: data, network and settings.
        seeds: seeds of folds with equal numbers of features.
    """

    def __init__(self, problem: Problem, seeds: tuple[int, ...]) -> None:
        folds = [problem.fold(seed) for seed in seeds]
        # Tensors (folds, rows, ...) by the names that a `Fold` has for them.
        names = ("x_train", "y_train", "x_validation", "y_validation", "x_test")
        self.data = {name: ops.convert_to_tensor(np.stack([getattr(f, name) for f in folds])) for name in names}
        # (trainings, lifted step, program of an epoch)
        self.epoch_programs: list[tuple[int, Any, Any]] = []
        self._model, self._patience = problem.network(seeds[0]), problem.settings.patience
        self._score = selection_score(problem.data.task)
        self._programs: dict[int, tuple[Any, Any]] = {}

    def programs(self, best: Best, fold: Tensor) -> tuple[Any, Any]:
        """The programs that judge and that test so many networks."""
        if len(fold) not in self._programs:
            program = backend.step_programs.Program
            # The data are an argument, because XLA copies constants into the program.
            judging = program(self._judge, best, best.network, fold, best.score, 0, self.data, donate=(0,))
            self._programs[len(fold)] = judging, program(self._test, best.network, fold, self.data["x_test"])
        return self._programs[len(fold)]

    def _judge(
        self, best: Best, network: Any, fold: Tensor, loss: Tensor, epoch: Tensor, data: dict[str, Tensor]
    ) -> tuple[Best, dict[str, Tensor]]:
        """The best of each run after an epoch of this loss; its score, and whether the run had not ended before."""

        def judge(run: tuple[Best, Any, Tensor, Tensor]) -> tuple[Best, dict[str, Tensor]]:
            best, network, fold, loss = run
            predicted = self._predict(network, data["x_validation"][fold])
            score = self._score(data["y_validation"][fold], predicted)
            better = best.active & (score < best.score)
            number = ops.where(better, epoch, best.epoch)
            active = best.active & ops.isfinite(loss)
            if self._patience is not None:
                active &= epoch - number < self._patience
            kept = keras.tree.map_structure(lambda new, old: ops.where(better, new, old), network, best.network)
            judged = Best(kept, ops.where(better, score, best.score), number, active)
            return judged, {"score": score, "counts": best.active}

        return ops.vectorized_map(judge, (best, network, fold, loss))

    def _test(self, network: Any, fold: Tensor, x: Tensor) -> Tensor:
        """(runs, rows, ...) predictions for the test inputs."""
        return ops.vectorized_map(lambda run: self._predict(run[0], x[run[1]]), (network, fold))

    def _predict(self, network: Any, x: Tensor) -> Tensor:
        def outputs(rows: Tensor) -> Tensor:
            return self._model.stateless_call(*network, rows, training=False)[0]

        if len(x) <= _ROWS:
            return outputs(x)
        whole = (len(x) - 1) // _ROWS * _ROWS
        parts = ops.map(outputs, ops.reshape(x[:whole], (-1, _ROWS, *x.shape[1:])))
        return ops.concatenate([ops.reshape(parts, (-1, *parts.shape[2:])), outputs(x[whole:])])


def judge_of(problem: Problem, seeds: tuple[int, ...]) -> Judge:
    """The judge of these folds, which all candidates share."""
    if seeds not in problem.programs:
        problem.programs[seeds] = Judge(problem, seeds)
    return problem.programs[seeds]


# Training.


class _Runs:
    """Runs that train at once: of one candidate, or of candidates that differ in numbers only.

    Args:
        problem: data, network and settings.
        group: traced works with equal seeds.

    Raises:
        ValueError: the candidates differ in more than numbers.
        Exception: whatever JAX raises if it cannot map the step.
    """

    def __init__(self, problem: Problem, group: Sequence[_Traced]) -> None:
        self._problem, self._seeds = problem, group[0].work.seeds
        self._judge = judge_of(problem, self._seeds)
        self._runs = [(traced.work.candidate, seed) for traced in group for seed in self._seeds]
        self._fold = ops.convert_to_tensor(np.tile(np.arange(len(self._seeds), dtype="int32"), len(group)))
        states = [traced.step.state(values) for traced in group for values in traced.states]
        self._state = keras.tree.map_structure(lambda *values: np.stack(values), *states)
        self._lifted, self._numbers, self._program = self._programmed([traced.step for traced in group])
        count = len(self._runs)
        scores, epochs = np.full(count, np.inf, "float32"), np.full(count, -1, "int32")
        self._best = Best(self._lifted.step.network(self._state), scores, epochs, np.full(count, True))
        self._judging, self._testing = self._judge.programs(self._best, self._fold)

    def _programmed(self, steps: Sequence[Any]) -> tuple[Any, list[Tensor], Any]:
        """The lifted step, its numbers for these runs, and the program of an epoch: an earlier one if it suits."""
        for count, lifted, program in self._judge.epoch_programs:
            if count == len(self._runs):
                with contextlib.suppress(ValueError):
                    return lifted, self._numbers_of(lifted, steps), program
        lifted = backend.step_programs.LiftedStep(steps)

        def epoch(state: Any, fold: Tensor, numbers: Any, data: dict[str, Tensor], order: Tensor) -> Any:
            """The states of all runs after an epoch, and its logs."""

            def of_run(run: tuple[Any, Tensor, Any]) -> Any:
                state, fold, numbers = run
                x, y = data["x_train"], data["y_train"]
                return lifted.epoch(state, numbers, order[fold], lambda rows: (x[fold, rows], y[fold, rows]))

            return ops.vectorized_map(of_run, (state, fold, numbers))

        numbers, order = self._numbers_of(lifted, steps), np.stack([self._problem.order(s, 0) for s in self._seeds])
        arguments = self._state, self._fold, numbers, self._judge.data, order
        program = backend.step_programs.Program(epoch, *arguments, donate=(0,))
        self._judge.epoch_programs.append((len(self._runs), lifted, program))
        return lifted, numbers, program

    def _numbers_of(self, lifted: Any, steps: Sequence[Any]) -> list[Tensor]:
        return [ops.convert_to_tensor(values.repeat(len(self._seeds), axis=0)) for values in lifted.numbers(steps)]

    def compile(self) -> None:
        """Compile what is not compiled yet; any thread may call this."""
        settings, weights = self._problem.settings, sum(values.size for values in self._state[0])
        examples = settings.epochs * self._problem.order(self._seeds[0], 0).size
        self._program.compile(quick=6.0 * weights * examples < _LONG)
        self._judging.compile()
        self._testing.compile()

    def train(self, on_epochs: OnEpochs) -> Iterator[Run]:
        """The trained runs; `on_epochs` is called several times in a training."""
        records: list[list[dict[str, Any]]] = [[] for _ in self._runs]
        seconds, count = [], self._problem.settings.epochs
        block = math.ceil(count / _REPORTS)
        for first in range(0, count, block):
            epochs = range(first, min(first + block, count))
            orders = [np.stack([self._problem.order(seed, epoch) for seed in self._seeds]) for epoch in epochs]
            started = time.perf_counter()
            every = [self._train_epoch(epoch, order) for epoch, order in zip(epochs, orders, strict=True)]
            every = keras.tree.map_structure(np.asarray, every)
            seconds.append((time.perf_counter() - started) / len(epochs) / len(self._runs))
            for lane, (candidate, seed) in enumerate(self._runs):
                before = len(records[lane])
                for epoch, of_epoch in zip(epochs, every, strict=True):
                    logs = {name: values[lane] for name, values in of_epoch.items()}
                    score = float(logs.pop("score"))
                    if logs.pop("counts"):
                        records[lane].append(epoch_record(self._problem, seed, epoch, logs, score))
                on_epochs(candidate.name, len(records[lane]) - before)
            if not np.any(self._best.active):
                break
        weights = [np.asarray(values).reshape(len(self._runs), -1) for values in self._best.network[0]]
        zeros = (np.concatenate(weights, axis=1) == 0).mean(axis=1)
        predictions = np.asarray(self._testing(self._best.network, self._fold, self._judge.data["x_test"]))
        best, per_epoch = np.asarray(self._best.epoch), float(np.median(seconds))
        for lane, (candidate, seed) in enumerate(self._runs):
            measured = {"seconds_per_epoch": per_epoch, "zeros": float(zeros[lane])}
            yield run_of(self._problem, candidate, seed, records[lane], int(best[lane]), predictions[lane], **measured)

    def _train_epoch(self, epoch: int, order: np.ndarray) -> dict[str, Tensor]:
        """The logs of an epoch, its score, and whether it counts."""
        self._state, logs = self._program(self._state, self._fold, self._numbers, self._judge.data, order)
        network = self._lifted.step.network(self._state)
        self._best, judged = self._judging(self._best, network, self._fold, logs["loss"], epoch, self._judge.data)
        return {**logs, **judged}
