"""Training many runs at once, as one compiled program (JAX)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from minimand import backend
from minimand.backend import Tensor
from minimand.study._data import Fold, take
from minimand.study._problem import Problem
from minimand.study._settings import StudyError
from minimand.study._training import ROWS, OnEpochs, Run, Work, epoch_record, run_of, validation_score

# Bytes for the data, weights, gradients and so on of the runs that train at once.
_MEMORY = 2**31
# Progress is reported this many times in a training.
_REPORTS = 10
# Epochs are timed in blocks, at least so many when nothing is compiled.
_TIMED_BLOCKS = 3
# A program of more floating-point operations (seconds of a core) is worth a thorough compilation.
_LONG = 1e11


class _Memory(NamedTuple):
    """Bytes that training needs: for what all runs share, for a run, and for a row of a run's predictions."""

    shared: int
    run: int
    row: int


def _memory(problem: Problem) -> _Memory:
    if "memory" not in problem.programs:
        fold, other = problem.fold(0), problem.fold(problem.settings.repeats)
        weights = sum(values.nbytes for values in problem.weights(0))
        network, rows = problem.network(0), problem.order(0, 0)[0]
        try:
            step = backend.step_programs.live_bytes(network, take(fold.x, rows))
        # A user's network may fail in any way when JAX traces it. Its seeds cannot train at once then.
        except Exception:
            step = None
        # The weights, their gradients, Adam's two moments, the best epoch's weights, and the same again for a step. The
        # gradient keeps what the network computes.
        run = 8 * weights + (2 * step.total if step else 0)
        shared = 0
        for own, others in ((fold.x, other.x), (fold.y, other.y)):
            pairs = zip(keras.tree.flatten(own), keras.tree.flatten(others), strict=True)
            for values, of_other in pairs:
                if values is of_other:
                    shared += values.nbytes
                else:
                    run += values.nbytes
        # Data, weights, their gradients and those of the best epoch, and a prediction: one run needs more than that.
        least, there = shared + 3 * weights + (step.peak if step else 0), _physical_memory()
        if least > there:
            raise StudyError(
                f"One training of this network needs at least {least / 2**30:.1f} GiB of memory, but this machine has "
                f"{there / 2**30:.1f} GiB. Pass a smaller network, or a smaller batch_size. Received: "
                f"batch_size={problem.settings.batch_size}"
            )
        problem.programs["memory"] = _Memory(shared, run, (step.peak if step else 0) // len(rows) + 1)
    return problem.programs["memory"]


def _physical_memory() -> float:
    """Bytes; infinite on Windows, where Python does not know it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf


def runs_at_once(problem: Problem) -> int:
    """The number of runs that memory allows to train at once."""
    memory = _memory(problem)
    return max(1, (_MEMORY - memory.shared) // memory.run)


def note_on_memory(problem: Problem) -> str:
    """A sentence if memory does not allow all seeds of the study to train at once."""
    limit, seeds, memory = runs_at_once(problem), problem.settings.seeds * problem.settings.repeats, _memory(problem)
    if limit >= seeds:
        return ""
    needed = (memory.shared + seeds * memory.run) / 2**30
    how = f"{limit} at a time" if limit > 1 else "one after the other"
    return f"seeds train {how}, because all {seeds} at once would need up to {needed:.1f} GiB"


def train_at_once(
    problem: Problem, works: Sequence[Work], on_epochs: OnEpochs
) -> Generator[list[Run], None, list[tuple[Work, str]]]:
    """Yields the runs of works, some at a time; returns works that JAX cannot train at once, with a note of why."""
    rest: list[tuple[Work, BaseException]] = []
    groups = _groups(problem, works, rest)
    # Programs wait for each other with their runs' weights, unless memory is scarce.
    for some in ([group] for group in groups) if note_on_memory(problem) else (groups,):
        programs: list[tuple[list[_Traced], _Runs, Future[None], Future[None]]] = []
        # Nothing is traced or compiled any more; nobody waits for runs any more.
        quiet, over = threading.Event(), threading.Event()
        # Other threads compile and train while this one traces the next program.
        with ThreadPoolExecutor(os.cpu_count()) as compilers, ThreadPoolExecutor(max_workers=1) as trainer:
            try:
                for group in some:
                    try:
                        runs = _Runs(problem, group)
                    except Exception as error:
                        rest += [(traced.work, error) for traced in group]
                    else:
                        compiling = compilers.submit(runs.compile)
                        training = trainer.submit(runs.train, compiling, on_epochs, quiet, over)
                        programs.append((group, runs, compiling, training))
                compilers.shutdown()
                quiet.set()
                untimed = []
                for group, runs, compiling, training in programs:
                    failure = compiling.exception()
                    if failure is not None:
                        rest += [(traced.work, failure) for traced in group]
                        continue
                    training.result()
                    # The time of an epoch beside a compiler says nothing about the cost of a candidate. Runs that have
                    # no other time measure it when all are trained.
                    if runs.timed:
                        yield list(runs.results())
                    else:
                        untimed.append(runs)
                for runs in untimed:
                    yield list(runs.results())
            finally:
                over.set()
    reasons = [(work, (str(error).strip() or type(error).__name__).splitlines()[0]) for work, error in rest]
    return [(work, f"JAX cannot train its seeds at once: {reason}") for work, reason in reasons]


class _Traced(NamedTuple):
    """A piece of work whose folds are alike, its `TracedStep`, and its runs' initial values."""

    work: Work
    step: Any
    states: Sequence[Sequence[np.ndarray]]


def trace(problem: Problem, work: Work) -> _Traced:
    """Trace the training step of a candidate; raises whatever JAX raises if it cannot."""
    trainer, states = problem.beginnings(work.candidate, work.seeds)
    seed = work.seeds[0]
    batch = problem.batch(seed, problem.sample(seed))
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
        seeds: seeds of folds that are alike.

    Attributes:
        data: the arrays of the folds as tensors. `x` and `y` have all rows of each fold, or of one if all are equal;
            `weights` are those of all rows for each output, or None; `validation` and `test` are row numbers, filled up
            to equal lengths, and `mask` is 1 for validation rows that count.
        places: index of each seed's fold in the data.
    """

    def __init__(self, problem: Problem, seeds: tuple[int, ...]) -> None:
        self._problem = problem
        splits = list(dict.fromkeys(problem.split(seed) for seed in seeds))
        folds = {problem.split(seed): problem.fold(seed) for seed in seeds}
        self.places = {seed: splits.index(problem.split(seed)) for seed in seeds}
        self.data = _data(problem, [folds[split] for split in splits])
        # The data are arguments of the programs, because XLA copies constants into a program. So other seeds can use
        # the programs, if their data have equal shapes.
        form = str(keras.tree.map_structure(lambda values: (values.shape, values.dtype), self.data, none_is_leaf=False))
        # (form of trainings, lifted step, program of an epoch), and programs that judge by the number of trainings.
        shared: tuple[list[tuple[Any, Any, Any]], dict[int, _JudgingPrograms]] = ([], {})
        self.epoch_programs, self._programs = problem.programs.setdefault(form, shared)
        self._model, self._patience = problem.network(seeds[0]), problem.settings.patience
        self._selection = problem.metrics.selection

    def programs(self, best: Best, fold: Tensor) -> _JudgingPrograms:
        """The programs that judge and that test so many networks."""
        if len(fold) not in self._programs:
            program, data = backend.step_programs.Program, self.data
            self._rows = max(1, min(ROWS, _MEMORY // (_memory(self._problem).row * len(fold))))
            testing = program(partial(self._predictions, "test"), best.network, fold, data)
            if self._selection.losses:
                judging = program(self._judge, best, best.network, fold, best.score, 0, data, donate=(0,))
                self._programs[len(fold)] = _JudgingPrograms(judging, None, testing)
            else:
                judging = program(self._update, best, best.network, best.score, best.score, 0, donate=(0,))
                validating = program(partial(self._predictions, "validation"), best.network, fold, data)
                self._programs[len(fold)] = _JudgingPrograms(judging, validating, testing)
        return self._programs[len(fold)]

    def _judge(
        self, best: Best, network: Any, fold: Tensor, loss: Tensor, epoch: Tensor, data: dict[str, Any]
    ) -> tuple[Best, dict[str, Tensor]]:
        """As `_update`, with the scores of the validation rows."""

        def score(run: tuple[Any, Tensor]) -> Tensor:
            network, fold = run
            rows, mask = data["validation"][fold], data["mask"]
            weights = [None if values is None else values[rows] for values in data["weights"]]
            if mask is not None:
                own = mask[fold]
                weights = [own if w is None else w * _alongside(own, w) for w in weights]
            y = [_of_fold(values, fold, rows) for values in data["y"]]
            return self._selection.score(y, self._predict(network, fold, rows, data), weights)

        return self._update(best, network, ops.vectorized_map(score, (network, fold)), loss, epoch)

    def _update(
        self, best: Best, network: Any, score: Tensor, loss: Tensor, epoch: Tensor
    ) -> tuple[Best, dict[str, Tensor]]:
        """The best of each run after an epoch of this loss; its score, and whether the run had not ended before."""

        def update(run: tuple[Best, Any, Tensor, Tensor]) -> tuple[Best, dict[str, Tensor]]:
            best, network, score, loss = run
            better = best.active & (score < best.score)
            number = ops.where(better, epoch, best.epoch)
            active = best.active & ops.isfinite(loss)
            if self._patience is not None:
                active &= epoch - number < self._patience
            kept = keras.tree.map_structure(lambda new, old: ops.where(better, new, old), network, best.network)
            judged = Best(kept, ops.where(better, score, best.score), number, active)
            return judged, {"score": score, "counts": best.active}

        return ops.vectorized_map(update, (best, network, score, loss))

    def _predictions(self, part: str, network: Any, fold: Tensor, data: dict[str, Any]) -> list[Tensor]:
        """For each output, (runs, rows, ...) predictions for the rows of a part, `"validation"` or `"test"`."""

        def predict(run: tuple[Any, Tensor]) -> list[Tensor]:
            network, fold = run
            return self._predict(network, fold, data[part][fold], data)

        return ops.vectorized_map(predict, (network, fold))

    def _predict(self, network: Any, fold: Tensor, rows: Tensor, data: dict[str, Any]) -> list[Tensor]:
        """Each output's predictions for these rows, some at a time."""

        def outputs(rows: Tensor) -> list[Tensor]:
            x = keras.tree.map_structure(lambda values: _of_fold(values, fold, rows), data["x"])
            return keras.tree.flatten(backend.step_programs.outputs_of(self._model, network, x, training=False))

        if len(rows) <= self._rows:
            return outputs(rows)
        whole = (len(rows) - 1) // self._rows * self._rows
        parts = ops.map(outputs, ops.reshape(rows[:whole], (-1, self._rows)))
        pairs = zip(parts, outputs(rows[whole:]), strict=True)
        return [ops.concatenate([ops.reshape(part, (-1, *part.shape[2:])), last]) for part, last in pairs]


class _JudgingPrograms(NamedTuple):
    """Programs that judge and test, and one that predicts for validation rows if the score is computed outside."""

    judging: Any
    validating: Any
    testing: Any


def _data(problem: Problem, folds: Sequence[Fold]) -> dict[str, Any]:
    """The `data` of a `Judge`."""
    shared = problem.programs.setdefault("shared", {})

    def stacked(*values: np.ndarray) -> Tensor:
        if any(each is not values[0] for each in values):
            return ops.convert_to_tensor(np.stack(values))
        # The problem keeps the array, so that no other one gets its id.
        if id(values[0]) not in shared:
            shared[id(values[0])] = ops.convert_to_tensor(values[0][None])
        return shared[id(values[0])]

    def filled(name: str) -> np.ndarray:
        every = [getattr(fold.split, name) for fold in folds]
        longest = max(map(len, every))
        return np.stack([np.pad(rows, (0, longest - len(rows)), mode="edge") for rows in every]).astype("int32")

    counts = np.array([len(fold.split.validation) for fold in folds])
    mask = (np.arange(counts.max()) < counts[:, None]).astype("float32")
    return {
        "x": keras.tree.map_structure(stacked, *(fold.x for fold in folds)),
        "y": [stacked(*values) for values in zip(*(fold.y for fold in folds), strict=True)],
        "weights": [None if values is None else ops.convert_to_tensor(values) for values in folds[0].weights],
        "validation": filled("validation"),
        "mask": None if mask.all() else mask,
        "test": filled("test"),
    }


def _of_fold(values: Tensor, fold: Tensor, rows: Tensor) -> Tensor:
    """Rows of a fold's array, or of the array that all folds share."""
    return values[0][rows] if len(values) == 1 else values[fold, rows]


def _alongside(mask: Tensor, weights: Tensor) -> Tensor:
    return ops.reshape(mask, (*mask.shape, *(1 for _ in weights.shape[1:])))


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
        places = np.array([self._judge.places[seed] for seed in self._seeds], "int32")
        self._fold = ops.convert_to_tensor(np.tile(places, len(group)))
        # The run's place among the seeds, which have a batch order each.
        self._lane = ops.convert_to_tensor(np.tile(np.arange(len(self._seeds), dtype="int32"), len(group)))
        states = [traced.step.state(values) for traced in group for values in traced.states]
        self._state = keras.tree.map_structure(lambda *values: np.stack(values), *states)
        self._lifted, self._numbers, self._program = self._programmed([traced.step for traced in group])
        count = len(self._runs)
        scores, none = np.full(count, np.inf, "float32"), np.full(count, -1, "int32")
        self._best = Best(self._lifted.step.network(self._state), scores, none, np.full(count, True))
        self._programs = self._judge.programs(self._best, self._fold)
        self._records: list[list[dict[str, Any]]] = [[] for _ in self._runs]
        epochs = range(problem.settings.epochs)
        size = math.ceil(len(epochs) / _REPORTS)
        self._blocks = [epochs[first : first + size] for first in epochs[::size]]
        self._seconds: list[float] = []

    def _programmed(self, steps: Sequence[Any]) -> tuple[Any, list[Tensor], Any]:
        """The lifted step, its numbers for these runs, and the program of an epoch: an earlier one if it suits."""
        order = self._order(0)
        ragged = bool((order < 0).any())
        # Other seeds may have as many rows to validate on, but another number of steps.
        form = len(self._runs), order.shape, ragged
        for other, lifted, program in self._judge.epoch_programs:
            if other == form:
                with contextlib.suppress(ValueError):
                    return lifted, self._numbers_of(lifted, steps), program
        lifted = backend.step_programs.LiftedStep(steps)

        def epoch(state: Any, runs: Any, numbers: Any, data: dict[str, Any], order: Tensor) -> Any:
            """The states of all runs after an epoch, and its logs."""

            def of_run(run: tuple[Any, Any, Any]) -> Any:
                state, (fold, lane), numbers = run

                def batch(rows: Tensor) -> tuple[Any, ...]:
                    x = keras.tree.map_structure(lambda values: _of_fold(values, fold, rows), data["x"])
                    y = [_of_fold(values, fold, rows) for values in data["y"]]
                    weights = [None if values is None else values[rows] for values in data["weights"]]
                    return x, *self._problem.packed(y, weights)

                return lifted.epoch(state, numbers, order[lane], batch, ragged=ragged)

            return ops.vectorized_map(of_run, (state, runs, numbers))

        numbers = self._numbers_of(lifted, steps)
        arguments = self._state, (self._fold, self._lane), numbers, self._judge.data, order
        program = backend.step_programs.Program(epoch, *arguments, donate=(0,))
        self._judge.epoch_programs.append((form, lifted, program))
        return lifted, numbers, program

    def _order(self, epoch: int) -> np.ndarray:
        """(seeds, steps, batch) training rows of an epoch, with -1 for the steps that a smaller fold does not have."""
        orders = [self._problem.order(seed, epoch) for seed in self._seeds]
        steps = max(map(len, orders))
        return np.stack([np.pad(o, ((0, steps - len(o)), (0, 0)), constant_values=-1) for o in orders])

    def _numbers_of(self, lifted: Any, steps: Sequence[Any]) -> list[Tensor]:
        return [ops.convert_to_tensor(values.repeat(len(self._seeds), axis=0)) for values in lifted.numbers(steps)]

    def compile(self) -> None:
        """Compile what is not compiled yet; any thread may call this."""
        settings, weights = self._problem.settings, sum(values.size for values in self._state[0])
        examples = settings.epochs * self._problem.order(self._seeds[0], 0).size
        self._program.compile(quick=6.0 * weights * examples < _LONG)
        for program in self._programs:
            if program is not None:
                program.compile()

    def train(
        self, compiling: Future[None], on_epochs: OnEpochs, quiet: threading.Event, over: threading.Event
    ) -> None:
        """Train when the programs are compiled; `on_epochs` is called several times.

        Epochs are timed when it is quiet, and training ends when the study is over.
        """
        compiling.result()
        for epochs in self._blocks:
            if over.is_set():
                break
            timed = quiet.is_set()
            every, seconds = self._train_block(epochs)
            if timed:
                self._seconds.append(seconds)
            for lane, (candidate, seed) in enumerate(self._runs):
                records = self._records[lane]
                before = len(records)
                for epoch, of_epoch in zip(epochs, every, strict=True):
                    logs = {name: values[lane] for name, values in of_epoch.items()}
                    score = float(logs.pop("score"))
                    if logs.pop("counts"):
                        records.append(epoch_record(self._problem, seed, epoch, logs, score))
                on_epochs(candidate.name, len(records) - before)
            if not np.any(self._best.active):
                break

    @property
    def timed(self) -> bool:
        """True if enough epochs ran when nothing was compiled."""
        return len(self._seconds) >= min(_TIMED_BLOCKS, len(self._blocks))

    def results(self) -> Iterator[Run]:
        """The trained runs."""
        network, best = self._best.network, np.asarray(self._best.epoch)
        weights = [np.asarray(values).reshape(len(self._runs), -1) for values in network[0]]
        zeros = (np.concatenate(weights, axis=1) == 0).mean(axis=1)
        predictions = [np.asarray(each) for each in self._programs.testing(network, self._fold, self._judge.data)]
        while not self.timed:
            self._seconds.append(self._train_block(self._blocks[0])[1])
        # Whatever else the machine does can only add to a time.
        per_epoch = min(self._seconds) / len(self._runs)
        for lane, (candidate, seed) in enumerate(self._runs):
            count = len(self._problem.fold(seed).split.test)
            predicted = [values[lane, :count] for values in predictions]
            measured: dict[str, Any] = {"seconds_per_epoch": per_epoch, "zeros": float(zeros[lane])}
            measured["note"] = note_on_memory(self._problem)
            records = self._records[lane]
            yield run_of(self._problem, candidate, seed, records, int(best[lane]), predicted, **measured)

    def _train_block(self, epochs: range) -> tuple[list[dict[str, np.ndarray]], float]:
        """The logs of each epoch, and the mean time of an epoch."""
        started = time.perf_counter()
        every = keras.tree.map_structure(np.asarray, [self._train_epoch(epoch) for epoch in epochs])
        return every, (time.perf_counter() - started) / len(epochs)

    def _train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """The logs of an epoch, its score, and whether it counts."""
        runs, data = (self._fold, self._lane), self._judge.data
        self._state, logs = self._program(self._state, runs, self._numbers, data, self._order(epoch))
        network = self._lifted.step.network(self._state)
        if self._programs.validating is None:
            self._best, judged = self._programs.judging(self._best, network, self._fold, logs["loss"], epoch, data)
        else:
            predictions = [np.asarray(each) for each in self._programs.validating(network, self._fold, data)]
            scores = []
            for lane, (_, seed) in enumerate(self._runs):
                count = len(self._problem.fold(seed).split.validation)
                scores.append(validation_score(self._problem, seed, [values[lane, :count] for values in predictions]))
            arguments = self._best, network, np.array(scores, "float32"), logs["loss"], epoch
            self._best, judged = self._programs.judging(*arguments)
        return {**logs, **judged}
